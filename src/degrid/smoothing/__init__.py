"""Smoothed dilated convolutions: neighbouring outputs depend on common inputs again. Depends on torch alone."""

from degrid.smoothing.layers import SmoothedConv1d, SmoothedConv2d, SmoothedConv3d, SmoothedLayer
from degrid.smoothing.operators import (
    Aggregation,
    Average,
    Decompose,
    Gaussian,
    GroupInteraction,
    Operator,
    PreFilter,
    Regular,
    SeparableShared,
    Tent,
)
from degrid.smoothing.retrofit import SmoothingReport, rate_at_most, smooth_dilated_convs
from degrid.smoothing.table import LEGACY_OPERATORS, OPERATORS, operator_factory

__all__ = [
    "LEGACY_OPERATORS",
    "OPERATORS",
    "Aggregation",
    "Average",
    "Decompose",
    "Gaussian",
    "GroupInteraction",
    "Operator",
    "PreFilter",
    "Regular",
    "SeparableShared",
    "SmoothedConv1d",
    "SmoothedConv2d",
    "SmoothedConv3d",
    "SmoothedLayer",
    "SmoothingReport",
    "Tent",
    "operator_factory",
    "rate_at_most",
    "smooth_dilated_convs",
]
