"""How networks see and learn: effective receptive fields, gridding and training curves."""

from degrid.analysis.field_numbers import (
    checkerboard_energy,
    gridding_score,
    hole_ratio,
    independent_networks,
    phase_exchange,
)
from degrid.analysis.receptive_field import dilated_stage_receptive_field, effective_receptive_field

__all__ = [
    "checkerboard_energy",
    "dilated_stage_receptive_field",
    "effective_receptive_field",
    "gridding_score",
    "hole_ratio",
    "independent_networks",
    "phase_exchange",
]
