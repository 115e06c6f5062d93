"""Arrays of numbers in files of NumPy and MATLAB."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from degrid.types import UserError

ARRAY_SUFFIXES = frozenset({".npy", ".npz", ".mat"})
"""Endings of the files that `read_array` reads, in lower case."""


class UnusableMaskError(UserError):
    """A sound file that does not hold class ids."""


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file, or the only one of two dimensions or more in a .npz or .mat file (version 5 to 7).

    Returns:
        Whole numbers, floats or truth values.
    Raises:
        UserError: missing or damaged; not one array of numbers; scipy, which reads .mat, is not installed.
    """
    try:
        values = _READ[path.suffix.lower()](path)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except Exception as error:  # which errors the libraries raise for meaningless bytes is not documented
        if "pickle" not in str(error):
            raise UserError(f"{path} is damaged or cut short: {error}") from error
        raise UnusableMaskError(  # pickled objects may run any code
            f"{path} holds Python objects, or no array at all; expected an array of class ids [H,W]: save it with "
            "numpy.save"
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise UnusableMaskError(f"{path} holds {getattr(values, 'dtype', 'several arrays')}; expected class ids [H,W]")
    return values


def read_matlab(path: Path) -> dict[str, Any]:
    """The variables in a .mat file of version 5 to 7.

    Raises:
        UserError: missing or damaged, or of version 7.3; scipy, which reads them, is not installed.
    """
    try:
        load = importlib.import_module("scipy.io").loadmat
    except ImportError as error:
        raise UserError(f"{path} is a file of MATLAB, which is read with scipy: pip install scipy") from error
    try:
        return {name: value for name, value in load(path).items() if not name.startswith("__")}
    except NotImplementedError as error:
        raise UnusableMaskError(f"{path} is of MATLAB's version 7.3; save it with -v7, or the ids as PNG") from error
    except FileNotFoundError as error:
        raise UserError(f"no such image: {path}") from error
    except Exception as error:  # which errors the library raises for meaningless bytes is not documented
        raise UserError(f"{path} is damaged or cut short: {error}") from error


def _archive(path: Path) -> Any:
    with path.open("rb") as stream:  # given a path, NumPy leaves a damaged file open
        found = np.load(stream, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else _only_array(path, dict(found))


def _only_array(path: Path, variables: Mapping[str, Any]) -> Any:
    arrays = [each for each in variables.values() if each.ndim > 1 and each.size > 1 and each.dtype.kind in "biuf"]
    if len(arrays) != 1:
        shown = ", ".join(f"{name} {list(value.shape)}" for name, value in variables.items()) or "nothing"
        raise UnusableMaskError(f"{path} holds {shown}; expected one array of class ids [H,W]: save it by itself")
    return arrays[0]


_READ: dict[str, Callable[[Path], Any]] = {
    ".npy": lambda path: np.load(path, allow_pickle=False),
    ".npz": _archive,
    ".mat": lambda path: _only_array(path, read_matlab(path)),
}
