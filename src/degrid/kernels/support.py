"""Whether compiled kernels can be used here, with how many threads, and beside which hardware."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from degrid.threads import num_threads, start_of_processes_left_open

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@functools.cache
def can_import_numba() -> bool:
    """Whether numba is installed and can be imported: it refuses a numpy that is too new for it."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def numba_installed() -> bool:
    """Whether compiled kernels can run in this process; if not, one line on standard error says so, once.

    The threads that they share do not live on in a forked process, which GNU's OpenMP would end at the first kernel.
    """
    if not can_import_numba():
        _say_once(
            "numba is not installed: slower PyTorch code with the same results runs instead (pip install degrid[fast])"
        )
        return False
    if _began_in not in (None, os.getpid()):
        _say_once(
            "a process that was forked after compiled code had run cannot use it: slower PyTorch code with the same "
            'results runs instead (multiprocessing.get_context("spawn") starts processes that can)'
        )
        return False
    return True


_began_in: int | None = None
"""The process in which the threads of compiled kernels were started."""


@functools.cache
def _say_once(words: str) -> None:
    logging.getLogger("degrid").warning(words)


def code_bytes() -> int:
    """Roughly the bytes that compiled kernels take when the first one runs: numba, LLVM, and what they keep."""
    return 0 if "numba" in sys.modules or not importlib.util.find_spec("numba") else 160 << 20


def use_torch_threads() -> None:
    """Let compiled kernels use as many threads as PyTorch may, loaded or not; see `num_threads`."""
    global _began_in
    import numba

    _began_in = os.getpid()
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    with start_of_processes_left_open():
        numba.set_num_threads(min(num_threads(), most))
    # At its first call numba starts its threads and sets how many OpenMP uses, which PyTorch shares.
    if torch and torch.get_num_threads() != before:
        torch.set_num_threads(before)


def has_matrix_units() -> bool:
    """Whether the processor has units that multiply matrices of bfloat16 (AMX), and PyTorch uses them."""
    import torch

    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private, so it may disappear
    return ask is not None and bool(ask())


@functools.cache
def multiplies_fast() -> bool:
    """Whether PyTorch's matrix products in float32 are as fast as the processor.

    They are MKL's, which is on Intel's processors, and reached half of that on an AMD EPYC.
    """
    import torch

    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    words = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    return torch._C.has_mkl and "GenuineIntel" in words


def traced(*tensors: Tensor) -> bool:
    """Whether something must see PyTorch's own operations: a compiler, an exporter, torch.func or forward-mode
    differentiation."""
    import torch
    from torch.autograd import forward_ad

    if torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]


def channels_last(x: Tensor) -> np.ndarray:
    """Values [N,C,H,W] as a float32 array [N,H,W,C], in x's own memory if it is in that order already."""
    pixels: np.ndarray = x.detach().permute(0, 2, 3, 1).contiguous().float().numpy()
    return pixels
