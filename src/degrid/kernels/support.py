"""What this machine has: compiled kernels, threads, matrix units."""

from __future__ import annotations

import functools
import logging


@functools.cache
def numba_installed() -> bool:
    """Whether numba can be imported; if not, one line on standard error says so, once."""
    try:
        import numba  # noqa: F401
    except ImportError:
        logging.getLogger("degrid").warning(
            "numba is not installed: slower PyTorch code with the same results runs instead (pip install degrid[fast])"
        )
        return False
    return True


def use_torch_threads() -> None:
    """Let compiled kernels use as many threads as PyTorch does."""
    import numba
    import torch

    wanted = torch.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(wanted, most))
    # Numba starts its threads at the first call, and tells OpenMP, which PyTorch shares, how many there are to be.
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def has_matrix_units() -> bool:
    """Whether the processor multiplies matrices of bfloat16 as such (AMX), and PyTorch uses it."""
    import torch

    ask = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private: may go
    return ask is not None and bool(ask())
