"""How networks see and learn: effective receptive fields, the gridding score and training curves."""

from degrid.analysis.receptive_field import (
    dilated_stage_receptive_field,
    effective_receptive_field,
    gridding_score,
    hole_ratio,
)

__all__ = ["dilated_stage_receptive_field", "effective_receptive_field", "gridding_score", "hole_ratio"]
