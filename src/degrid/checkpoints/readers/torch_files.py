"""State dicts from files of PyTorch and safetensors; nothing in a pickle is run."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.protobuf import Span
from degrid.types import ConversionError
from degrid.weight_names import unwrapped

# Beside these there are quantised, packed and 8-bit floating types, which numpy lacks.
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


class PyTorch(Reader):
    """What torch.save writes: an archive with data.pkl in it, or before PyTorch 1.6 a pickle."""

    suffixes = (".pth", ".pt")

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        head = bytes(file.data[:2])
        return head[:1] == b"\x80" or (head == b"PK" and any(_is_pickle(member) for member in _members(path)))

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        mapped = bytes(file.data[:2]) == b"PK"
        if mapped:
            _check_bounds(path, len(file))
        return _contents(_load(path, file, mapped), path, len(file))


class Safetensors(Reader):
    """Eight bytes with the length of a JSON header, the header, and the values."""

    suffixes = (".safetensors",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        head = bytes(file.data[:9])
        return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= len(file) - 8

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        try:
            values = load_file(path)
        except Exception as error:  # there are many exceptions for types that numpy and torch lack
            raise ConversionError(f"{path}: a damaged safetensors file ({error})") from error
        return _contents(values, path, len(file))


def _members(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception as error:  # zipfile lets through many types where an archive is malformed
        raise ConversionError(f"{path}: a damaged archive ({str(error) or type(error).__name__})") from error


def _is_pickle(member: zipfile.ZipInfo) -> bool:
    return Path(member.filename).name == "data.pkl"


def _check_bounds(path: Path, size: int) -> None:
    """PyTorch stores everything unpacked, so nothing in an archive may outgrow the file."""
    members = _members(path)
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise ConversionError(f"{path}: an archive of PyTorch with packed or overlapping parts")


def _load(path: Path, file: Span, mapped: bool) -> Any:
    """What torch.save wrote, if it is tensors and plain values.

    Args:
        path: the file.
        file: its bytes.
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


def _contents(values: Any, path: Path, size: int) -> Contents:
    """The tensors of a state dict, taken out of its wrappers; `size` is the file's in bytes."""
    named = unwrapped(values)
    if named is None:
        raise ConversionError(f"{path}: holds {type(values).__name__}; expected a state dict, tensors by name")
    found = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in found.items() if _is_plain(value)}
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in plain.values()}
    largest = max((value.numel() * value.element_size() for value in plain.values()), default=0)
    if max(sum(storages.values()), largest) > size:
        raise ConversionError(f"{path}: damaged; it describes more values than it holds")
    tensors = {name: _array(value) for name, value in plain.items()}
    return Contents(tensors, tuple(name for name in found if name not in plain))


def _is_plain(tensor: Tensor) -> bool:
    """Whether numpy can hold it."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in _DTYPES


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
