"""What a run.json holds beside the settings: how to understand and repeat the run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from degrid import config as configs
from degrid.config import RunConfig
from degrid.version import VERSION


def provenance(config: RunConfig, notes: list[str]) -> dict[str, Any]:
    """The contents of run.json.

    Args:
        config: the run's settings.
        notes: what was decided for the user, such as how the images were split.
    """
    return {
        "config": configs.to_dict(config),
        "notes": notes,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "degrid": VERSION,
            "git": _git_hash(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def _git_hash() -> str | None:
    """Commit of the source tree that this package runs from, with "+" for uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside another project's repository: only a tracked file counts.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")
