"""The filter's gradient of dilated convolutions in bfloat16 on the CPU, which oneDNN gets wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from degrid.acceleration.training import filter_gradient

BLOCK = 16
"""oneDNN (3.13) is right where one group's channels, of input and output, are a multiple of this."""

_lock = threading.Lock()
_users = 0
_library: torch.library.Library | None = None


@contextmanager
def right_gradients() -> Iterator[None]:
    """Compute the gradients of dilated filters in bfloat16 on the CPU in float32, in every thread, inside the context.

    oneDNN 3.13 reads memory that nobody wrote where maps have their channels last and are at least 32 pixels wide: all
    numbers are wrong, or not finite. For depthwise filters ours also takes less time. Outputs, gradients of inputs and
    everything else stay PyTorch's. Compiled networks (`torch.compile`) call the same operation.
    """
    global _users, _library
    with _lock:
        _users += 1
        if _library is None:
            _library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
            _library.impl("convolution_backward", _Backward(), "CPU")  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0 and _library is not None:
                _library._destroy()  # type: ignore[no-untyped-call]
                _library = None


class _Backward:
    """PyTorch's operation aten::convolution_backward, with the right gradient of the filter."""

    __name__ = "convolution_backward"

    def __init__(self) -> None:
        # Looked up before ours takes its place.
        self._kernel: Any = torch.library.get_kernel(torch.ops.aten.convolution_backward.default, "CPU")
        self._keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def __call__(self, grad: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
        """As the operation: the gradients of x, weight and bias, those that are wanted."""
        *geometry, wanted = others
        _, stride, padding, dilation, transposed, _, groups = geometry
        if not (wanted[1] and _is_wrong(x, weight, dilation, groups)):
            found: tuple[Tensor | None, ...] = self._kernel.call_boxed(self._keys, grad, x, weight, *geometry, wanted)
            return found
        of_x, of_bias = None, None
        if wanted[0] or wanted[2]:
            rest = wanted[0], False, wanted[2]
            of_x, _, of_bias = self._kernel.call_boxed(self._keys, grad, x, weight, *geometry, rest)
        exact = grad.float(), x.float(), weight.float()
        of_weight = None if transposed else filter_gradient(*exact, stride, padding, dilation, groups)
        if of_weight is None:
            of_weight = self._kernel.call_boxed(self._keys, *exact, *geometry, (False, True, False))[1]
        return of_x, of_weight.to(weight.dtype), of_bias


def _is_wrong(x: Tensor, weight: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Whether the library's gradient of the filter may be wrong."""
    if x.dtype != torch.bfloat16 or x.ndim != 4 or max(dilation) == 1:
        return False
    return groups > 1 or weight.shape[0] % BLOCK != 0 or weight.shape[1] % BLOCK != 0
