"""Find a checkpoint from its file, its prefix, one of its parts, its folder, or TensorFlow's list of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from degrid.checkpoints.readers.hdf5 import PRESET
from degrid.checkpoints.readers.leveldb import is_table
from degrid.checkpoints.readers.values import map_file
from degrid.lookup import some
from degrid.types import UserError

_PARTS_OF_V2 = re.compile(r"(.+)\.(?:index|meta|data-\d{5}-of-\d{5})")
_SHARD_OF_V1 = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_SHARD_OF_A_HUB = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
_BESIDE_WEIGHTS = re.compile(r"optim|sched|scaler|rng_state|random_states|training_args")
PARTS_LIST = ".index.json"
"""How a list of the files of a checkpoint ends, as transformers and accelerate write it."""
_CHECKPOINT_LINE = re.compile(r'^model_checkpoint_path: *"([^"\x00-\x1f]+)"', re.MULTILINE)


def find_checkpoint(path: Path, suffixes: Collection[str]) -> tuple[Path, Path]:
    """What to call a checkpoint, and its file; of several the one to read first.

    Args:
        path: a file; of TensorFlow also the prefix, any one of several files, the list of checkpoints ("checkpoint"),
            or a folder that holds such a list or one checkpoint.
        suffixes: endings of files that are taken for checkpoints in a folder.
    Raises:
        UserError: there is nothing at the path, or more than one checkpoint.
    """
    path = _whole(path)
    if path.is_dir():
        path = _in_folder(path, suffixes)
    elif path.name == "checkpoint" and path.is_file():
        path = _listed(path) or path
    if path.name == PRESET[1] and path.with_name(PRESET[0]).is_file():
        path = path.with_name(PRESET[0])
    parts = _PARTS_OF_V2.fullmatch(path.name)
    if parts or not path.is_file():
        prefix = path.with_name(parts[1]) if parts else path
        index = _index_of(prefix)
        if index.is_file():
            return prefix, index
        if parts and not path.name.endswith(".meta"):  # V1 also has files ending in .meta
            raise UserError(f"no checkpoint at {path}: looked for {index}")
        path = prefix
    if path.is_file():
        return path, path
    shards = shards_of(path)
    if not shards:
        raise UserError(f"no checkpoint at {path}: looked for this file, for {path}.index and {path}-?????-of-?????")
    return path, shards[0]


def is_shard(path: Path) -> bool:
    """Whether a file is named like a part of a V1 checkpoint."""
    return _SHARD_OF_V1.fullmatch(path.name) is not None


def shards_of(path: Path) -> list[Path]:
    """All files of a V1 checkpoint in several, from its name or one of the files; none where there are none.

    Raises:
        UserError: one is missing, or there are sets of different sizes.
    """
    own = _SHARD_OF_V1.fullmatch(path.name)
    stem = own[1] if own else path.name
    siblings = path.parent.iterdir() if path.parent.is_dir() else []
    found = [match for sibling in siblings if (match := _SHARD_OF_V1.fullmatch(sibling.name)) and match[1] == stem]
    counts = {match[3] for match in found} if own is None else {own[3]}
    if len(counts) > 1:
        raise UserError(f"expected one checkpoint at {path}, found several numbers of shards: {', '.join(counts)}")
    if not found:
        return []
    (count,) = counts
    shards = [path.with_name(f"{stem}-{index:05d}-of-{count}") for index in range(int(count))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"no file {shard}, a part of the checkpoint {path.with_name(stem)}")
    return shards


def _whole(path: Path) -> Path:
    """The list of parts, as transformers and accelerate write it, if the path is a part or their folder; else the path.

    Raises:
        UserError: it belongs to a distributed checkpoint of PyTorch.
    """
    if path.suffix == ".distcp" or (path / ".metadata").is_file():
        raise UserError(
            f"{path} is a distributed checkpoint of PyTorch; join it with python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    part = _SHARD_OF_A_HUB.fullmatch(path.name)
    lists = [path.with_name(f"{part[1]}{part[2]}{PARTS_LIST}")] if part else sorted(path.glob(f"*{PARTS_LIST}"))
    return lists[0] if lists and lists[0].is_file() else path


def _without_state(files: set[Path]) -> set[Path]:
    """Those files whose names are not those of training state, such as an optimiser's."""
    return {file for file in files if len(files) == 1 or not _BESIDE_WEIGHTS.search(file.name)} or files


def _in_folder(folder: Path, suffixes: Collection[str]) -> Path:
    """The checkpoint that a folder's list names, or the only one that is there."""
    listed = _listed(folder / "checkpoint")
    if listed is not None:
        return listed
    found = set()
    for file in folder.iterdir():
        if file.is_file() and (file.suffix in suffixes or is_table(map_file(file))):
            parts = _PARTS_OF_V2.fullmatch(file.name) or _SHARD_OF_V1.fullmatch(file.name)
            found.add(file.with_name(parts[1]) if parts else file)
    if {file.name for file in found} == set(PRESET):
        return folder / PRESET[0]
    found = _without_state(found)
    if len(found) != 1:
        if (folder / "Manifest.json").is_file() and folder.suffix == ".mlpackage":
            raise UserError(f"{folder} is a model of Core ML; convert the checkpoint it was made from")
        names = f"{len(found)}: {some(sorted(file.name for file in found))}" if found else "none"
        raise UserError(
            f"expected one checkpoint in {folder}, found {names}; name the file (endings that are looked for: "
            f"{', '.join(sorted(suffixes))})"
        )
    return found.pop()


def _listed(file: Path) -> Path | None:
    """The latest checkpoint that TensorFlow's text file "checkpoint" names; None if the file is something else."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        line = _CHECKPOINT_LINE.search(stream.read(1 << 16).decode("utf-8", "replace"))
    if line is None:
        return None
    # The path is that of the machine that trained; the files may have moved together.
    places = [file.parent / line[1], file.parent / re.split(r"[/\\]", line[1])[-1]]
    for place in places:
        if place.is_file() or _index_of(place).is_file() or shards_of(place):
            return place
    raise UserError(f"{file} names a checkpoint that is not there: looked for {places[0]} and {places[1]}")


def _index_of(prefix: Path) -> Path:
    return Path(f"{prefix}.index")
