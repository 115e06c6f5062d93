"""The settings of a dense CRF. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from degrid.arguments import check_fields
from degrid.types import UserError


@dataclass(frozen=True)
class CRF:
    """Weights and widths of the two kernels: appearance (nearby pixels of like colour) and smoothness (near pixels).

    bi_weight, bi_xy_std (pixels), bi_rgb_std (colour levels of 255): appearance. pos_weight, pos_xy_std (pixels):
    smoothness. iterations: of mean field. The defaults are those of DeepLab v2 on ResNet-101.

    Raises:
        UserError: a width or number of iterations that is not positive, or a negative weight.
    Source: Krähenbühl & Koltun (arXiv 1210.5644), equation 3; parameters: DeepLab v2 (arXiv 1606.00915) section 4.1 and
    its public configurations.
    """

    bi_weight: float = 4.0
    bi_xy_std: float = 67.0
    bi_rgb_std: float = 3.0
    pos_weight: float = 3.0
    pos_xy_std: float = 1.0
    iterations: int = 10

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.bi_xy_std, self.bi_rgb_std, self.pos_xy_std, self.iterations) <= 0:
            raise UserError(f"CRF: widths and iterations must be above 0, got {self}")
        if min(self.bi_weight, self.pos_weight) < 0:
            raise UserError(f"CRF: weights must not be negative, got {self}")
