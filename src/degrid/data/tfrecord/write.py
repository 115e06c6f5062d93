"""Write any dataset as a TFRecord file, for training programs that read that format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from degrid.data.dataset import SourceDataset, bands_in
from degrid.data.formats.packed import plain_kind, png
from degrid.data.tfrecord.format import is_record_file
from degrid.data.tfrecord.records import encode_example, framed
from degrid.data.tfrecord.source import SCHEMAS, Schema
from degrid.files import atomic_write
from degrid.lookup import unknown
from degrid.types import RGB, Dataset, OnProgress, Progress, Sample, UserError


def write_tfrecord(
    dataset: Dataset, path: str | Path, schema: str = "encoded", progress: OnProgress | None = None
) -> None:
    """Write a dataset as one TFRecord file. If anything fails, an existing file of that name is left untouched.

    Upright JPEG files are copied byte for byte and all other images are written as PNG, so that no pixel changes.
    Labels hold train ids; 255 is void. The file does not contain the class names; see
    `degrid.data.formats.classes.write_class_table`.

    Args:
        path: must end in .tfrecord or .tfrecords; name the split in it, as in "voc_train.tfrecord".
        schema: "encoded" (github.com/NanqingD/DeepLabV3-Tensorflow), "raw" (github.com/sthalles/deeplab_v3;
            uncompressed pixels, without names) or "deeplab" (github.com/tensorflow/models, research/deeplab).
        progress: told how many samples are written.
    Raises:
        UserError: the schema is unknown, the path has another ending, the dataset is empty, a sample cannot be read, or
                the disk is full.
    """
    if schema not in SCHEMAS:
        raise unknown("TFRecord format", schema, SCHEMAS)
    if not is_record_file(Path(path)):
        raise UserError(f"expected a file called NAME.tfrecord, preferably with the split in its name; got {path}")
    if len(dataset) == 0:
        raise UserError("nothing to write: the dataset holds no image")
    if bands_in(dataset).count != 3:
        raise UserError(f"TFRecord files hold images of 3 channels; these have {bands_in(dataset).count}")
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        for index in range(len(dataset)):
            stream.write(framed(encode_example(_features(dataset, index, SCHEMAS[schema]))))
            if progress:
                progress(Progress("writing", index + 1, len(dataset)))


def _features(dataset: Dataset, index: int, schema: Schema) -> dict[str, int | bytes]:
    sample = dataset[index]
    height, width = sample.label.shape
    features: dict[str, int | bytes] = {schema.height: height, schema.width: width}
    if schema.raw:
        features[schema.image] = _pixels(sample).tobytes()
        features[schema.label] = sample.label.numpy().tobytes()
        return features
    image = _jpeg_file(dataset, index, sample)
    image_format = "JPEG" if image else "PNG"
    # The programs differ in the case of these names.
    case = str.lower if schema.channels else str.upper
    for key, value in (
        (schema.filename, os.fsencode(sample.name)),
        (schema.image, image or png(_pixels(sample), level=1)),
        (schema.image_format, case(image_format).encode()),
        (schema.channels, 3),
        (schema.label, png(sample.label.numpy(), level=6)),
        (schema.label_format, case("PNG").encode()),
    ):
        if key:
            features[key] = value
    return features


def _pixels(sample: Sample) -> np.ndarray:
    return sample.image.permute(1, 2, 0).numpy()


def _jpeg_file(dataset: Dataset, index: int, sample: Sample) -> bytes:
    """The JPEG file behind a sample if every reader decodes it to the sample's pixels; otherwise empty."""
    if type(dataset) is not SourceDataset or dataset.bands != RGB:  # a subclass may change the image
        return b""
    data = dataset.sources[index].image_file()
    return data if plain_kind(data, sample.label.shape) == ".jpg" else b""
