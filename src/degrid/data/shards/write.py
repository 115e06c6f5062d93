"""Write any dataset as shards: tar files of WebDataset, or TFRecord files."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from degrid.data.dataset import SourceDataset, bands_in, read_with_ids
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.packed import npy, plain_kind, png
from degrid.data.formats.source import Source
from degrid.data.processes import in_order
from degrid.data.shards.index import LABEL, Member, Part, Shard, key_of, read_members, shard_name, write_members
from degrid.data.tfrecord.records import encode_example, framed
from degrid.files import atomic_write
from degrid.image import IMAGE_SUFFIXES
from degrid.types import RGB, Bands, Dataset, OnProgress, Progress, UserError

_BLOCK = 512
"""Everything in a tar file is padded to multiples of this many bytes."""


class Encoded(NamedTuple):
    """A sample as files: its name, the ending of its image, the image and the label, and their height and width."""

    name: str
    suffix: str
    image: bytes
    label: bytes
    size: tuple[int, int]


def write_split(
    dataset: Dataset,
    order: Sequence[int],
    folder: str,
    split: str,
    kind: str,
    size: int,
    progress: OnProgress | None = None,
) -> Iterator[Shard]:
    """Write a split as shards, each of which appears when it is complete; those that are there are not written again.

    JPEG and PNG files whose pixels every reader sees alike are copied, and so are all files of more than 8 bits or of
    other bands than three. Other images become PNG; labels are PNG files of train ids.

    Args:
        order: the indices of the samples.
        folder: where to write.
        kind: "tar" or "tfrecord".
        size: bytes of a shard; one more sample would make it larger, unless it holds one only.
        progress: told how many samples are written.
    Yields:
        Each shard.
    Raises:
        UserError: a sample cannot be read, has no place in TFRecord files, or the folder holds shards of other data.
    """
    names = _unique(dataset, order)
    number = done = 0
    while done < len(order):
        file = shard_name(split, number, kind)
        shard = _written_before(folder, file, names[done:])
        if shard is None:
            break
        yield shard
        number, done = number + 1, done + shard.samples
    samples = _Waiting(encoded(dataset, order[done:], kind), names[done:], split, done, progress)
    while samples.following:
        file = shard_name(split, number, kind)
        with atomic_write(Path(folder, file)) as temporary, temporary.open("wb") as stream:
            members = _write_shard(stream, samples, kind, size)
            length = stream.tell()
        write_members(folder, file, length, members)
        yield Shard(file, len(members), length)
        number += 1


def _unique(dataset: Dataset, order: Sequence[int]) -> list[str]:
    """The name of each sample in order; an image that occurs twice has ~2 added the second time."""
    sources = dataset.sources if isinstance(dataset, SourceDataset) else None
    seen: dict[str, int] = {}
    names = []
    for index in order:
        name = sources[index].name if sources else dataset[index].name
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}~{seen[name]}")
    return names


def _written_before(folder: str, file: str, names: Sequence[str]) -> Shard | None:
    """A shard that exists already; None if there is none."""
    place = Path(folder, file)
    if not (place.is_file() and place.with_name(f"{file}.json").is_file()):
        return None
    length, members = read_members(folder, file)
    if (
        not members
        or [member.name for member in members] != list(names[: len(members)])
        or place.stat().st_size != length
    ):
        raise UserError(f"{place} holds other images; choose another folder, or empty it")
    return Shard(file, len(members), length)


class _Waiting:
    """Samples that can be peeked at before they are taken."""

    def __init__(
        self, samples: Iterator[Encoded], names: Sequence[str], split: str, done: int, progress: OnProgress | None
    ) -> None:
        self._samples = (sample._replace(name=name) for sample, name in zip(samples, names, strict=True))
        self._split, self._done, self._total, self._progress = split, done, done + len(names), progress
        self.following = next(self._samples, None)

    def take(self) -> None:
        """Go on to the next one."""
        self._done += 1
        if self._progress:
            self._progress(Progress(f"writing {self._split}", self._done, self._total))
        self.following = next(self._samples, None)


def _write_shard(stream: BinaryIO, samples: _Waiting, kind: str, size: int) -> list[Member]:
    members: list[Member] = []
    pack = _tar_of if kind == "tar" else _record_of
    while sample := samples.following:
        data, image_at, label_at = pack(sample)
        start = stream.tell()
        if members and start + len(data) > size:
            break
        stream.write(data)
        parts = ((image_at, sample.image), (label_at, sample.label))
        image, label = (Part(start + at, len(part), zlib.crc32(part)) for at, part in parts)
        members.append(Member(sample.name, sample.suffix, image, label))
        samples.take()
    if kind == "tar":
        stream.write(bytes(2 * _BLOCK))
    return members


def _tar_of(sample: Encoded) -> tuple[bytes, int, int]:
    """A sample as a part of a tar file, and where in it image and label begin."""
    data, starts = bytearray(), []
    for ending, part in ((sample.suffix.removeprefix("."), sample.image), (LABEL, sample.label)):
        entry = tarfile.TarInfo(f"{key_of(sample.name)}.{ending}")
        entry.size, entry.mode = len(part), 0o644
        data += entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        starts.append(len(data))
        data += part + bytes(-len(part) % _BLOCK)
    return bytes(data), starts[0], starts[1]


def _record_of(sample: Encoded) -> tuple[bytes, int, int]:
    """A sample as a record of a TFRecord file, in the keys of DeepLabV3-Tensorflow; and where its files begin."""
    features: dict[str, int | bytes] = {
        "image/height": sample.size[0],
        "image/width": sample.size[1],
        "image/filename": os.fsencode(sample.name),
        "image/encoded": sample.image,
        "image/format": b"JPEG" if sample.suffix == ".jpg" else b"PNG",
        "image/segmentation/encoded": sample.label,
        "image/segmentation/format": b"PNG",
    }
    data = framed(encode_example(features))
    image_at = data.index(sample.image)
    return data, image_at, data.index(sample.label, image_at + len(sample.image))


def encoded(dataset: Dataset, order: Sequence[int], kind: str) -> Iterator[Encoded]:
    """Samples as files, in order; read and encoded by several processes.

    Raises:
        UserError: one cannot be read, or is no image of three channels for a TFRecord file.
    """
    bands = bands_in(dataset)
    if kind == "tfrecord" and bands != RGB:
        raise UserError(
            "TFRecord shards hold images of 3 channels of 8 bits, and these have more, or other ranges; write tar files"
        )
    if type(dataset) is SourceDataset:  # a subclass may change the image
        work = partial(_encode_source, rule=dataset.rule, bands=bands, kind=kind)
        yield from in_order(work, [dataset.sources[index] for index in order])
        return
    for index in order:
        sample = dataset[index]
        yield _encode(sample.name, sample.image.permute(1, 2, 0).numpy(), sample.label.numpy())


def _encode_source(source: Source, rule: MaskRule, bands: Bands, kind: str) -> Encoded:
    name, pixels, ids = read_with_ids(source, rule, bands)
    if bands == RGB and (kind == "tfrecord" or source.is_plain()):
        return _encode(name, pixels, ids, source.image_file())
    # How bands are scaled is the user's choice, who may choose again from the same values.
    data, suffix = source.image_file(), Path(source.places()[0]).suffix.lower()
    if not data or suffix not in (*IMAGE_SUFFIXES, ".npy"):
        data, suffix = npy(source.read_values(ids.shape)), ".npy"
    return Encoded(name, suffix, data, png(ids, 6), ids.shape)


def _encode(name: str, pixels: np.ndarray, ids: np.ndarray, file: bytes = b"") -> Encoded:
    suffix = plain_kind(file, ids.shape)
    if pixels.shape[2] not in (1, 3):
        return Encoded(name, ".npy", npy(pixels), png(ids, 6), ids.shape)
    squeezed = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    return Encoded(name, suffix or ".png", file if suffix else png(squeezed, 1), png(ids, 6), ids.shape)
