"""Networks of other libraries as degrid's own: uint8 images in, one tensor of logits out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from degrid.contracts import by_sign, declared
from degrid.types import UserError

_KEYS = ("out", "logits")  # torchvision's and transformers' names


class Adapted(nn.Module):
    """A network that may want floats, and may give more than logits.

    Images are handed over as uint8; where the network refuses that, as float32 of the same values, 0-255. Of a
    dictionary the entry "out" or "logits" is taken, of a list or tuple the first. One logit is two classes by its sign.

    Args:
        network: from RGB images [N,3,H,W] to logits [N,C,h,w], alone or among other things.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training  # alone: each module inside keeps its mode
        self.wants_floats = False

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N,C,h,w].

        Raises:
            UserError: the network gives no logits in any of these forms.
        """
        return self._logits(self._output(image))

    def _output(self, image: Tensor) -> Any:
        if self.wants_floats:
            return self.network(image.float())
        try:
            return self.network(image)
        except (RuntimeError, TypeError):
            output = self.network(image.float())  # if this fails as well, its reason is the one to know
            self.wants_floats = True
            return output

    def _logits(self, output: Any) -> Tensor:
        if isinstance(output, Mapping):
            output = next((output[key] for key in _KEYS if key in output), output)
        elif isinstance(output, list | tuple) and output:
            output = output[0]
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise UserError(
                f"{type(self.network).__name__} gives {_described(output)}; expected logits [N,C,h,w], or a dictionary "
                f"with them under {' or '.join(_KEYS)}"
            )
        return by_sign(output)


def adapted(network: nn.Module) -> nn.Module:
    """The network itself if it is degrid's or derives from its contracts; any other as `Adapted`."""
    return network if declared(network) is not None else Adapted(network)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    keys = f" with {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    return f"a {type(output).__name__}{keys}"
