"""The runtimes' own packages, which are extras."""

from __future__ import annotations

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
