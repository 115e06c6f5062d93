"""The idea: dilated convolutions whose neighbouring outputs share what they see. Needs torch alone."""

from degrid.smoothing.operators import (
    OPERATORS,
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
    operator_factory,
)
from degrid.smoothing.retrofit import SmoothedConv2d, SmoothingReport, rate_at_most, smooth_dilated_convs

__all__ = [
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
    "SmoothedConv2d",
    "SmoothingReport",
    "Tent",
    "operator_factory",
    "rate_at_most",
    "smooth_dilated_convs",
]
