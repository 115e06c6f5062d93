"""Device, its free memory, and the number format of the arithmetic."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from degrid.engine.memory import available_to_process, resident_bytes
from degrid.lookup import unknown
from degrid.types import PRECISIONS, Batch, UserError


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        UserError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f'unknown device "{name}"; expected auto, cpu, cuda or cuda:1') from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UserError(
            f'device "{name}": this machine has {torch.cuda.device_count()} usable GPUs; try --device cpu (device=...)'
        )
    return device


def read_later(values: Tensor) -> Callable[[], tuple[float, ...]]:
    """Begin to fetch numbers from a device; the function that is returned waits for them, and for nothing after."""
    if values.device.type != "cuda":
        return lambda: tuple(values.tolist())
    fetched = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    fetched.copy_(values, non_blocking=True)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record()

    def read() -> tuple[float, ...]:
        there.synchronize()
        return tuple(fetched.tolist())

    return read


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches; on a GPU, the next one is copied there while the network computes on the one before."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            image = batch.image.pin_memory().to(device, memory_format=torch.channels_last, non_blocking=True)
            label = batch.label.pin_memory().to(device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(stream)
        if waiting:
            yield waiting
        network = torch.cuda.current_stream(device)
        network.wait_event(copied)
        for tensor in (image, label):  # allocated on one stream, used on another
            tensor.record_stream(network)
        waiting = Batch(image, label, batch.names)


@contextmanager
def arithmetic(device: torch.device, deterministic: bool) -> Iterator[None]:
    """How PyTorch picks algorithms meanwhile: the fastest for each size, or those that give the same bits each time."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS raises an error
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic
    torch.use_deterministic_algorithms(deterministic or before[1])
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def to_channels_last(model: nn.Module) -> None:
    """Store 4-D weights with the channels last, in place; `nn.Module.to` fails where others have five, as of Conv3d."""
    apply: Any = model._apply
    apply(lambda tensor: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor)


def available_bytes(device: torch.device) -> int:
    """Memory that a device can still give, in bytes.

    Of a GPU: what is free, and what PyTorch holds but does not use. Of the CPU: see `available_to_process`.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    return available_to_process()


def used_bytes(device: torch.device) -> int:
    """Memory that this process takes now, in bytes: on a GPU its tensors there, else see `resident_bytes`."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else resident_bytes()


def resolved_precision(device: torch.device, precision: str) -> str:
    """ "bfloat16" or "float32".

    "auto" is bfloat16 if the hardware can multiply in it, which makes training 2 to 3 times faster: recent GPUs, and
    CPUs with AVX-512 BF16 or AMX; else float32.

    Raises:
        UserError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if precision == "auto":
        return "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return precision


def autocast(device: torch.device, precision: str = "float32") -> torch.autocast:
    """A context in which convolutions run in bfloat16 if `precision` resolves to it; see `resolved_precision`."""
    enabled = resolved_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # These names are private to PyTorch and may disappear; float32 is used then.
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(check is not None and check() for check in checks)
