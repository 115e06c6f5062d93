"""The whole network, pixels in and logits out, and how it is built from the names of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from degrid.contracts import MultiScaleNetwork
from degrid.lookup import lookup
from degrid.models.activation_checkpointing import recomputed
from degrid.models.encoder import Encoder, EncoderSettings, build_encoder
from degrid.models.heads import NETWORKS, HeadSettings
from degrid.resize import resize, scaled_size
from degrid.types import RESIZES, LabelSpace, Preprocess, UserError


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
        logit_stride: image size over logit size; with 1 the head's logits are enlarged to the image, of every scale.
        resize: how logits are enlarged, to the image's size and between scales; a name in `degrid.types.RESIZES`.
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
        """Whether training keeps the feature maps of one scale at a time, and computes each again for its gradient; the
        result is the same."""
        self.config: BuiltFrom | None = None
        """The settings that the network was built from, if any."""
        # Not in the state dict, since they are settings: all names in it belong to encoder and head.
        self.register_buffer("mean", torch.tensor(self.preprocess.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.preprocess.std).reshape(1, -1, 1, 1), persistent=False)

    @property
    def output_stride(self) -> int:
        """Image size over the size of the encoder's last feature."""
        return cast(Encoder, self.encoder).reductions[-1]

    @property
    def stride(self) -> int:
        """Image size over the size of the coarsest of the encoder's features."""
        return max(cast(Encoder, self.encoder).reductions)

    def forward(self, image: Tensor) -> Tensor:
        """Images [N,C,H,W] (RGB), uint8 or float, 0-255, any size -> logits [N,C,h,w] at the head's stride."""
        if not self.scales:
            return self._logits(self._normalised(image))
        return self.fused(self.scale_logits(image))

    def scale_logits(self, image: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> list[Tensor]:
        """See `MultiScaleNetwork.scale_logits`; the sizes are by default those of `degrid.resize.scaled_size`."""
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
        x = image
        if self.preprocess.bgr and image.shape[1] >= 3:
            # Slices rather than flip, which in ONNX is one of step -1, and OpenCV 4.14 refuses that.
            others = [image[:, 3:]] if image.shape[1] > 3 else []
            x = torch.cat([*(image[:, channel : channel + 1] for channel in (2, 1, 0)), *others], 1)
        return (x.to(self.mean.dtype) - self.mean) / self.std

    def _logits(self, x: Tensor) -> Tensor:
        logits = cast(Tensor, self.head(self.encoder(x)))
        return resize(logits, x.shape[-2:], self.resize) if self.logit_stride == 1 else logits


def build_network(
    network: str,
    encoder: str,
    labels: LabelSpace,
    body: EncoderSettings,
    head: HeadSettings | None = None,
    *,
    resize: str = "half_pixel",
    scales: tuple[float, ...] = (),
) -> Segmenter:
    """An encoder with a head.

    Args:
        network: a row of NETWORKS, or "module:function" of the user's own, see `degrid.models.heads.MakeHead`.
        encoder: see `build_encoder`.
        body: settings of the encoder.
        head: settings of the head, by default those of the papers.
        resize, scales: see `Segmenter`.
    Raises:
        UserError: an unknown name or an impossible combination; or the user's function makes no head.
    """
    make_head = lookup(NETWORKS, network, "network")
    net = build_encoder(encoder, body)
    made: object = make_head(cast(Encoder, net), len(labels), head or HeadSettings())
    match made:
        case (nn.Module() as module, int() as stride):
            return Segmenter(net, module, labels, stride, resize, scales)
    raise UserError(
        f'network "{network}": expected a function that returns a module from features to logits and the stride of the '
        f"logits, got {made!r:.100}"
    )
