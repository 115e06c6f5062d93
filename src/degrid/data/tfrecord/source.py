"""Images and labels in TFRecord files, read without TensorFlow, in the three schemas that DeepLab programs use."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import ClassVar

import numpy as np

from degrid.bands import to_bytes
from degrid.data.formats.masks import AS_STORED, MaskReading
from degrid.data.formats.packed import label_values, open_picture, pixels_like
from degrid.data.formats.source import RawSample, Source
from degrid.data.tfrecord.records import Features, Record, without_suffix
from degrid.image import IMAGE_SUFFIXES
from degrid.protobuf import Span
from degrid.types import RGB, Bands


@dataclass(frozen=True)
class Schema:
    """The keys under which a kind of record keeps its parts; None where it has no such key.

    raw: image and label are uncompressed pixels rather than JPEG or PNG files.
    """

    image: str
    label: str
    height: str
    width: str
    filename: str | None = None
    image_format: str | None = None
    label_format: str | None = None
    channels: str | None = None
    raw: bool = False


SCHEMAS = {
    # github.com/NanqingD/DeepLabV3-Tensorflow
    "encoded": Schema(
        "image/encoded",
        "image/segmentation/encoded",
        "image/height",
        "image/width",
        "image/filename",
        "image/format",
        "image/segmentation/format",
    ),
    # github.com/sthalles/deeplab_v3
    "raw": Schema("image_raw", "annotation_raw", "height", "width", raw=True),
    # github.com/tensorflow/models, research/deeplab/datasets/build_data.py
    "deeplab": Schema(
        "image/encoded",
        "image/segmentation/class/encoded",
        "image/height",
        "image/width",
        "image/filename",
        "image/format",
        "image/segmentation/class/format",
        "image/channels",
    ),
}
"""The known kinds of records; a record belongs to the first whose image and label it holds."""


@dataclass(frozen=True, slots=True)
class RecordSource(Source):
    """A sample in a TFRecord file."""

    record: Record
    how: MaskReading = AS_STORED
    unreadable: ClassVar[str] = "records that cannot be read (write the file again)"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The file name in the record, or the record's number; read from the file each time."""
        return _name(self.record, *_open_record(self.record))

    def read(self, bands: Bands = RGB) -> RawSample:
        """See `Source`.

        Raises:
            ConversionError: damaged, of no known schema, or a label of another size than the image.
            UserError: the file has gone.
        """
        schema, features = _open_record(self.record)
        image, label = features.bytes_of(schema.image), features.bytes_of(schema.label)
        if schema.raw:
            height, width = _raw_size(schema, features, image, label)
            # A copy, since the bytes of a file cannot be written to.
            pixels = np.frombuffer(image.data, np.uint8).reshape(height, width, 3).copy()
            values = np.frombuffer(label.data, np.uint8).reshape(height, width)
        else:
            picture = open_picture(image, "image")
            values = label_values(label, self.how, picture.size)
            pixels = pixels_like(image, values.shape[:2], picture)
        if bands != RGB:
            pixels = to_bytes(pixels, bands, self.record)
        return RawSample(_name(self.record, schema, features), pixels, values)

    def read_image(self, size: tuple[int, ...] | None = None) -> np.ndarray:
        """See `Source`; always oriented like the label."""
        return self.read().image

    def read_label(self) -> np.ndarray:
        """See `Source`; the image is not decoded."""
        schema, features = _open_record(self.record)
        image, label = features.bytes_of(schema.image), features.bytes_of(schema.label)
        if schema.raw:
            return np.frombuffer(label.data, np.uint8).reshape(_raw_size(schema, features, image, label))
        return label_values(label, self.how, open_picture(image, "image").size)

    def palette(self) -> np.ndarray | None:
        """See `Source`."""
        schema, features = _open_record(self.record)
        if schema.raw or self.how.by_color:
            return None
        colors = open_picture(features.bytes_of(schema.label), "label").getpalette("RGB")
        return None if colors is None else np.array(colors, np.uint8).reshape(-1, 3)

    def reading(self, how: MaskReading) -> RecordSource:
        """See `Source`."""
        return dataclasses.replace(self, how=how)

    def places(self) -> tuple[str, str]:
        """See `Source`."""
        return str(self.record), str(self.record)

    def image_file(self) -> bytes:
        """See `Source`; empty where the record's schema keeps pixels."""
        schema, features = _open_record(self.record)
        return b"" if schema.raw else bytes(features.bytes_of(schema.image).data)

    def store(self) -> str:
        """See `Source`."""
        return str(self.record.file)


def _open_record(record: Record) -> tuple[Schema, Features]:
    features = Features(record.payload())
    for schema in SCHEMAS.values():
        if schema.image in features and schema.label in features:
            return schema, features
    known = ", or ".join(f"{schema.image} with {schema.label} ({name})" for name, schema in SCHEMAS.items())
    keys = features.keys()
    came = ", ".join(ascii(key[:40])[1:-1] for key in keys[:12]) + (", .." if len(keys) > 12 else "")
    features.example.fail(f"expected the keys {known}, but found {came or 'none'} in the record")


def _raw_size(schema: Schema, features: Features, image: Span, label: Span) -> tuple[int, int]:
    """Height and width, pixels."""
    height, width = features.int_of(schema.height), features.int_of(schema.width)
    for part, key, expected in ((image, schema.image, height * width * 3), (label, schema.label, height * width)):
        if len(part) != expected or not expected:
            part.fail(f'"{key}" has {len(part)} bytes, where {width}x{height} pixels take {expected},')
    return height, width


def _name(record: Record, schema: Schema, features: Features) -> str:
    """A sample's name: the file name in the record without suffix, or the record's number where there is none.

    Of a path from the root of a disk the last part counts. Nothing stays in a name that could lead out of a folder.
    """
    given = bytes(features.bytes_of(schema.filename).data) if schema.filename and schema.filename in features else b""
    path = PureWindowsPath("".join(c if c.isprintable() else "_" for c in given.decode(errors="replace")))
    name = path.name if path.anchor else "/".join(part for part in path.parts if part != "..")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        name = name.removesuffix(path.suffix)
    return name or f"{without_suffix(record.file)}_{record.number:05d}"
