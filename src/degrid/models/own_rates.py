"""Encoders whose strides and rates are their own."""

from __future__ import annotations

from torch import nn

from degrid.types import Preprocess, UserError


class OwnRates(nn.Module):
    """An encoder whose rates no setting changes; without ImageNet weights, unless a class takes `pretrained` itself.

    Args:
        output_stride: one of `strides`.
        pretrained: False.
        multi_grid, uniform_rates: not supported. legacy: has no effect.
        preprocess, in_channels: see `degrid.models.encoder.EncoderSettings`.
    Raises:
        UserError: a setting that it does not support.
    """

    strides: tuple[int, ...] = (8, 16)

    def __init__(
        self,
        name: str,
        output_stride: int,
        *,
        pretrained: bool | str = False,
        multi_grid: tuple[int, ...] | None = None,
        preprocess: Preprocess | None = None,
        uniform_rates: bool = False,
        legacy: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if output_stride not in self.strides or multi_grid or uniform_rates:
            raise UserError(f"{name} supports output stride {' or '.join(map(str, self.strides))}, with its own rates")
        if pretrained:
            raise UserError(
                f"there are no ImageNet weights for {name}: train from random weights (--set model.pretrained=false, "
                "pretrained=False), or from a converted model (--init FOLDER)"
            )
        self.preprocess = preprocess or Preprocess().of_channels(in_channels)

    def draw_weights(self) -> None:
        """Draw the weights of all convolutions, by what reads each (He et al., arXiv 1502.01852, "fan out")."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
