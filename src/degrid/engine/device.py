"""Device, its free memory, and the number format of the arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from degrid.types import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


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


def available_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Memory that a device can still give, in bytes.

    Of a GPU: what is free, and what PyTorch holds but does not use. Of the CPU: what the system can give without
    swapping, of which files that it keeps in memory are a part; within the limits of the process's control groups.

    Args:
        root: where proc and sys are.
    """
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    found = [value for value in (_available_of_system(root), *_available_of_groups(root)) if value is not None]
    return max(0, min(found, default=4 << 30))


def _available_of_system(root: Path) -> int | None:
    """Linux's own estimate, in bytes; elsewhere the pages that nothing uses."""
    available = _fields(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        return 1024 * available
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system has these
        return None


def _available_of_groups(root: Path) -> Iterator[int]:
    """What each control group of this process, version 2 or 1, leaves of its limit, in bytes."""
    base = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current") if not controllers else _NAMES_OF_VERSION_1
        place = base / controllers / path.lstrip("/")
        # In a container the path may be that of the host, where only the top of the tree is seen.
        for group in {place, *place.parents, base / controllers}:
            limit, used = (_text(group / name).strip() for name in names)
            if group.is_relative_to(base) and limit.isdecimal() and used.isdecimal():
                yield int(limit) - int(used) + _fields(group / "memory.stat").get("inactive_file", 0)


_NAMES_OF_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def _fields(file: Path) -> dict[str, int]:
    """The first two words of each line, a name and a number."""
    words = (line.split() for line in _text(file).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def _text(file: Path) -> str:
    """A file of the system; empty where it is not there."""
    try:
        return file.read_text()
    except OSError:
        return ""


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
