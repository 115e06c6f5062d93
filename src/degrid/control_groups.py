"""What Linux's control groups, of which containers are made, let this process have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def cores_of_groups(root: Path = Path("/")) -> Iterator[float]:
    """The seconds of processor time that each control group which limits them may use in a second.

    Args:
        root: where proc and sys are.
    """
    for group, version in _groups("cpu", root):
        names = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, _, period = " ".join(text_of(group / name).strip() for name in names).partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):  # else "max", -1 or no such file
            yield int(quota) / int(period)


def memory_of_groups(root: Path = Path("/")) -> Iterator[int]:
    """What each control group with a limit leaves of it, in bytes; see `cores_of_groups`."""
    for group, version in _groups("memory", root):
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (text_of(group / name).strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            yield int(limit) - int(used) + fields_of(group / "memory.stat").get("inactive_file", 0)


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of the groups that this process is in, up to the top of each tree, and their version, 1 or 2."""
    base = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        # In a container the path may be that of the host, where only the top of the tree is seen.
        place = top / path.lstrip("/")
        for group in {place, *place.parents, top}:
            if group.is_relative_to(top):
                yield group, 1 if controllers else 2


def fields_of(file: Path) -> dict[str, int]:
    """The first two words of each line, a name and a number."""
    words = (line.split() for line in text_of(file).splitlines())
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}


def text_of(file: Path) -> str:
    """A file of the system; empty where it is not there."""
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""
