"""How much memory a call needs: saved activations, counted exactly, and the peak of the process, sampled."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from degrid.types import UserError

MIB = 2**20
_STATM = Path("/proc/self/statm")


def saved_activations(
    run: Callable[[], object], model: nn.Module | None = None, checkpointed: Iterable[nn.Module] = ()
) -> int:
    """Bytes that autograd keeps for the backward pass while `run` runs, counting each storage once.

    The input counts, and so do copies of weights in another type; parameters and the model's buffers do not.

    Args:
        model: whose parameters and buffers are left out; nn.Parameters of other modules are left out as well.
        checkpointed: modules whose inputs count too, since they keep them by other means than autograd's saved
            tensors, as activation checkpointing does.
    """
    own = [] if model is None else [*model.parameters(), *model.buffers()]
    left_out = {tensor.untyped_storage().data_ptr() for tensor in own}
    seen: dict[int, torch.UntypedStorage] = {}  # holds them, so that no address is used twice in the meantime

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter) and storage.data_ptr() not in left_out:
            seen[storage.data_ptr()] = storage
        return tensor

    def keep_inputs(module: nn.Module, inputs: tuple[object, ...]) -> None:
        for each in inputs:
            if isinstance(each, Tensor):
                pack(each)

    hooks = [module.register_forward_pre_hook(keep_inputs) for module in checkpointed]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(storage.nbytes() for storage in seen.values())


def can_sample_memory() -> bool:
    """Whether this system reports how much memory the process holds; only Linux does, in /proc."""
    return _STATM.exists()


def peak_memory(run: Callable[[], object], every: float = 0.001) -> float:
    """Peak increase of resident memory during `run`, in MiB; at least one page.

    Sampled by a thread every `every` seconds: a shorter peak may be missed. Memory that the C library keeps after it
    was freed is given back first, where possible; the result of `run` is held until the last sample.

    Raises:
        UserError: the system does not report it; see `can_sample_memory`.
    """
    if not can_sample_memory():
        raise UserError(f"peak memory is read from {_STATM}, which only Linux has; leave the memory measurements out")
    _give_back()
    before = peak = _resident()
    stop = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(every):
            peak = max(peak, _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        held = run()
        last = _resident()
        del held
    finally:
        stop.set()
        thread.join()
    return max(peak, last, before + 1) * _page() - before * _page()


def _resident() -> int:
    """Pages of this process in memory."""
    return int(_STATM.read_bytes().split()[1])


def _page() -> float:
    """Size of a page in MiB."""
    return os.sysconf("SC_PAGE_SIZE") / MIB


def _give_back() -> None:
    """Return freed memory to the system, where the C library has a function for it (glibc)."""
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
