"""State dicts from files of PyTorch, pickles and safetensors; nothing in a pickle is run."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from degrid.checkpoints.readers.archives import members_of, stored
from degrid.checkpoints.readers.pickles import Array, Flattener, Name, Opaque, describe
from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.values import MAX_TENSORS, check_shape, native, raw_values, shaped, widened
from degrid.lookup import counted, some
from degrid.protobuf import Span
from degrid.types import ConversionError
from degrid.weight_names import unwrapped

_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How the first pickle of a file from before PyTorch 1.6 ends."""
_EXPECTED = "state dict, tensors by name: save its state_dict() with the program that wrote it"

# Numpy's types by the names of PyTorch's storages and types; there are others, which numpy lacks.
_TYPES = {
    **{"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf16", "ComplexFloat": "c8", "ComplexDouble": "c16"},
    **{"Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8", "Byte": "u1", "Bool": "b1", "Untyped": "u1"},
    **{"float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "bf16", "complex64": "c8", "complex128": "c16"},
    **{"int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1", "bool": "b1"},
    **{"uint16": "u2", "uint32": "u4", "uint64": "u8"},
}
_SAFE_TYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bf16", "BOOL": "|b1", "C64": "<c8"},
    **{f"{sign}{8 * size}": f"<{sign.lower()}{size}" for sign in "IU" for size in (1, 2, 4, 8)},
}


@dataclass
class _Storage:
    """A row of values in the file. key: of its bytes; code: as in _TYPES, "" for a type that numpy lacks."""

    key: str
    code: str
    offset: int = 0


@dataclass
class _Tensor:
    """A view of a storage, as the pickle describes it; `code` where the storage does not know the type."""

    storage: object
    offset: object
    shape: object
    strides: object
    code: str | None = None
    flags: object = None


class PyTorch(Reader):
    """What torch.save writes: an archive with data.pkl in it, or before PyTorch 1.6 several pickles and the values."""

    suffixes = (".pth", ".pt", ".ckpt", ".bin")

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        head = bytes(file.data[:64])
        return (head[:1] == b"\x80" and _MAGIC in head) or (
            head[:2] == b"PK" and any(_is_pickle(member) for member in members_of(file))
        )

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        if bytes(file.data[:2]) == b"PK":
            return _from_archive(file)
        return _from_before_archives(file)


class Pickle(Reader):
    """A pickled dictionary of numpy arrays: .pdparams of PaddlePaddle, .pkl of detectron2, and others."""

    suffixes = (".pkl", ".pickle", ".pdparams")

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        return bytes(file.data[:1]) == b"\x80"

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        described, _ = describe(file, len(file))
        return _contents(described, file, dict[str, Span]().__getitem__)


class Safetensors(Reader):
    """Eight bytes with the length of a JSON header, the header, and the values."""

    suffixes = (".safetensors",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`."""
        head = bytes(file.data[:9])
        return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= len(file) - 8

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        length = file.part(0, 8).number()
        try:
            header = json.loads(bytes(file.part(8, length, "a header").data))
            described = {name: value for name, value in header.items() if name != "__metadata__"}
            found = {name: _safe_array(value, file, 8 + length, name) for name, value in described.items()}
        except ConversionError:
            raise
        except Exception as error:  # JSON that is malformed, or describes something else
            raise ConversionError(f"{file.file}: a damaged safetensors file ({type(error).__name__})") from error
        tensors = {name: array for name, array in found.items() if array is not None}
        return Contents(tensors, tuple(name for name in found if name not in tensors))


def _safe_array(described: dict[str, Any], file: Span, start: int, name: str) -> np.ndarray | None:
    """A tensor of a safetensors file; None for a type that numpy lacks."""
    code = _SAFE_TYPES.get(described["dtype"], "")
    begin, end = described["data_offsets"]
    data = file.part(start + begin, end - begin, name)
    if not code:
        return None
    flat = raw_values(data.data, "<u2" if code == "bf16" else code, data, name)
    return native(shaped(widened(flat) if code == "bf16" else flat, described["shape"], data, name))


def _is_pickle(member: zipfile.ZipInfo) -> bool:
    return Path(member.filename).name == "data.pkl"


def _from_archive(file: Span) -> Contents:
    """An archive of PyTorch: data.pkl, and each storage unpacked in data/KEY."""
    members = {member.filename: member for member in members_of(file)}
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members.values())
    if packed or sum(member.file_size for member in members.values()) > len(file) or len(members) > MAX_TENSORS:
        raise ConversionError(f"{file.file}: an archive of PyTorch with packed or overlapping parts")
    pickled = next(name for name, member in members.items() if _is_pickle(member))
    folder = pickled.removesuffix("data.pkl")

    def content(name: str) -> Span:
        return stored(file, members[folder + name])

    described, _ = describe(content("data.pkl"), len(file), _made, _storage)
    big = folder + "byteorder" in members and bytes(content("byteorder").data) == b"big"
    return _contents(described, file, lambda key: content(f"data/{key}"), ">" if big else "<")


def _from_before_archives(file: Span) -> Contents:
    """A magic number, a version, sizes of types, the values' description and the storages' keys; then the storages."""
    at, found = 0, []
    storages: dict[str, _Storage] = {}

    def storage(described: Any) -> object:
        made = _storage(described)
        if isinstance(made, _Storage):
            storages[made.key] = made
        return made

    for _ in range(5):
        described, length = describe(file.part(at, len(file) - at), len(file), _made, storage)
        found.append(described)
        at += length
    rows = {}
    for key in map(str, found[4]) if isinstance(found[4], list) else ():
        if key not in storages or storages[key].code not in _TYPES.values():
            file.fail(f"values of a type that cannot be read, or of none (storage {key[:50]})", at)
        size = file.part(at, 8, "a number of values").number() * _itemsize(storages[key].code)
        rows[key] = file.part(at + 8, size, "a storage")
        at += 8 + size
    return _contents(found[3], file, rows.__getitem__)


def _itemsize(code: str) -> int:
    return 2 if code == "bf16" else np.dtype(code).itemsize


def _type(name: object) -> str:
    """The code of a type or a storage of PyTorch, on any device; "" where numpy has none."""
    plain = name.name.rpartition(" ")[2].removesuffix("Storage") if isinstance(name, Name) else ""
    return _TYPES.get(plain, "")


def _storage(described: Any) -> object:
    """What a persistent id of torch.save stands for."""
    match described:
        case ("storage", kind, str() as key, _, int(), *view):
            offset = 0
            match view:
                case [(_, int() as start, int())]:  # of a larger storage
                    offset = start
            return _Storage(key, _type(kind), offset)
    return Opaque("a persistent id")


def _made(name: str, args: tuple[Any, ...]) -> Any:
    """The tensor that calling a function of PyTorch would make, as a description; None for other functions."""
    match name, args:
        case "torch._utils _rebuild_tensor", (storage, offset, shape, strides):
            return _Tensor(storage, offset, shape, strides)
        case "torch._utils _rebuild_tensor_v2", (storage, offset, shape, strides, _, _, *flags):
            return _Tensor(storage, offset, shape, strides, None, flags)
        case "torch._utils _rebuild_tensor_v3", (storage, offset, shape, strides, _, _, dtype, *flags):
            return _Tensor(storage, offset, shape, strides, _type(dtype), flags)
        case (
            ("torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state"),
            (_Tensor() as of, *_),
        ):
            return of
        case "torch._utils _rebuild_device_tensor_from_numpy", (Array() as array, *_):
            return array
        case "torch._tensor _rebuild_from_type_v2", (Name(function), _, tuple() as inner, _):
            return _made(function, inner)
        case "torch Size", (list() | tuple() as sizes,):
            return tuple(sizes)
    return None


def _contents(described: Any, file: Span, row: Callable[[str], Span], order: str = "<") -> Contents:
    """The tensors of a state dict, taken out of its wrappers.

    Args:
        described: what the pickle describes.
        file: the whole file.
        row: the bytes of a storage by its key.
        order: the order of bytes in the storages.
    """
    described = _alone(described)
    named = unwrapped(described)
    if named is None:
        if isinstance(described, Opaque):
            raise ConversionError(
                f"refused to load {file.file}: it holds {described.name[:100]}, and loading it could run code; "
                f"expected a {_EXPECTED}"
            )
        raise ConversionError(f"{file.file} holds {_kind(described)}; expected a {_EXPECTED}")
    values = _Values(file, row, order)
    chosen, beside = _of_network(named)
    tensors, skipped = Flattener(file, len(file), ".", values.array).flatten(chosen)
    if not tensors:
        objects = [f"{name} ({value.name})" for name, value in named.items() if isinstance(value, Opaque)]
        if objects:
            raise ConversionError(
                f"refused to load {file.file}: it holds no tensors by name, but {some(objects)}, and loading that "
                "could run code; save its state_dict() with the program that wrote it"
            )
        what = f"no tensors by name, only {some(named)}" if named else "nothing"
        raise ConversionError(f"{file.file} holds {what}; expected a {_EXPECTED}")
    if not any(value.size for value in tensors.values()):
        raise ConversionError(
            f"{file.file} holds {counted(len(tensors), 'tensor')} without values, which are elsewhere, as those of "
            "DeepSpeed's ZeRO-3; join them first, there with zero_to_fp32.py"
        )
    return Contents(tensors, (*skipped, *beside), _settings(described))


def _alone(described: Any) -> Any:
    """The one dictionary with tensors in a list, an optimiser's aside, as in (epoch, state_dict); else as it is."""
    if not isinstance(described, list | tuple):
        return described
    found = [each for each in described if _holds(each, (_Tensor, Array)) and isinstance(each, dict)]
    networks = [each for each in found if "param_groups" not in each]
    return networks[0] if len(networks) == 1 else described


def _kind(described: object) -> str:
    """What a file holds instead of named tensors."""
    if isinstance(described, _Tensor | Array):
        return "one tensor without a name"
    if isinstance(described, list | tuple):
        return f"a list of {counted(len(described), 'value')} without names"
    return f"a value ({type(described).__name__})"


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module that Lightning keeps, or OpenMMLab's "meta"."""
    arguments, meta = (described.get(key) for key in ("hyper_parameters", "meta"))
    return {**(arguments if isinstance(arguments, dict) else {}), **({"meta": meta} if isinstance(meta, dict) else {})}


def _of_network(named: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entries that may be a network's, and the names of those beside it: numbers, arguments, an optimiser, ..."""
    kinds: tuple[type, ...] = (_Tensor,) if _holds(named, (_Tensor,)) else (_Tensor, Array)
    direct = {name: value for name, value in named.items() if isinstance(value, kinds) and not _is_scalar(value)}
    if not direct:  # a dictionary for each part of the network
        direct = {
            name: value
            for name, value in named.items()
            if isinstance(value, dict) and not re.search("optim|sched|scaler", name) and _holds(value, kinds)
        }
    return direct, [name for name in named if name not in direct]


def _holds(value: object, kinds: tuple[type, ...], depth: int = 6) -> bool:
    """Whether there are such values in dictionaries, or in dictionaries within them."""
    if isinstance(value, dict) and depth:
        return any(_holds(inner, kinds, depth - 1) for inner in value.values())
    return isinstance(value, kinds) and not _is_scalar(value)


def _is_scalar(value: object) -> bool:
    return isinstance(value, Array) and value.scalar


class _Values:
    """Arrays from descriptions of tensors; views of the file where numpy has the type."""

    def __init__(self, file: Span, row: Callable[[str], Span], order: str) -> None:
        self.file, self.row, self.order = file, row, order
        self.room = 4 * len(file)  # bytes that copies may take; names may share a storage

    def array(self, described: object, name: str) -> np.ndarray | None:
        """The array, or None where it holds no numbers, or numbers of a type that numpy lacks."""
        if not isinstance(described, _Tensor) or not isinstance(described.storage, _Storage):
            return None
        code = described.storage.code and (described.storage.code if described.code is None else described.code)
        if not code:
            return None
        view = self._view(described, described.storage, "u2" if code == "bf16" else code, name)
        if code in ("bf16", "b1"):
            self.room -= 4 * view.size
            if self.room < 0:
                self.file.fail(f"damaged; it describes more values than it holds ({name})")
            view = widened(view) if code == "bf16" else view.astype(bool)
        return _flagged(view, described.flags)

    def _view(self, described: _Tensor, storage: _Storage, code: str, name: str) -> np.ndarray:
        match described.offset, described.shape, described.strides:
            case int() as offset, tuple() as shape, tuple() as strides if len(shape) == len(strides):
                pass
            case _:
                self.file.fail(f"{name} is not described as PyTorch does")
        if not all(isinstance(size, int) for size in (*shape, *strides)):
            self.file.fail(f"{name} is not described as PyTorch does")
        check_shape(shape, self.file, name)
        dtype = np.dtype(self.order + ("u1" if code == "b1" else code))  # numpy's bool must be 0 or 1
        try:
            row = self.row(storage.key)
        except KeyError:
            self.file.fail(f"the values of {name} are missing")
        first = storage.offset + offset
        last = first + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if min(first, *strides, 0) < 0 or prod(shape) * dtype.itemsize > len(self.file):
            self.file.fail(f"damaged; {name} is said to have more values than the file holds")
        if not prod(shape):
            return np.empty(shape, dtype.newbyteorder("="))
        if (last + 1) * dtype.itemsize > len(row):
            row.fail(f"{name} reaches beyond the end of its values", len(row))
        flat = np.frombuffer(row.data, dtype, last + 1 - first, first * dtype.itemsize)
        steps = [stride * dtype.itemsize for stride in strides]
        return native(np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False))


def _flagged(values: np.ndarray, flags: object) -> np.ndarray:
    """Values that the file may hold conjugated or negated; `flags` [one dictionary, or none]."""
    match flags:
        case [{"conj": True}]:
            values = values.conj()
    match flags:
        case [{"neg": True}]:
            values = -values
    return values
