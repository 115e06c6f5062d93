"""The runtimes' own packages, which are extras."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from degrid.types import UserError


def library(name: str) -> Any:
    """A package of an extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{name.split('.')[0]} is not installed; pip install degrid[export]") from error


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's runtime: one for the whole process, which is never taken down.

    Each takes over the stack on which the process handles signals and gives it back when it ends. Of two that end in
    the order in which they began, the second gives back memory that is free already, and the next signal breaks the
    process (OpenVINO 2026.4).

    Raises:
        UserError: it is not installed.
    """
    return library("openvino").Core()
