"""The whole network: pixels in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from degrid.contracts import MultiScaleNetwork
from degrid.models.activation_checkpointing import recomputed
from degrid.models.encoder import Encoder
from degrid.resize import RESIZES, resize, scaled_size
from degrid.types import LabelSpace, Preprocess, UserError


class BuiltFrom(Protocol):
    """The settings that a network was built from, such as a `degrid.config.ModelConfig`: the names of its parts."""

    @property
    def network(self) -> str:
        """A row of `degrid.models.NETWORKS`, or "module:function"."""

    @property
    def encoder(self) -> str:
        """Name of the encoder; see `degrid.models.build_encoder`."""


class Segmenter(MultiScaleNetwork):
    """Encoder and head, with the normalisation and channel order that the encoder's weights expect.

    Args:
        encoder: an `Encoder`.
        head: from the encoder's features to logits.
        labels: the classes of the logits.
        logit_stride: image size over logit size.
        resize: how logits are enlarged, to the image's size and between scales; a name in `degrid.resize.RESIZES`.
        scales: further scales of multi-scale input, such as (0.75, 0.5); the logits are the maximum over all scales.
    Raises:
        UserError: an unknown resize, or a scale that is not between 0 and 4.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        labels: LabelSpace,
        logit_stride: int,
        resize: str = "half_pixel",
        scales: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if resize not in RESIZES:
            raise UserError(f'setting "model.resize": expected {", ".join(RESIZES)}, got "{resize}"')
        if not all(0 < scale < 4 for scale in scales):
            raise UserError(f"model.scales: expected factors above 0 and below 4, such as 0.75,0.5; got {scales}")
        self.resize, self.scales = resize, scales
        self.encoder = encoder
        self.head = head
        self.labels = labels
        self.logit_stride = logit_stride
        self.preprocess: Preprocess = cast(Encoder, encoder).preprocess
        self.scales_in_turn = False
        """In training, keep the feature maps of one scale at a time, and compute each again for its gradient; the
        result is the same."""
        self.config: BuiltFrom | None = None
        """The settings that the network was built from, if any."""
        # Not in the state dict, since they are settings: all names in it belong to encoder and head.
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).reshape(1, 3, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        """Classes of the logits."""
        return len(self.labels)

    @property
    def output_stride(self) -> int:
        """Image size over the size of the encoder's last feature."""
        return cast(Encoder, self.encoder).reductions[-1]

    @property
    def stride(self) -> int:
        """Image size over the size of the coarsest of the encoder's features."""
        return max(cast(Encoder, self.encoder).reductions)

    def forward(self, image: Tensor) -> Tensor:
        """RGB images [N,3,H,W], uint8 or float, 0-255, any size -> logits [N,C,h,w] at the head's stride."""
        if not self.scales:
            return self._logits(self._normalised(image))
        return self.fused(self.scale_logits(image))

    def scale_logits(self, image: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """The logits of each scale, [N,C,h_s,w_s]: the original one first, then `scales` in order.

        Args:
            image: see `forward`.
            sizes: height and width for each of `scales`, by default those of `degrid.resize.scaled_size`.
        Source: DeepLab v2 (arXiv 1606.00915) section 4.1.2: one shared network at several scales.
        """
        x = self._normalised(image)
        if sizes is None:
            sizes = [scaled_size(tuple(x.shape), scale, self.resize) for scale in self.scales]
        inputs = [x, *(resize(x, size, self.resize) for size in sizes)]
        if self.scales_in_turn and torch.is_grad_enabled():
            return [recomputed(self, self._logits, scaled) for scaled in inputs]
        return [self._logits(scaled) for scaled in inputs]

    def fused(self, logits: list[Tensor]) -> Tensor:
        """The maximum over the logits of all scales, at the size of the first."""
        size = tuple(logits[0].shape[-2:])
        return torch.stack([resize(each, size, self.resize) for each in logits]).amax(0)

    def _normalised(self, image: Tensor) -> Tensor:
        x = image.flip(1) if self.preprocess.bgr else image
        return (x.to(self.mean.dtype) - self.mean) / self.std

    def _logits(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(x)))
