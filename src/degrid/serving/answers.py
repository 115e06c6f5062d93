"""What the server answers: the fields of its JSON, and how they are made from a prediction."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel

from degrid.analysis.field_numbers import mass_side
from degrid.data.formats.shapes.outlines import outlines
from degrid.data.formats.shapes.runs import packed, runs_of
from degrid.engine.inference.options import Prediction
from degrid.image import as_rgb, palette_image
from degrid.serving.uploads import RefusedError
from degrid.types import IGNORE_INDEX, LabelSpace

_MOST_EDGES = 2_000_000
"""Sides of pixels between classes, up to which outlines and run lengths are made."""


class Output(StrEnum):
    """What can be asked for beside the pixels per class."""

    ids = "ids"
    polygons = "polygons"
    rle = "rle"
    raw = "raw"
    image = "image"


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Health(BaseModel):
    """Whether the server works, and how many requests it has at the moment."""

    status: str
    requests: int


class Class(BaseModel):
    """A class of a model; its colour is red, green and blue, 0 to 255."""

    id: int
    name: str
    color: tuple[int, int, int]


class Model(BaseModel):
    """A model, and whether the receptive fields of its pixels can be asked for."""

    name: str
    classes: list[Class]
    bands: int
    precision: str
    receptive_fields: bool


class Models(BaseModel):
    """The models; the first is used where a request names none."""

    models: list[Model]


class Share(BaseModel):
    """How much of an image a class covers; `share` is a fraction of 1."""

    id: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    share: float


class Polygon(BaseModel):
    """Pixels of one class that are connected by their sides: x, y of the corners of their border, and of holes in it.

    Corners are those of pixels: pixel (x, y) reaches from (x, y) to (x + 1, y + 1). The score is the mean confidence.
    """

    id: int
    name: str
    area: int
    score: float | None
    outer: list[tuple[int, int]]
    holes: list[list[tuple[int, int]]]


class Runs(BaseModel):
    """COCO's packed run-length code: height and width, and the lengths of runs column by column."""

    size: tuple[int, int]
    counts: str


class RunLength(BaseModel):
    """All pixels of a class as COCO's results have them; the box is x, y, width, height, the score mean confidence."""

    category_id: int
    name: str
    segmentation: Runs
    area: int
    bbox: tuple[int, int, int, int]
    score: float | None


class Raw(BaseModel):
    """Class ids, and confidences from 0 to 255 for 0 to 1: a byte for each pixel, row by row, in zlib and base64."""

    ids: str
    confidence: str | None


class Predicted(BaseModel):
    """The prediction for one image; what was not asked for is left out.

    `ids` is a PNG of class ids with a palette (255: no data), `image` one of the image as the model saw it, in base64.
    """

    file: str
    width: int
    height: int
    classes: list[Share]
    ids: str | None = None
    polygons: list[Polygon] | None = None
    rle: list[RunLength] | None = None
    raw: Raw | None = None
    image: str | None = None


class Predictions(BaseModel):
    """The predictions for all images of a request, in their order."""

    model: str
    images: list[Predicted]


class ReceptiveField(BaseModel):
    """The receptive field of a pixel, whose class is given, within a part of the image, x, y, width and height.

    `map` holds a byte for each of its pixels, row by row, in zlib and base64: 255 times the square root of the
    influence over the greatest one. `size95` is the side in pixels of the smallest square around the pixel with 95 % of
    the influence.
    """

    model: str
    id: int
    name: str
    x: int
    y: int
    width: int
    height: int
    size95: int
    map: str


def answer_for(
    name: str, prediction: Prediction, confidence: np.ndarray | None, labels: LabelSpace, wanted: set[Output]
) -> dict[str, Any]:
    """A prediction as the fields of `Predicted`.

    Raises:
        RefusedError: outlines or run lengths of too many pieces.
    """
    ids = prediction.ids
    counts = np.bincount(ids.ravel(), minlength=256)
    found: dict[str, Any] = {"file": name, "width": ids.shape[1], "height": ids.shape[0]}
    found["classes"] = [
        {"id": index, "name": labels.names[index], "color": labels.colors[index], "pixels": int(counts[index])}
        | {"share": float(counts[index] / ids.size)}
        for index in range(len(labels))
        if counts[index]
    ]
    if Output.ids in wanted:
        found["ids"] = _text(png_of(palette_image(ids, labels)))
    if wanted & {Output.polygons, Output.rle}:
        _refuse_noise(name, ids)
        if Output.polygons in wanted:
            found["polygons"] = list(_polygons(ids, labels, confidence))
        if Output.rle in wanted:
            found["rle"] = [_run_length(ids, each["id"], labels, confidence) for each in found["classes"]]
    if Output.raw in wanted:
        sure = None if confidence is None else zipped(np.rint(confidence * 255).astype(np.uint8))
        found["raw"] = {"ids": zipped(ids), "confidence": sure}
    if Output.image in wanted:
        found["image"] = _text(png_of(Image.fromarray(as_rgb(prediction.image))))
    return found


def field_answer(name: str, field: np.ndarray, row: int, column: int, place: tuple[int, int]) -> dict[str, Any]:
    """An influence, float [h,w], of the pixel at this row and column of it, as the fields of `ReceptiveField`.

    Args:
        place: x and y of the field's first pixel in the image.
    """
    shown = np.rint(255 * np.sqrt(field / max(float(field.max()), 1e-30))).astype(np.uint8)
    height, width = field.shape
    found = {"model": name, "x": place[0], "y": place[1], "width": width, "height": height}
    return {**found, "size95": mass_side(field, 0.95, (row, column)), "map": zipped(shown)}


def png_of(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def zipped(values: np.ndarray) -> str:
    """An array of bytes, compressed by zlib, as base64."""
    return _text(zlib.compress(values.tobytes(), 3))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _refuse_noise(name: str, ids: np.ndarray) -> None:
    """Refuse a map of so many pieces that describing them would take long, and more than the map itself."""
    edges = np.count_nonzero(ids[1:] != ids[:-1]) + np.count_nonzero(ids[:, 1:] != ids[:, :-1])
    if edges > _MOST_EDGES:
        raise RefusedError(
            422, f"{name}: the classes consist of too many pieces for outlines and run lengths; ask for ids or raw"
        )


def _polygons(ids: np.ndarray, labels: LabelSpace, confidence: np.ndarray | None) -> Iterator[dict[str, Any]]:
    for each in outlines(ids, leave=(IGNORE_INDEX,), weights=confidence):
        sure = None if confidence is None else each.mean
        found = {"id": each.value, "name": labels.names[each.value], "area": each.area, "score": sure}
        yield {**found, "outer": each.outer.tolist(), "holes": [hole.tolist() for hole in each.holes]}


def _run_length(ids: np.ndarray, index: int, labels: LabelSpace, confidence: np.ndarray | None) -> dict[str, Any]:
    mask = ids == index
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "category_id": index,
        "name": labels.names[index],
        "segmentation": {"size": list(mask.shape), "counts": packed(runs_of(mask))},
        "area": int(np.count_nonzero(mask)),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "score": None if confidence is None else float(confidence[mask].mean()),
    }
