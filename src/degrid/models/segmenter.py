"""The whole network: pixels in, logits out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.models.encoder import Encoder
from degrid.types import LabelSpace, Preprocess


class Segmenter(nn.Module):
    """Encoder and head, with the normalisation and channel order that the encoder's weights want.

    Args:
        encoder: see `Encoder`.
        head: from the encoder's features to logits.
        labels: the classes of the logits.
        logit_stride: image size over logit size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, head: nn.Module, labels: LabelSpace, logit_stride: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.labels = labels
        self.logit_stride = logit_stride
        self.preprocess: Preprocess = cast(Encoder, encoder).preprocess
        self.config: Any = None
        """The settings the model was built from; set by whoever built it."""
        # Not in the state dict: they are settings, and the weights' names stay those of encoder and head.
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

    def forward(self, image: Tensor) -> Tensor:
        """RGB images [N,3,H,W], uint8 or float, 0-255, any size -> logits [N,C,h,w] at the head's stride."""
        x = image.flip(1) if self.preprocess.bgr else image
        x = (x.to(self.mean.dtype) - self.mean) / self.std
        return cast(Tensor, self.head(self.encoder(x)))
