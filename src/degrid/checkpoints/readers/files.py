"""Read the tensors of a checkpoint of TensorFlow, Caffe, PyTorch or numpy, whatever its file is called."""

from __future__ import annotations

import io
import os
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from degrid.checkpoints.readers.caffe import read_caffe
from degrid.checkpoints.readers.leveldb import is_table
from degrid.checkpoints.readers.numpy_files import NPY_MAGIC, read_npy, read_npz
from degrid.checkpoints.readers.tensorflow import read_v1, read_v2, table_version
from degrid.checkpoints.readers.values import map_file
from degrid.protobuf import Span
from degrid.types import ConversionError, UserError
from degrid.weight_names import unwrapped

_PARTS_OF_V2 = re.compile(r"(.+)\.(?:index|meta|data-\d{5}-of-\d{5})")
_SHARD_OF_V1 = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
_SUFFIXES = (".index", ".caffemodel", ".pth", ".pt", ".npz", ".npy", ".safetensors")
# Beside these there are quantised, packed and 8-bit floating types, which numpy lacks.
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)
_CHECKPOINT_LINE = re.compile(r'^model_checkpoint_path: *"([^"\x00-\x1f]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """What a checkpoint holds.

    path: the file that was read; the prefix of a TensorFlow checkpoint of several files.
    format: "tensorflow v1", "tensorflow v2", "caffe", "pytorch", "numpy" or "safetensors".
    tensors: by name. In the layout and type of the file (bfloat16 becomes float32). They may be read-only, unaligned
        views of the mapped file: copy them before writing to them, and leave the file alone while they live.
    skipped: names of entries that hold no numbers, as text, or numbers of a type that numpy lacks.
    """

    path: Path
    format: str
    tensors: dict[str, np.ndarray]
    skipped: tuple[str, ...] = ()


def read_tensors(path: str | os.PathLike[str]) -> Source:
    """Read a checkpoint; what kind it is shows in its content.

    Names: of TensorFlow the variables', partitioned ones whole; of Caffe "layer/0", "layer/1", ... (see `read_caffe`);
    of PyTorch those of the state dict, without wrappers ({"state_dict": ...}) and without "module."; of dictionaries
    in .npy files the keys joined by slashes.

    Args:
        path: a file; of TensorFlow also the prefix, any one of several files, the list of checkpoints ("checkpoint"),
            or a folder that holds such a list or one checkpoint.
    Raises:
        UserError: there is nothing at the path, or more than one checkpoint.
        ConversionError: damaged, of no known kind, or it could run code when loaded.
    """
    target = Path(path)
    try:
        if target.is_dir():
            target = _in_folder(target)
        elif target.name == "checkpoint" and target.is_file():
            target = _listed(target) or target
        source = _read(target)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not source.tensors:
        raise ConversionError(f"{source.path}: holds no tensors by name")
    return source


def _read(path: Path) -> Source:
    parts = _PARTS_OF_V2.fullmatch(path.name)
    if parts or not path.is_file():
        prefix = path.with_name(parts[1]) if parts else path
        if _beside(prefix, ".index").is_file():
            return Source(prefix, "tensorflow v2", *read_v2(prefix))
        if parts and not path.name.endswith(".meta"):  # V1 has files ending in .meta, too
            raise UserError(f"no checkpoint at {path}: looked for {_beside(prefix, '.index')}")
        path = prefix
    if not path.is_file():
        shards = _shards(path)
        if not shards:
            raise UserError(
                f"no checkpoint at {path}: looked for this file, for {path}.index and {path}-?????-of-?????"
            )
        return Source(path, "tensorflow v1", *read_v1(shards))
    file = map_file(path)
    if is_table(file):
        if table_version(file) == 2:
            raise ConversionError(
                f"{path}: the index of a V2 checkpoint; its name must be that of the data files + .index"
            )
        return Source(path, "tensorflow v1", *read_v1(_shards(path) if _SHARD_OF_V1.fullmatch(path.name) else [path]))
    return _read_single(path, file)


def _read_single(path: Path, file: Span) -> Source:
    """Kinds that are one file, by their first bytes; those of Caffe have no mark."""
    head = bytes(file.data[:9])
    if head.startswith(b"PK"):
        if _is_torch(path, file):
            return _of_torch(path, "pytorch", _load_torch(path, file, mapped=True), file)
        tensors, skipped = read_npz(path)
        return Source(path, "numpy", tensors, tuple(skipped))
    if head.startswith(NPY_MAGIC):
        tensors, skipped = read_npy(file)
        return Source(path, "numpy", tensors, tuple(skipped))
    if head.startswith(b"\x80"):  # a pickle, as PyTorch wrote before 1.6
        return _of_torch(path, "pytorch", _load_torch(path, file, mapped=False), file)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= len(file) - 8:
        return _of_torch(path, "safetensors", _load_safetensors(path), file)
    try:
        return Source(path, "caffe", read_caffe(file))
    except ConversionError as error:
        if path.suffix == ".caffemodel":
            raise
        raise ConversionError(
            f"{path}: cut short, or of no known kind; expected a checkpoint of TensorFlow, Caffe, PyTorch or numpy"
        ) from error


def _in_folder(folder: Path) -> Path:
    """The checkpoint that a folder's list names, or the only one that is there."""
    listed = _listed(folder / "checkpoint")
    if listed is not None:
        return listed
    found = set()
    for file in folder.iterdir():
        if file.is_file() and (file.suffix in _SUFFIXES or is_table(map_file(file))):
            parts = _PARTS_OF_V2.fullmatch(file.name) or _SHARD_OF_V1.fullmatch(file.name)
            found.add(file.with_name(parts[1]) if parts else file)
    if len(found) != 1:
        names = f"{len(found)}: {', '.join(sorted(file.name for file in found)[:3])}" if found else "none"
        raise UserError(f"expected one checkpoint in {folder}, found {names}; name the file")
    return found.pop()


def _listed(file: Path) -> Path | None:
    """The latest checkpoint that TensorFlow's text file "checkpoint" names; None where it is no such file."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        line = _CHECKPOINT_LINE.search(stream.read(1 << 16).decode("utf-8", "replace"))
    if line is None:
        return None
    # The path is that of the machine that trained; the files may have moved together.
    places = [file.parent / line[1], file.parent / re.split(r"[/\\]", line[1])[-1]]
    for place in places:
        if place.is_file() or _beside(place, ".index").is_file() or _shards(place):
            return place
    raise UserError(f"{file} names a checkpoint that is not there: looked for {places[0]} and {places[1]}")


def _beside(prefix: Path, ending: str) -> Path:
    return Path(f"{prefix}{ending}")


def _shards(path: Path) -> list[Path]:
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


def _is_torch(path: Path, file: Span) -> bool:
    """Whether an archive is PyTorch's; those hold their storages unpacked, so nothing in it may outgrow the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile lets through many types where an archive is malformed
        raise ConversionError(f"{path}: a damaged archive ({str(error) or type(error).__name__})") from error
    if not any(Path(member.filename).name == "data.pkl" for member in members):
        return False
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > len(file):
        raise ConversionError(f"{path}: an archive of PyTorch with packed or overlapping parts")
    return True


def _load_torch(path: Path, file: Span, mapped: bool) -> Any:
    """What torch.save wrote, if it is tensors and plain values.

    mapped: leave the storages in the file, and so within its bounds; only for archives.
    """
    source = str(path) if mapped else io.BytesIO(file.data)  # from memory, reading cannot ask for more than there is
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old types of storages
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"refused to load {path}: it is damaged or holds more than tensors and plain values, and loading it could "
            "run code; save its state_dict() with the program that wrote it"
        ) from error
    except Exception as error:  # torch lets through many types where a file is malformed
        raise ConversionError(f"{path}: damaged, or no file of torch.save ({type(error).__name__})") from error


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except Exception as error:  # types that numpy and torch lack are told by many exceptions
        raise ConversionError(f"{path}: a damaged safetensors file ({error})") from error


def _of_torch(path: Path, kind: str, values: Any, file: Span) -> Source:
    """The tensors of a state dict, taken out of its wrappers."""
    named = unwrapped(values)
    if named is None:
        raise ConversionError(f"{path}: holds {type(values).__name__}; expected a state dict, tensors by name")
    found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in found.items() if _is_plain(value)}
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in plain.values()}
    largest = max((value.numel() * value.element_size() for value in plain.values()), default=0)
    if max(sum(storages.values()), largest) > len(file):
        raise ConversionError(f"{path}: damaged; it describes more values than it holds")
    tensors = {name: _array(value) for name, value in plain.items()}
    return Source(path, kind, tensors, tuple(name for name in found if name not in plain))


def _is_plain(tensor: Tensor) -> bool:
    """Whether numpy can hold it."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
