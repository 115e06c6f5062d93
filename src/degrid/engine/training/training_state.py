"""Training states on disk: written atomically, and read without running code from the file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from degrid.files import atomic_write
from degrid.types import UserError

FORMAT = "degrid training state 1"


def save_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a training state; an earlier file stays until the new one is complete.

    Raises:
        UserError: the disk is full, or the path cannot be written to.
    """
    with atomic_write(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        UserError: the file is missing, cut short or not a training state, or loading it would run code.
    """
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"refused to load {path}: it holds more than tensors and plain values, and loading it could run code"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"cannot read the checkpoint {path}: it is damaged or not a checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not a training state of degrid; expected the last.ckpt of a run folder")
    return state
