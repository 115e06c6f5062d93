"""The seam for files: a reader says which files are of its kind, and extracts their tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degrid.protobuf import Span


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        tensors: by name, in the layout and type of the file (bfloat16 becomes float32). They may be read-only,
            unaligned views of the mapped file: copy them before writing to them, and leave the file alone while they
            live.
        skipped: names of entries that hold no numbers, such as text, or numbers of a type that numpy lacks.
        settings: what the program says of its network, in the file itself: plain text, numbers, lists, dictionaries.
    """

    tensors: dict[str, np.ndarray]
    skipped: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """A kind of file. Derive a class, and add a row to `files.READERS` or name it "module:Class".

    Attributes:
        suffixes: endings that such files usually have, to find one in a folder.
    """

    suffixes: tuple[str, ...] = ()

    @abstractmethod
    def recognise(self, file: Span, path: Path) -> bool:
        """Whether the file is of this kind; its bytes should tell, not its name."""

    @abstractmethod
    def read(self, file: Span, path: Path) -> Contents:
        """The tensors of a file of this kind.

        Args:
            file: the mapped file.
            path: where it is; parts of a checkpoint in several files lie beside it.
        Raises:
            ConversionError: damaged, or it could run code when loaded.
        """
