"""Networks of other libraries as degrid's own: uint8 images in, one tensor of logits out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from degrid.contracts import by_sign, declared
from degrid.types import UserError

_KEYS = ("out", "logits")  # torchvision's and transformers' names


class Adapted(nn.Module):
    """A network that may want floats, and may give more than logits.

    Images are handed over as uint8; where the network refuses that, as floats of the same values, 0-255, in the type of
    its weights. Of a dictionary, named tuple or dataclass "out" or "logits" is taken, of a list or any other tuple the
    first. One logit is two classes by its sign.

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
        if not self.wants_floats:
            try:
                return self.network(image.clone())  # it may work in place
            except Exception:  # in whatever way it refuses bytes
                output = self.network(self._floats(image))  # if this fails as well, its reason is the one to know
                self.wants_floats = True
                return output
        return self.network(self._floats(image))

    def _floats(self, image: Tensor) -> Tensor:
        own = next((each.dtype for each in self.network.parameters() if each.is_floating_point()), torch.float32)
        return image.to(own)

    def _logits(self, output: Any) -> Tensor:
        named = _by_name(output)
        found = next((named[key] for key in _KEYS if key in named), output)
        if isinstance(found, list | tuple) and found:
            found = found[0]
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise UserError(
                f"{type(self.network).__name__} gives {_described(output)}; expected logits [N,C,h,w], or a dictionary "
                f"with them under {' or '.join(_KEYS)}"
            )
        return by_sign(found)


def _by_name(output: Any) -> Mapping[str, Any]:
    """The entries of a dictionary, named tuple or dataclass; none of anything else."""
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        output = output._asdict()
    elif dataclasses.is_dataclass(output) and not isinstance(output, Mapping):  # transformers' outputs are both
        output = vars(output)
    return output if isinstance(output, Mapping) else {}


def adapted(network: nn.Module) -> nn.Module:
    """The network itself if it is degrid's or derives from its contracts; any other as `Adapted`."""
    return network if declared(network) is not None else Adapted(network)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    named = _by_name(output)
    keys = f" with {', '.join(map(str, named))}" if named else ""
    return f"a {type(output).__name__}{keys}"
