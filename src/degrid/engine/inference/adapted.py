"""Networks of other libraries in the form of degrid's own: uint8 images in, one tensor of logits out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from degrid.contracts import declared, logits_of, type_of_weights


class Adapted(nn.Module):
    """A network that may want floats, and may give more than logits.

    Images are handed over as uint8, in PyTorch's usual layout, on which the values of a network may depend. Where the
    network refuses uint8, they are floats of the same values, 0-255, in the type of its weights. Of a dictionary, named
    tuple or dataclass "out" or "logits" is taken, of a list or any other tuple the first. One logit is two classes by
    its sign.

    Args:
        network: from RGB images [N,3,H,W] to logits [N,C,h,w], alone or among other things.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training  # only this attribute: each module inside keeps its mode
        self.wants_floats = False
        self.layout = torch.contiguous_format

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N,C,h,w].

        Raises:
            UserError: the network gives no logits in any of these forms.
        """
        # A copy, since some write every result into the same memory.
        return logits_of(self.network, self._output(image)).clone()

    def _output(self, image: Tensor) -> Any:
        if not self.wants_floats:
            try:
                return self.network(image.clone(memory_format=self.layout))  # it may modify its input
            except Exception:  # whatever error refuses bytes
                # If this fails as well, its error is the relevant one.
                output = self.network(self._as_floats(image))
                self.wants_floats = True
                return output
        return self.network(self._as_floats(image))

    def _as_floats(self, image: Tensor) -> Tensor:
        return image.to(type_of_weights(self.network), copy=True, memory_format=self.layout)


def adapted(network: nn.Module) -> nn.Module:
    """The network itself if it is degrid's or derives from its contracts; any other as `Adapted`."""
    return network if declared(network) is not None else Adapted(network)
