"""How networks see and learn: effective receptive fields, the gridding score, training curves and reports."""

from degrid.analysis.receptive_field import (
    dilated_stage_receptive_field,
    effective_receptive_field,
    gridding_score,
    hole_ratio,
    phase_exchange,
)

__all__ = [
    "dilated_stage_receptive_field",
    "effective_receptive_field",
    "gridding_score",
    "hole_ratio",
    "phase_exchange",
]
