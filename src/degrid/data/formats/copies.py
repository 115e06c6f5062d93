"""Images that are in two splits: the same file, or a copy of it under another name."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from degrid.data.formats.layout import Layout
from degrid.data.formats.source import LazySources, Source
from degrid.types import UserError

_MOST_READ = 2000
"""Images that are no files can only be compared by reading all of them: this many at most."""
_FEW = 20
"""Images that are compared with their masks."""
_PROBES, _PROBE = 3, 1024
"""Places in a file, and bytes there, that are read before it is read as a whole."""


class Overlap(NamedTuple):
    """Images of a split that are trained on: how many of how many, the first of them, and what it is a copy of."""

    split: str
    both: int
    images: int
    first: str
    same_as: str


def overlaps(layout: Layout) -> list[Overlap]:
    """The images of val and test that are in train, too; pictures of one colour do not count.

    Splits that are listed only when they are needed are passed over.
    """
    splits = {
        split: sources
        for split, sources in layout.splits.items()
        if split in ("train", "val", "test") and not isinstance(sources, LazySources)
    }
    learnt = splits.pop("train", [])
    if len(learnt) < 2:  # the only image is everything
        return []
    lengths = _lengths([*learnt, *(source for sources in splits.values() for source in sources)])
    known = _Images(learnt, lengths)
    found = []
    for split, sources in splits.items():
        copies = [(source, same) for source in sources if (same := known.copy_of(source))]
        if copies:
            first, same_as = min((source.places()[0], same.places()[0]) for source, same in copies)
            found.append(Overlap(split, len(copies), len(sources), first, same_as))
    return found


def _lengths(sources: Sequence[Source]) -> Mapping[int, int]:
    """The bytes of each image by the id of its source; 0 for images that are no files of their own, -1: do not read."""
    lengths = {id(source): source.image_length() for source in sources}
    if Counter(lengths.values())[0] > _MOST_READ:
        return {key: length or -1 for key, length in lengths.items()}
    return lengths


def copied_masks(sources: Sequence[Source]) -> str:
    """The first image where all of the first ones are the very files of their masks; empty where one is not."""
    first = [source for source in sources[:_FEW] if source.places()[1]]
    for source in first:
        image, mask = map(Path, source.places())
        with contextlib.suppress(OSError, ValueError):
            if image.stat().st_size == mask.stat().st_size and image.read_bytes() == mask.read_bytes():
                continue
        return ""
    return first[0].places()[0] if first and first[0].image_length() else ""


class _Images:
    """Images among which copies of others are looked for; files are read only as far as they are alike."""

    def __init__(self, sources: Sequence[Source], lengths: Mapping[int, int]) -> None:
        self._lengths = lengths
        # What is called by its name alone is no file, and may be another image in another split.
        self._by_place = {place: source for source in sources if (place := source.places()[0]) != source.name}
        self._by_length: dict[int, list[Source]] = {}
        for source in sources:
            self._by_length.setdefault(lengths[id(source)], []).append(source)
        self._probes: dict[int, dict[bytes, list[Source]]] = {}
        self._digests: dict[int, bytes] = {}

    def copy_of(self, source: Source) -> Source | None:
        """The first image that is the same; None where there is none."""
        if same := self._by_place.get(source.places()[0]):
            return same
        length = self._lengths[id(source)]
        if length < 0 or length not in self._by_length:
            return None
        if length not in self._probes:
            probes = self._probes.setdefault(length, {})
            for other in self._by_length[length]:
                probes.setdefault(_probe(other, length), []).append(other)
        for other in self._probes[length].get(_probe(source, length), []):
            digest = self._digest(source)
            if digest and digest == self._digest(other):
                return other
        return None

    def _digest(self, source: Source) -> bytes:
        """Of the whole image; nothing for one that cannot be read, or is of one colour and might come twice."""
        if id(source) not in self._digests:
            digest = b""
            with contextlib.suppress(UserError, OSError):
                pixels = source.read_values()
                if (pixels != pixels[:1, :1]).any():
                    digest = hashlib.sha256(source.image_file() or pixels.tobytes()).digest()
            self._digests[id(source)] = digest
        return self._digests[id(source)]


def _probe(source: Source, length: int) -> bytes:
    """Some bytes of a file; none of what is no file."""
    if not length:
        return b""
    parts = []
    with contextlib.suppress(OSError), Path(source.places()[0]).open("rb") as stream:
        for part in range(1, _PROBES + 1):
            stream.seek(max(0, length * part // (_PROBES + 1) - _PROBE // 2))
            parts.append(stream.read(_PROBE))
    return b"".join(parts)
