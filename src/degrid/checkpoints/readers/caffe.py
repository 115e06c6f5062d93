"""Weights of Caffe (.caffemodel), read without Caffe. Format: `src/caffe/proto/caffe.proto`, NetParameter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from degrid.checkpoints.readers.reader import Contents, Reader
from degrid.checkpoints.readers.values import MAX_TENSORS, joined, numbers, raw_values, shaped
from degrid.protobuf import Span, only_bytes, only_int
from degrid.types import ConversionError

# Field of a layer in NetParameter -> fields of the name and of the blobs in the layer.
_LAYERS = {100: (1, 7), 2: (4, 6)}
_SHAPE, _FLOATS, _DOUBLES = 7, 5, 8
_MAX_SHAPE = 1024  # bytes


class Caffe(Reader):
    """A NetParameter. Nothing marks its beginning, so it is recognised by its layers."""

    suffixes = (".caffemodel",)

    def recognise(self, file: Span, path: Path) -> bool:
        """See `Reader`. A file called .caffemodel is taken for one, so that its damage is named."""
        try:
            return path.suffix in self.suffixes or any(field in _LAYERS for field, _ in file.fields())
        except ConversionError:
            return False

    def read(self, file: Span, path: Path) -> Contents:
        """See `Reader`."""
        return Contents(read_caffe(file))


def read_caffe(file: Span) -> dict[str, np.ndarray]:
    """The blobs of every layer as float32: "conv1/0", "conv1/1", ... (the number of the blob after the slash).

    Layers of the present kind and of V1 are read; blobs of V1 keep their four axes. Floats in one piece are views of
    the mapped file.

    Raises:
        ConversionError: no caffemodel, or a damaged one.
    """
    tensors: dict[str, np.ndarray] = {}
    for field, value in file.fields():
        if field not in _LAYERS:
            continue
        layer = only_bytes(value, file, field)
        name_field, blob_field = _LAYERS[field]
        name = next((found.text("a layer's name") for found in layer.messages(name_field)), "")
        for index, blob in enumerate(layer.messages(blob_field)):
            key = f"{name}/{index}"
            if key in tensors:
                blob.fail(f"a second {key}")
            if len(tensors) == MAX_TENSORS:
                blob.fail(f"more than {MAX_TENSORS} blobs")
            tensors[key] = _blob(blob, key)
    if not tensors:
        file.fail("no layers with weights: not a caffemodel, or one without weights")
    return tensors


def _blob(blob: Span, name: str) -> np.ndarray:
    """BlobProto."""
    shape = [only_int(next(blob.values(axis), 1), blob, axis) for axis in (1, 2, 3, 4)]
    for message in blob.messages(_SHAPE):
        if len(message) > _MAX_SHAPE:
            message.fail(f"{name} has an absurd shape")
        shape = numbers(message.values(1), np.dtype(np.int64), message).tolist()
    for number, code in ((_DOUBLES, "<f8"), (_FLOATS, "<f4")):
        values = raw_values(joined(blob.messages(number)), code, blob, name)
        if values.size:
            break
    with np.errstate(all="ignore"):  # a double beyond float32 becomes infinite, as in Caffe
        return shaped(values.astype(np.float32, copy=False), shape, blob, name)
