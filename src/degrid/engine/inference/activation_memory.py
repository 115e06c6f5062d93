"""How much memory a network needs for an image, without computing anything."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from degrid.types import UserError


def activation_bytes(model: nn.Module, size: tuple[int, int]) -> int:
    """Bytes of all feature maps that exist at the same time while one image is predicted, at most.

    The network runs on PyTorch's "meta" device, whose tensors have sizes but no content. Weights are not counted, nor
    is memory that a library uses inside one operation.

    Args:
        model: from RGB images [1,3,H,W] to logits, in evaluation mode.
        size: height and width of the image, pixels.
    Raises:
        UserError: the network cannot run without content, for instance because its forward depends on values.
    """
    # The parameters are shared until they move, so the copy costs no memory.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    shadow = copy.deepcopy(model, memo).to("meta")
    count = _LiveBytes()
    try:
        with torch.inference_mode(False), torch.no_grad(), count:
            image = torch.empty(1, 3, *size, device="meta")
            shadow(image)
    except (NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"cannot tell how much memory this {type(model).__name__} needs ({error}); give a window instead of a limit"
        ) from error
    return count.peak


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations create, and subtracts those that are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget(key, size))

    def _forget(self, key: int, size: int) -> Callable[[], None]:
        def forget() -> None:
            self._known.discard(key)
            self.live -= size

        return forget


def available_bytes(device: torch.device) -> int:
    """Free memory of a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system has these
        return 4 << 30
