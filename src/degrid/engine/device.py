"""Device, its free memory, and the number format of the arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from degrid.engine.memory import available_to_process, resident_bytes
from degrid.types import PRECISIONS, UserError


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
        raise UserError(f'unknown precision "{precision}"; known: {", ".join(PRECISIONS)}')
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
