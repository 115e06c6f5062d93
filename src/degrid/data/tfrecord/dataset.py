"""Images and labels in TFRecord files, read without TensorFlow, in the three schemas that DeepLab programs use."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from degrid.data.formats.masks import MaskRule, mask_values, rgb_like, unknown_message
from degrid.data.tfrecord.records import Features, Record, records_in, without_suffix
from degrid.image import IMAGE_SUFFIXES
from degrid.protobuf import Span
from degrid.types import ConversionError, LabelSpace, Sample, UserError


@dataclass(frozen=True)
class Schema:
    """The keys under which a kind of record keeps its parts; None where it has no such key.

    raw: image and label are pixels as they lie in memory, and not JPEG or PNG files.
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
"""The known kinds of records; a record is of the first whose image and label are both in it."""


class TFRecordDataset:
    """Images and labels in TFRecord files, in any order: where the records lie is found out once, when it is opened.

    Args:
        files: all files of the split.
        labels: the classes.
        rule: how the labels' values become train ids.
        notes: what was decided for the user when the dataset was opened, one sentence each.
    Raises:
        ConversionError: a file that is no TFRecord file, is damaged, or cut short.
        UserError: a file that cannot be read.
    """

    def __init__(
        self, files: Sequence[str | Path], labels: LabelSpace, rule: MaskRule, notes: Sequence[str] = ()
    ) -> None:
        self.labels, self.rule, self.notes = labels, rule, list(notes)
        self.records = [record for file in files for record in records_in(Path(file))]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Read one record: image uint8 [3,H,W], label uint8 [H,W].

        Raises:
            ConversionError: see `read_record`.
            UserError: an unknown id or colour, or a file that has gone.
        """
        record = self.records[index]
        name, image, raw = read_record(record)
        ids, unknown = self.rule.apply(raw)
        if unknown:
            raise UserError(unknown_message(record, unknown, self.labels))
        return Sample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(ids), name)


def read_record(record: Record) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, image uint8 [H,W,3] and the label's values as they are stored: [H,W], or colours uint8 [H,W,3].

    Raises:
        ConversionError: damaged, of no known schema, or a label of another size than the image.
        UserError: the file has gone.
    """
    schema, features = _open_record(record)
    image, label = features.bytes_of(schema.image), features.bytes_of(schema.label)
    if schema.raw:
        height, width = _raw_size(schema, features, image, label)
        # A copy, since the bytes of a file cannot be written to.
        pixels = np.frombuffer(image.data, np.uint8).reshape(height, width, 3).copy()
        values = np.frombuffer(label.data, np.uint8).reshape(height, width)
    else:
        picture = _open_picture(image, "image")
        values = _label_values(label, picture)
        pixels = _pixels(image, picture, values.shape[:2])
    return _name(record, schema, features), pixels, values


def read_record_label(record: Record) -> np.ndarray:
    """The label's values alone, without decoding the image; see `read_record`."""
    schema, features = _open_record(record)
    image, label = features.bytes_of(schema.image), features.bytes_of(schema.label)
    if schema.raw:
        return np.frombuffer(label.data, np.uint8).reshape(_raw_size(schema, features, image, label))
    return _label_values(label, _open_picture(image, "image"))


def encoded_image(record: Record) -> bytes:
    """The image file in a record; empty where its schema keeps pixels. Errors: see `read_record`."""
    schema, features = _open_record(record)
    return b"" if schema.raw else bytes(features.bytes_of(schema.image).data)


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


def _label_values(label: Span, picture: Image.Image) -> np.ndarray:
    """A label file's values. Its size is compared with the picture's before either is decoded."""
    opened = _open_picture(label, "label")
    if opened.size not in (picture.size, picture.size[::-1]):
        _refuse_size(label, opened.size, picture.size)
    try:
        opened.load()
        return mask_values(opened, f"{label.file}: the label at byte {label.offset}", bytes(label.data[:64]))
    except UserError as error:
        raise ConversionError(str(error)) from error
    except Exception as error:
        _refuse_picture(label, "label", error)


def _pixels(image: Span, picture: Image.Image, size: tuple[int, ...]) -> np.ndarray:
    """A picture as RGB [H,W,3], turned the way a label of this height and width lies."""
    try:
        picture.load()
        pixels = rgb_like(picture, size)
    except Exception as error:
        _refuse_picture(image, "image", error)
    if pixels.shape[:2] != size:
        _refuse_size(image, (size[1], size[0]), (pixels.shape[1], pixels.shape[0]))
    return pixels


def _open_picture(part: Span, what: str) -> Image.Image:
    """A picture that is not decoded yet. The format that the record gives for it does not count: it is often wrong."""
    try:
        return Image.open(io.BytesIO(part.data), formats=("JPEG", "PNG"))
    except Exception as error:
        _refuse_picture(part, what, error)


def _refuse_picture(part: Span, what: str, error: Exception) -> NoReturn:
    """Pillow complains of damaged bytes with a dozen kinds of exceptions: hence the `except Exception` above."""
    known = isinstance(error, UnidentifiedImageError)
    reason = "" if known else f" ({' '.join(str(error).split())[:100] or type(error).__name__})"
    raise ConversionError(
        f"{part.file}: the {what} at byte {part.offset} is no JPEG or PNG file, or a damaged one{reason}"
    ) from error


def _refuse_size(part: Span, label: tuple[int, int], image: tuple[int, int]) -> NoReturn:
    part.fail(f"a label of {label[0]}x{label[1]} pixels for an image of {image[0]}x{image[1]}")


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
