"""Where and in which number format the arithmetic runs."""

from __future__ import annotations

import torch

from degrid.types import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def pick_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is a GPU where there is one.

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
        raise UserError(f'device "{name}": this machine has {torch.cuda.device_count()} usable GPUs; try --device cpu')
    return device


def resolved_precision(device: torch.device, precision: str) -> str:
    """ "bfloat16" or "float32".

    "auto" is bfloat16 where the hardware multiplies in it: recent GPUs, and CPUs with AVX-512 BF16 or AMX, on which
    training is 2 to 3 times faster; float32 elsewhere.

    Raises:
        UserError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise UserError(f'unknown precision "{precision}"; known: {", ".join(PRECISIONS)}')
    if precision == "auto":
        return "bfloat16" if _multiplies_bfloat16(device) else "float32"
    return precision


def autocast(device: torch.device, precision: str = "float32") -> torch.autocast:
    """A context in which convolutions run in bfloat16 if `precision` says so; see `resolved_precision`."""
    enabled = resolved_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Private names, which may go: then float32 it is.
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return device.type == "cpu" and any(check is not None and check() for check in checks)
