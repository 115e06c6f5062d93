"""What one part of degrid may expect of a network or layer of another: base classes, so that nothing is guessed.

A user's own network may have attributes of any name (`output`, `scales`, `resize`, `encoder`, ...). Only classes that
derive from one of these are taken for what they say.
"""

from __future__ import annotations

from torch import Tensor, nn

from degrid.types import LabelSpace


class SegmentationNetwork(nn.Module):
    """A network that says which classes it predicts and how its logits are enlarged.

    Attributes:
        labels: the classes.
        resize: how logits are enlarged to the image's size; one of the conventions of `degrid.resize`.
    """

    labels: LabelSpace
    resize: str

    @property
    def stride(self) -> int:
        """Images whose sides are multiples of this many pixels need no padding inside the network."""
        return 1


class MultiScaleNetwork(SegmentationNetwork):
    """A network that looks at an image at several scales (DeepLab v2, arXiv 1606.00915 section 4.1.2).

    Attributes:
        scales: the scales beside the image as it is; empty where the network looks once.
    """

    scales: tuple[float, ...]

    def scale_logits(self, image: Tensor) -> list[Tensor]:
        """The logits [N,C,h,w] of every scale, those of the image as it is first."""
        raise NotImplementedError

    def fused(self, logits: list[Tensor]) -> Tensor:
        """The logits [N,C,h,w] of all scales together."""
        raise NotImplementedError


class ExportedNetwork(SegmentationNetwork):
    """A network that another runtime computes, as it was written.

    Attributes:
        output: "logits" [N,C,h,w], or "ids": class ids [N,H,W], uint8, at the image's size.
    """

    output: str
