"""Arrays by name from .npz archives and from .npy files that hold a dictionary."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from degrid.checkpoints.readers.archives import unpacked
from degrid.checkpoints.readers.pickles import read_pickle
from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.values import NUMBERS, native, ordered, raw_values
from degrid.protobuf import Span
from degrid.types import ConversionError

NPY_MAGIC = b"\x93NUMPY"
"""The first bytes of an .npy file."""

_MAX_HEADER = 1 << 16
_UNNAMED = re.compile(r"arr_\d+")


class Numpy(Reader):
    """An archive of arrays (numpy.savez), or a dictionary of them in one file (numpy.save)."""

    suffixes = (".npz", ".npy")

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        return bytes(file.data[: len(NPY_MAGIC)]).startswith((NPY_MAGIC, b"PK"))

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        tensors, skipped = read_npz(file) if bytes(file.data[:2]) == b"PK" else _read_array(file, "")
        return Contents(tensors, tuple(skipped))


def read_npz(file: Span) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an archive by name, and the names of members that hold no numbers.

    A member that holds a dictionary is flattened: its entries follow its name and a slash.

    Raises:
        ConversionError: no archive, damaged, or made to unpack to far more than its size.
    """
    tensors: dict[str, np.ndarray] = {}
    skipped: list[str] = []
    members = unpacked(file)
    alone = list(members) == ["arr_0.npy"]  # of numpy.savez(FILE, dictionary)
    for member, content in members.items():
        found, other = _read_array(content, "" if alone else member.removesuffix(".npy"))
        tensors |= found
        skipped += other
    if tensors and all(_UNNAMED.fullmatch(name) for name in tensors):
        raise ConversionError(
            f"{file.file}: {len(tensors)} arrays without names; expected them by name: numpy.savez(FILE, **arrays)"
        )
    return tensors, skipped


def _read_array(file: Span, name: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """An array under `name`; a dictionary under the names of its entries."""
    descr, fortran, shape, body = _header(file)
    if descr == "|O":
        tensors, skipped = read_pickle(body)
        start = f"{name}/" if name else ""
        return {start + key: value for key, value in tensors.items()}, [start + key for key in skipped]
    if not name:
        raise ConversionError(
            f"{file.file}: one array without a name; expected a dictionary of arrays by name: "
            "numpy.savez(FILE, **arrays)"
        )
    if not NUMBERS.fullmatch(descr):
        return {}, [name]
    return {name: native(ordered(raw_values(body.data, descr, body, name), shape, fortran, body, name))}, []


def _header(file: Span) -> tuple[str, bool, tuple[int, ...], Span]:
    """Type ("" where it is structured), order and shape that an .npy file states, and the bytes that follow.

    Format: `numpy/lib/format.py`. The header is Python's text of a dictionary, always written in the same way.
    """
    if bytes(file.data[: len(NPY_MAGIC)]) != NPY_MAGIC:
        file.fail("no array of numpy begins here")
    width = 2 if file.part(6, 1).number() == 1 else 4
    length = file.part(8, width).number()
    header = bytes(file.part(8 + width, length, "a header").data[:_MAX_HEADER]).decode("latin1")
    order = re.search(r"'fortran_order': *(True|False)", header)
    shape = re.search(r"'shape': *\(([0-9L, ]*)\)", header)  # Python 2 may write 3L
    if order is None or shape is None:
        file.fail("the header of an array of numpy is damaged", 8 + width)
    descr = re.search(r"'descr': *'([^']*)'", header)
    sizes = tuple(int(size) for size in re.findall(r"[0-9]{1,20}", shape[1]))
    start = 8 + width + length
    return descr[1] if descr else "", order[1] == "True", sizes, file.part(start, len(file) - start)
