"""The scores of a model with a confusion matrix for each image, computed once for the same model and images."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from degrid.data.inspection.counting import content_key
from degrid.engine.evaluation.bootstrap import ImageConfusions
from degrid.engine.evaluation.evaluate import OnImage, score
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import predictor_of
from degrid.exporters.table import find_exported
from degrid.files import kept_on_disk
from degrid.model_places import place_of
from degrid.types import Dataset, Scores
from degrid.verbs.evaluate import each_of
from degrid.verbs.open_network import AnyModel


@dataclass(frozen=True)
class Scored:
    """What a model got on a dataset.

    Attributes:
        confusions: of each image, int64 [N,C,C]; rows are truth, columns prediction.
        scores: over all images.
        precision: the precision of the network, as a sentence.
        windowed: how many images were processed in windows; none unless the options ask for it.
    """

    confusions: np.ndarray
    scores: Scores
    precision: str
    windowed: int


def scored(
    network: nn.Module,
    dataset: Dataset,
    device: str,
    precision: str,
    options: InferenceOptions | None,
    count: OnImage | None,
    boundary: bool = False,
) -> Scored:
    """Score a network; the arguments are those of `degrid.evaluate`."""
    collect = ImageConfusions(len(dataset.labels))
    with predictor_of(network, device, precision, options, whole=True) as predictor:
        scores = score(predictor, dataset, boundary=boundary, on_image=each_of(collect, count))
    return Scored(collect.stacked(), scores, str(predictor.network), predictor.windowed)


def scored_once(model: AnyModel, dataset: Dataset, settings: str, score: Callable[[], Scored]) -> Scored:
    """The result of `score`, or its earlier result if neither the model's files nor the images have changed since.

    Args:
        settings: whatever else the scores depend on.
    """
    weights = _digest(model)
    key = content_key("scored", dataset)
    if not (weights and key):
        return score()
    return _unpacked(kept_on_disk([*key, weights, settings, torch.__version__], lambda: _packed(score())))


def files_of(model: AnyModel) -> list[Path]:
    """The files that a model is: of a folder its weights and their description; none of a network that was passed.

    Raises:
        UserError: a model on the hub that cannot be fetched.
    """
    if isinstance(model, nn.Module):
        return []
    if exported := find_exported(model):
        exporter, path = exported
        return [file for each in exporter.files(path) for file in (each, *sorted(each.rglob("*"))) if file.is_file()]
    folder = place_of(model)
    names = [place / name for place in (folder, folder / "model") for name in ("model.safetensors", "config.json")]
    return [file for file in names if file.is_file()]


def _digest(model: AnyModel) -> str:
    """The hash of the contents of a model's files; empty for a network that was passed as an object."""
    digest, files = hashlib.sha256(), files_of(model)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest() if files else ""


def _packed(found: Scored) -> dict[str, Any]:
    """The scores as plain values for JSON."""
    counts = base64.b64encode(zlib.compress(found.confusions.tobytes(), 1)).decode()
    values = {"precision": found.precision, "windowed": found.windowed, "scores": found.scores.to_dict()}
    return {**values, "confusions": counts}


def _unpacked(values: dict[str, Any]) -> Scored:
    scores = Scores(**{name: _tuples(value) for name, value in values["scores"].items()})
    counts = np.frombuffer(zlib.decompress(base64.b64decode(values["confusions"])), np.int64)
    classes = len(scores.class_names)
    return Scored(counts.reshape(-1, classes, classes), scores, values["precision"], values["windowed"])


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
