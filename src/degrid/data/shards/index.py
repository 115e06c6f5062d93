"""The positions of samples in shards: shards.json beside them, with the classes, and for each shard FILE a FILE.json.

Names in tar files of WebDataset: a sample's files share a name up to its first dot, and differ after it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from degrid.data.shards.places import in_folder, read_part
from degrid.files import blaming, parse_json, write_json
from degrid.image import IMAGE_SUFFIXES
from degrid.types import LabelSpace

INDEX = "shards.json"
"""The name of the file that lists the shards; it is written last."""
FORMAT = "degrid shards 1"
KINDS = {"tar": ".tar", "tfrecord": ".tfrecord"}
"""The kinds of shards, and how their files end."""


class Part(NamedTuple):
    """A file inside a shard: its first byte, its number of bytes, and its CRC-32; None where that is not known."""

    at: int
    length: int
    checksum: int | None = None


class Member(NamedTuple):
    """A sample in a shard: its name, the ending of its image ".jpg", the image and the label."""

    name: str
    suffix: str
    image: Part
    label: Part


@dataclass(frozen=True)
class Shard:
    """A file of samples, by its name, with the number of its samples and of its bytes."""

    file: str
    samples: int
    bytes: int


@dataclass(frozen=True)
class Index:
    """All shards of a dataset by split, and the classes of their labels, which hold train ids."""

    labels: LabelSpace
    splits: Mapping[str, tuple[Shard, ...]]


def shard_name(split: str, number: int, kind: str) -> str:
    """The name of a shard's file, counted from 0."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', split)}-{number:06d}{KINDS[kind]}"


def write_members(folder: str, file: str, size: int, members: list[Member]) -> None:
    """Say what is in a shard of `size` bytes."""
    rows = [[member.name, member.suffix, *member.image, *member.label] for member in members]
    write_json(in_folder(folder, f"{file}.json"), {"bytes": size, "samples": rows}, indent=None)


def read_members(folder: str, file: str) -> tuple[int, list[Member]]:
    """The bytes of a shard, and what is in it.

    Raises:
        UserError: the file beside it that says so is missing or no such file.
    """
    place = in_folder(folder, f"{file}.json")
    with _expected(place):
        found = parse_json(read_part(place))
        rows = [Member(row[0], row[1], Part(*row[2:5]), Part(*row[5:8])) for row in found["samples"]]
        return int(found["bytes"]), rows


def write_index(folder: str, index: Index) -> None:
    """Write shards.json, which makes the shards of a folder a dataset."""
    classes = zip(index.labels.names, index.labels.colors, strict=True)
    shards = {split: [vars(shard) for shard in shards] for split, shards in index.splits.items()}
    rows = [{"name": name, "color": color} for name, color in classes]
    write_json(in_folder(folder, INDEX), {"format": FORMAT, "classes": rows, "splits": shards})


def read_index(folder: str) -> Index:
    """Read shards.json.

    Raises:
        UserError: it is missing or no such file.
    """
    place = in_folder(folder, INDEX)
    with _expected(place):
        found = parse_json(read_part(place))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        names, colors = zip(*((row["name"], tuple(row["color"])) for row in found["classes"]), strict=True)
        splits: dict[str, Any] = found["splits"]
        shards = {split: tuple(Shard(**row) for row in rows) for split, rows in splits.items()}
        files = [shard.file for each in shards.values() for shard in each]
        for file in files:
            if PurePosixPath(file).name != file or "\\" in file:
                raise ValueError(f"{file}, which is not beside it")
            if files.count(file) > 1:
                raise ValueError(f"{file} occurs twice")
        return Index(LabelSpace(names, colors), shards)


def _expected(place: str) -> contextlib.AbstractContextManager[None]:
    return blaming(f"{place} is not what degrid data shard writes; get it or write the shards again")


LABEL = "seg.png"
"""The ending that a label's name adds to its sample's."""
_MASKS = ("seg", "mask", "label", "segmentation", "annotation", "gt", "labels", "semantic", "segmap", "target")


def key_of(name: str) -> str:
    """The name under which a sample is stored: without dots behind its last slash, which would end it."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.replace('%', '%25').replace('.', '%2E')}"


def member_name(key: str) -> str:
    """The name of the sample that is stored so."""
    folder, slash, base = key.rpartition("/")
    return f"{folder}{slash}{base.replace('%2E', '.').replace('%25', '%')}"


def mask_ending(endings: Collection[str]) -> tuple[str, str]:
    """Which endings of a sample's files are the image's and its mask's, such as "jpg" and "seg.png"; empty for none."""
    pictures = [ending for ending in endings if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES]
    masks = [ending for word in _MASKS for ending in pictures if ending.partition(".")[0] == word]
    if not masks:  # a photograph in JPEG and one PNG beside it
        masks = [ending for ending in pictures if ending == "png"] if len(pictures) == 2 else []
    images = [ending for ending in pictures if "." not in ending and ending not in masks]
    return (images[0], masks[0]) if len(images) == 1 and masks else ("", "")
