"""How many threads to compute with. Imports no torch."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def num_threads() -> int:
    """As many as PyTorch uses; where it is not loaded, OMP_NUM_THREADS, or one for each core that may be used."""
    if torch := sys.modules.get("torch"):
        return int(torch.get_num_threads())
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else usable_cores()
