"""Images that are in two splits: the same file, or a copy under another name, recompressed, or altered."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from degrid.data.formats.layout import Layout
from degrid.data.formats.lookalikes import Looks, is_same_picture, look_of
from degrid.data.formats.matching import folded
from degrid.data.formats.photographs import photographs
from degrid.data.formats.source import LazySources, Source
from degrid.image import image_size, read_jpeg
from degrid.lookup import grouped
from degrid.types import UserError

_MOST_READ = 2000
"""Images that are not files can only be compared by reading them all: at most this many."""
_FEW = 20
"""Images that are compared with their masks."""
_PROBES, _PROBE = 3, 1024
"""Places in a file, and bytes there, that are read before it is read as a whole."""
_MOST_BYTES = 64 << 20
"""Most bytes of image files that are read to see how all of them look, where the caller has not seen them."""
_MOST_NAMES = 16
"""Images that are compared with those of the same name if there are more bytes than that."""


class Overlap(NamedTuple):
    """How many images of a split are also trained on, the first of them, and the image that it is a copy of.

    changed: how that copy differs; empty where its bytes are the same.
    """

    split: str
    both: int
    images: int
    first: str
    same_as: str
    changed: str = ""


_COMPRESSED = "stored in another format or compressed once more"
_TURNED = "turned or mirrored"
_NAMED = "changed, as the names say"
_Found = dict[int, tuple[str, Source]]
"""How copies differ from their originals, and the originals, by the copies' indices."""
Seen = Mapping[str, Sequence[bytes]]
"""How each image of each split looks (`lookalikes.look_of`)."""


def overlaps(layout: Layout, seen: Seen | None = None) -> list[Overlap]:
    """The images of val and test that are in train, too; pictures of one colour do not count.

    Splits that are listed only when they are needed are passed over. Copies of other bytes are searched for among all
    images that were seen, or that are files of `_MOST_BYTES` at most; or else among some that have the same name.
    """
    splits = {
        split: sources
        for split, sources in layout.splits.items()
        if split in ("train", "val", "test") and not isinstance(sources, LazySources)
    }
    learnt = splits.pop("train", [])
    if len(learnt) < 2:  # the last part would be the only image
        return []
    lengths = _lengths([*learnt, *(source for sources in splits.values() for source in sources)])
    known = _Images(learnt, lengths)
    seen = seen or _seen({"train": learnt, **splits}, lengths.values())
    looks = [(turned, Looks(learnt, seen.get("train", ()), turned)) for turned in (False, True) if seen]
    found = []
    for split, sources in splits.items():
        copies: _Found = {k: ("", copy) for k, source in enumerate(sources) if (copy := known.copy_of(source))}
        for turned, alike in looks:
            copies |= _anew(sources, _like(alike, seen[split], _left(sources, copies)), turned)
        if not looks:
            copies |= _anew(sources, _named_alike(learnt, _left(sources, copies)))
        found += _overlap(split, sources, _named_after(learnt, sources) | copies)
    return found


def _left(sources: Sequence[Source], copies: _Found) -> list[tuple[int, Source]]:
    return [(index, source) for index, source in enumerate(sources) if index not in copies]


def _seen(splits: Mapping[str, Sequence[Source]], lengths: Collection[int]) -> Seen:
    """How the images look; empty if they are not files, too many bytes, or all in one split."""
    if len(splits) < 2 or min(lengths) <= 0 or sum(lengths) > _MOST_BYTES:
        return {}
    return {split: [_look(source) for source in sources] for split, sources in splits.items()}


def _look(source: Source) -> bytes:
    """How an image looks, within its own range where it has more than 8 bits; nothing for one that cannot be read."""
    with contextlib.suppress(UserError, OSError):
        luma = read_jpeg(source.places()[0], luma=True)
        if luma is not None or source.is_plain():
            return look_of(source.read_image() if luma is None else luma)
        values = source.read_values().astype(np.float32)
        finite = np.isfinite(values)
        low, high = (float(find(values, where=finite, initial=0)) for find in (np.min, np.max))
        return look_of((np.where(finite, values, low) - low) * (255 / max(high - low, 1e-30)))
    return b""


def _overlap(split: str, sources: Sequence[Source], copies: _Found) -> list[Overlap]:
    """The sentence about one split; empty if there are no copies."""
    if not copies:
        return []
    said = ((changed, sources[index].places()[0], copy.places()[0]) for index, (changed, copy) in copies.items())
    changed, first, same_as = min(said)
    return [Overlap(split, len(copies), len(sources), first, same_as, changed)]


def _named_after(learnt: Sequence[Source], sources: Sequence[Source]) -> _Found:
    """Changed copies of images to train on, or what such copies were made of, by their names."""
    ours, others = [source.name for source in sources], [source.name for source in learnt]
    if not {*ours}.isdisjoint(others):  # the same name in two splits may mean two images
        ours, others = [f"held out/{name}" for name in ours], [f"learnt/{name}" for name in others]
    made_of = photographs([*others, *ours])
    by_origin = dict(zip(made_of[: len(learnt)][::-1], learnt[::-1], strict=True))
    return {k: (_NAMED, by_origin[name]) for k, name in enumerate(made_of[len(learnt) :]) if name in by_origin}


def _like(
    looks: Looks, seen: Sequence[bytes], left: Iterable[tuple[int, Source]]
) -> Iterator[tuple[int, Iterable[Source]]]:
    return ((index, looks.like(seen[index])) for index, _ in left)


def _anew(sources: Sequence[Source], likely: Iterable[tuple[int, Iterable[Source]]], turned: bool = False) -> _Found:
    """The copies of images among the likely candidates."""
    how = _TURNED if turned else _COMPRESSED
    same = (
        (index, (other for other in others if is_same_picture(sources[index], other, turned)))
        for index, others in likely
    )
    return {index: (how, copy) for index, copies in same if (copy := next(copies, None))}


def _named_alike(
    learnt: Sequence[Source], left: Iterable[tuple[int, Source]]
) -> Iterator[tuple[int, Iterable[Source]]]:
    """Some of the image files that have others of the same name and size among those to train on, and these."""
    by_name = grouped((_called(source), source) for source in learnt)
    by_name.pop("", None)
    named = [(index, source, by_name[name]) for index, source in left if (name := _called(source)) in by_name]
    for index, source, others in named[:: math.ceil(len(named) / _MOST_NAMES) or 1]:
        with contextlib.suppress(UserError):
            size = image_size(source.places()[0])
            yield index, [other for other in others[:_FEW] if image_size(other.places()[0]) == size]


def _called(source: Source) -> str:
    """The name of an image's file without folder and suffix; nothing for an image without a file of its own."""
    return folded(Path(source.places()[0]).stem) if source.image_length() else ""


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
    """Images searched for copies of others; files are read only as far as they are equal."""

    def __init__(self, sources: Sequence[Source], lengths: Mapping[int, int]) -> None:
        self._lengths = lengths
        # A name without a path is not a file, and may be another image in another split.
        self._by_place = {place: source for source in sources if (place := source.places()[0]) != source.name}
        self._by_length = grouped((lengths[id(source)], source) for source in sources)
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
            self._probes[length] = grouped((_probe(other, length), other) for other in self._by_length[length])
        for other in self._probes[length].get(_probe(source, length), []):
            digest = self._digest(source)
            if digest and digest == self._digest(other):
                return other
        return None

    def _digest(self, source: Source) -> bytes:
        """The hash of the whole image; empty for one that cannot be read, or is of one colour and may occur twice."""
        if id(source) not in self._digests:
            digest = b""
            with contextlib.suppress(UserError, OSError):
                pixels = source.read_values()
                if (pixels != pixels[:1, :1]).any():
                    digest = hashlib.sha256(source.image_file() or pixels.tobytes()).digest()
            self._digests[id(source)] = digest
        return self._digests[id(source)]


def _probe(source: Source, length: int) -> bytes:
    """Some bytes of a file; empty if it is not a file."""
    if not length:
        return b""
    parts = []
    with contextlib.suppress(OSError), Path(source.places()[0]).open("rb") as stream:
        for part in range(1, _PROBES + 1):
            stream.seek(max(0, length * part // (_PROBES + 1) - _PROBE // 2))
            parts.append(stream.read(_PROBE))
    return b"".join(parts)
