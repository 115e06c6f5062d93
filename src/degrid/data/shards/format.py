"""Shards as datasets: those that `degrid data shard` writes, local or at a URL, and other tar files."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from degrid.data.formats.classes import class_table
from degrid.data.formats.layout import DataFormat, Layout
from degrid.data.formats.masks import MaskRule
from degrid.data.formats.source import BrokenSource, LazySources, Source
from degrid.data.shards.index import INDEX, Member, Part, Shard, mask_ending, member_name, read_index, read_members
from degrid.data.shards.places import in_folder, in_threads, read_part, sizes, split_chain
from degrid.data.shards.source import MEND, ShardSource
from degrid.data.tfrecord.format import called, splits_by_name
from degrid.lookup import counted, grouped, some
from degrid.types import IGNORE_INDEX, UserError

_BLOCK = 1 << 22
"""Bytes that are read at a time when a whole shard is checked."""


class Shards(DataFormat):
    """A folder with shards.json and the shards that it lists: tar files as of WebDataset, or TFRecord files."""

    wanted = f"{INDEX} and shards, as degrid data shard writes them"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        return open_shards(str(path)) if (path / INDEX).is_file() else None


class WebDataset(DataFormat):
    """Tar files of WebDataset without shards.json: NAME.jpg and NAME.seg.png in train-0000.tar, .., or one such file.

    The names of the files say the split, as those of TFRecord files do.
    """

    wanted = "tar files such as train-0000.tar with NAME.jpg and NAME.seg.png"

    def find(self, path: Path) -> Layout | None:
        """See `DataFormat`."""
        files = sorted(path.glob("*.tar")) if path.is_dir() else [path] * (path.suffix.lower() == ".tar")
        files = [file for file in files if file.is_file() and not file.name.startswith(".")]
        if not any(map(_has_pairs, files)):
            return None
        split_of = splits_by_name({file: called(file.stem) for file in files}, "tar files")
        splits = grouped((split, file) for file, split in split_of.items())
        folder = files[0].parent
        labels, rule = class_table(folder)
        sources = {split: LazySources(partial(_scanned, tuple(chosen))) for split, chosen in splits.items()}
        return Layout(files[0].name, folder, sources, labels, rule, how_to_add="a file {split}-0000.tar")


def open_shards(folder: str) -> Layout:
    """What is in a folder with shards.json.

    Args:
        folder: a path or an address.
    Raises:
        UserError: no such file, or a damaged one.
    """
    index = read_index(folder)
    # The labels hold train ids, whatever colours the classes have.
    ids = {**{value: value for value in range(len(index.labels))}, IGNORE_INDEX: IGNORE_INDEX}
    rule = MaskRule(ids, said=INDEX, exact=True)
    splits = {split: LazySources(partial(_listed, folder, shards)) for split, shards in index.splits.items()}
    return Layout(INDEX, Path(folder), splits, index.labels, rule, kind="shards", how_to_add="it to the shards")


@dataclass(frozen=True)
class BrokenShard(BrokenSource):
    """Stands for the samples of a shard that is missing, cut short or damaged.

    shard: its path or address.
    samples: how many it should hold; 0: not known.
    """

    shard: str = ""
    samples: int = 0

    def store(self) -> str:
        """See `Source`."""
        return self.shard


def _listed(folder: str, shards: Sequence[Shard]) -> Iterator[Source]:
    """The samples of shards; a `BrokenShard` for one whose file is missing or has another length than it should."""
    found = in_threads(partial(_members_or_error, folder), shards)
    lengths = sizes([in_folder(folder, shard.file) for shard in shards])
    for shard, members, length in zip(shards, found, lengths, strict=True):
        place = in_folder(folder, shard.file)
        if length != shard.bytes:
            came = "is missing" if length is None else f"has {length} bytes, where {INDEX} says {shard.bytes}"
            members = UserError(f"{place} {came}: {MEND}")
        if isinstance(members, UserError):
            yield BrokenShard(shard.file, members, place, shard.samples)
        else:
            yield from (ShardSource(place, member) for member in members)


def _members_or_error(folder: str, shard: Shard) -> list[Member] | UserError:
    try:
        size, members = read_members(folder, shard.file)
        if size != shard.bytes or len(members) != shard.samples:
            return UserError(f"{in_folder(folder, shard.file)}.json does not fit {INDEX}; get both again")
        return members
    except UserError as error:
        return error


def _has_pairs(file: Path) -> bool:
    """Whether the first sample of a tar file is an image with a mask."""
    try:
        return any(isinstance(source, ShardSource) for source in _sources_of(file, 1))
    except UserError:
        return False


def _scanned(files: Sequence[Path]) -> Iterator[Source]:
    """The samples of tar files without an index; a `BrokenShard` ends those of a damaged one."""
    for file in files:
        try:
            yield from _sources_of(file)
        except UserError as error:
            yield BrokenShard(file.name, error, str(file))


def _sources_of(file: Path, most: int | None = None) -> Iterator[Source]:
    """The samples of a tar file: consecutive members of one name."""
    count, key, parts = 0, "", dict[str, Part]()
    for name, ending, part in _files_in(file):
        if name != key:
            if parts:
                yield _paired(file, key, parts)
                count += 1
                if count == most:
                    return
            key, parts = name, {}
        parts[ending] = part
    if parts:
        yield _paired(file, key, parts)


def _paired(file: Path, key: str, parts: dict[str, Part]) -> Source:
    image, mask = mask_ending(parts)
    if not image or not mask:
        there = ", ".join(f".{ending}" for ending in parts)
        raise UserError(
            f"{file}: the sample {key} has {there}; expected an image such as {key}.jpg and its mask {key}.seg.png"
        )
    suffix = f".{image.rpartition('.')[2]}"
    return ShardSource(
        str(file), Member(member_name(key), suffix, parts[image], parts[mask]), f".{mask.rpartition('.')[2]}"
    )


def _files_in(file: Path) -> Iterator[tuple[str, str, Part]]:
    """Each file in a tar file: its name up to the first dot behind the last slash, what follows, and its place."""
    try:
        with tarfile.open(file, "r:") as archive:
            for entry in archive:
                if entry.isfile() and not PurePosixPath(entry.name).name.startswith("."):
                    folder, slash, base = entry.name.removeprefix("./").rpartition("/")
                    stem, _, ending = base.partition(".")
                    yield f"{folder}{slash}{stem}", ending.lower(), Part(entry.offset_data, entry.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{file} is not a tar file, or is damaged or truncated: {error}; get or write it again"
        ) from error


def without_bad_shards(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """The samples of sound shards, and a sentence on those that are left out.

    Every shard with checksums is read as a whole.

    Raises:
        UserError: none is sound.
    """
    shards = grouped((source.store() or source.name, source) for source in sources)
    names = {shard: PurePosixPath(split_chain(shard)[0]).name for shard in shards}
    lost = {names[shard]: samples for shard, samples in shards.items() if not _is_sound(shard, samples)}
    if not lost:
        return list(sources), []
    if len(lost) == len(shards):
        raise UserError(f"no shard of {len(lost)} is sound: {some(lost, 4)}; get or write them again")
    gone = {id(source) for samples in lost.values() for source in samples}
    images = sum(source.samples if isinstance(source, BrokenShard) else 1 for each in lost.values() for source in each)
    told = f"{counted(len(lost), 'damaged shard')} left out, with {counted(images, 'image')}: {some(sorted(lost), 4)}"
    return [source for source in sources if id(source) not in gone], [told]


def _is_sound(shard: str, samples: Sequence[Source]) -> bool:
    """Whether a shard is there, and each of its samples as it was written."""
    if any(isinstance(sample, BrokenShard) for sample in samples):
        return False
    members = [sample.member for sample in samples if isinstance(sample, ShardSource)]
    data, begin = memoryview(b""), 0
    for part in sorted(part for member in members for part in (member.image, member.label)):
        if part.at + part.length > begin + len(data):
            begin = part.at
            try:
                data = memoryview(read_part(shard, begin, max(_BLOCK, part.length)))
            except UserError:
                return False
        own = data[part.at - begin :][: part.length]
        if len(own) < part.length or part.checksum not in (None, zlib.crc32(own)):
            return False
    return True
