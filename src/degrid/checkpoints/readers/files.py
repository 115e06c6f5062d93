"""Read the tensors of a checkpoint, whatever its file is called."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from degrid.checkpoints.readers.archives import members_of, unpacked
from degrid.checkpoints.readers.caffe import Caffe
from degrid.checkpoints.readers.find import PARTS_LIST, find_checkpoint
from degrid.checkpoints.readers.hdf5 import Hdf5
from degrid.checkpoints.readers.mxnet import MXNet
from degrid.checkpoints.readers.numpy_files import Numpy
from degrid.checkpoints.readers.others import what_else
from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.tensorflow import GraphDef, TensorFlowV1, TensorFlowV2
from degrid.checkpoints.readers.torch_files import Pickle, PyTorch, Safetensors
from degrid.checkpoints.readers.values import map_file
from degrid.lookup import lookup, some
from degrid.protobuf import Span
from degrid.types import ConversionError, UserError

_MAX_CONFIG = 1 << 20  # bytes
_SETTINGS = ("config.json", "task.json")

# Asked in this order; a caffemodel has no mark at its beginning.
READERS: dict[str, Reader] = {
    "tensorflow v2": TensorFlowV2(),
    "tensorflow v1": TensorFlowV1(),
    "pytorch": PyTorch(),
    "safetensors": Safetensors(),
    "pickle": Pickle(),
    "hdf5": Hdf5(),
    "mxnet": MXNet(),
    "numpy": Numpy(),
    "tensorflow graph": GraphDef(),
    "caffe": Caffe(),
}


@dataclass(frozen=True)
class Source(Contents):
    """What a checkpoint holds, and where it came from.

    Attributes:
        path: the file that was read; the prefix of a TensorFlow checkpoint of several files.
        format: a row of READERS, or "module:Class".
        config: `settings`, and the content of config.json and task.json (keras-hub's) beside the file, which prevail.
    """

    path: Path = Path()
    format: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def read_tensors(path: str | os.PathLike[str], reader: str | None = None) -> Source:
    """Read a checkpoint.

    Names: of TensorFlow the variables', partitioned ones whole; of Caffe "layer/0", "layer/1", ... (see `read_caffe`);
    of PyTorch and of pickles those of the state dict, without wrappers ({"state_dict": ...}) and without "module."; of
    dictionaries in .npy files the keys joined by slashes.

    Args:
        path: a file; of TensorFlow also the prefix, any one of several files, the list of checkpoints ("checkpoint"),
            or a folder that holds such a list or one checkpoint; of shards as transformers and accelerate write them
            their list (.index.json), one of them, or their folder.
        reader: a row of READERS or "module:Class" of the user's own; None: whichever recognises the file.
    Raises:
        UserError: there is nothing at the path, or more than one checkpoint.
        ConversionError: damaged, of no known kind, or it could run code when loaded.
    """
    suffixes = {suffix for row in READERS.values() for suffix in row.suffixes}
    try:
        shown, main = find_checkpoint(Path(path), suffixes)
        found = [_contents(map_file(part), part, part if part != main else shown, reader) for part in _parts(main)]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    contents, name = found[0]
    for more, _ in found[1:]:
        contents = replace(contents, tensors=contents.tensors | more.tensors, skipped=contents.skipped + more.skipped)
    if not contents.tensors:
        raise ConversionError(f"{shown}: holds no tensors by name")
    beside = {key: value for name in _SETTINGS for key, value in _config(main.with_name(name)).items()}
    config = {**contents.settings, **beside}
    return Source(contents.tensors, contents.skipped, contents.settings, shown, name, config)


def _parts(main: Path) -> list[Path]:
    """The files of a checkpoint in several that a list names; else the file itself."""
    listed = _config(main).get("weight_map") if main.name.endswith(PARTS_LIST) else None
    names = listed.values() if isinstance(listed, dict) else ()
    return sorted({main.with_name(Path(str(name)).name) for name in names}) or [main]


def _config(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; empty if it is missing, damaged, absurdly long or not a dictionary."""
    try:
        return _parsed(path.read_bytes() if path.is_file() and path.stat().st_size < _MAX_CONFIG else b"")
    except OSError:
        return {}


def _parsed(text: bytes) -> dict[str, Any]:
    """The dictionary that a JSON text holds; empty if it holds none."""
    try:
        found = json.loads(text or b"{}") if len(text) < _MAX_CONFIG else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _contents(file: Span, main: Path, shown: object, reader: str | None) -> tuple[Contents, str]:
    """The content of a file, and the reader that read it."""
    if reader is None and (other := what_else(file, main)):
        raise ConversionError(f"{shown} is {other}")
    name = reader or next((name for name, row in READERS.items() if row.recognise(file, main)), None)
    if name == "numpy" and (parts := _only_part(file)) is not None:
        inner, settings = parts
        contents, name = _contents(inner, Path(inner.file), inner.file, None)
        return replace(contents, settings={**contents.settings, **settings}), f"zip, {name}"
    if name is None:
        raise ConversionError(
            f"{shown}: truncated, or of an unknown kind; expected a checkpoint of TensorFlow, Caffe, PyTorch, Keras, "
            "MXNet or numpy"
        )
    return _named(name).read(file, main), name


def _only_part(file: Span) -> tuple[Span, dict[str, Any]] | None:
    """The checkpoint inside an archive, and Keras's settings there; None for arrays of numpy.

    Raises:
        ConversionError: it holds none, or several, or would unpack to far more than its size.
    """
    if bytes(file.data[:2]) != b"PK":
        return None
    names = [name for member in members_of(file) if not (name := member.filename).startswith("__MACOSX/")]
    if all(name.endswith(".npy") for name in names):
        return None
    weights = [name for name in names if name.endswith(".weights.h5")]  # of Keras, beside its settings
    parts = unpacked(file)
    found = [parts[name] for name in (weights or names) if name in parts]
    if len(found) != 1:
        raise ConversionError(
            f"{file.file} is an archive of {len(found)} files, {some(sorted(names))}; unpack it, and give one"
        )
    return found[0], _parsed(bytes(parts["config.json"].data)) if weights and "config.json" in parts else {}


def _named(name: str) -> Reader:
    found: object = lookup(READERS, name, "reader")
    reader = found() if isinstance(found, type) else found
    if not isinstance(reader, Reader):
        raise UserError(f'reader "{name}" must be a class derived from degrid.checkpoints.readers.reader.Reader')
    return reader
