"""Model folders: a network as model.safetensors and config.json, and back."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from degrid import config as configs
from degrid.arguments import checked, fitted
from degrid.config import ModelConfig
from degrid.contracts import DressedConv
from degrid.exporters.runtime import ExportedModel
from degrid.exporters.table import find_exported
from degrid.files import atomic_write, blaming, check_utf8, read_json, write_json
from degrid.lookup import file_meant, some
from degrid.model_places import is_on_hub, place_of
from degrid.models import ENCODERS, Segmenter
from degrid.models.weights import WithoutRandomValues, with_stem
from degrid.networks import build_model
from degrid.types import LabelSpace, Preprocess, UserError
from degrid.version import VERSION
from degrid.weight_names import load_weights

MODEL_FORMAT = "degrid model 1"
CLASSIFIERS = ("head.classifier.", "head.branches.")
"""Beginnings of the names of classifiers, in v3 and v2 heads."""


@checked
def save(model: nn.Module, path: str | os.PathLike[str], *, half: bool = False) -> None:
    """Write a model folder: model.safetensors and config.json, which `load` reads anywhere, without pickle.

    Args:
        half: weights of convolutions are rounded to float16, so that the file takes half the space; all vectors, such
            as batch norm's, stay as they are. `load` gives a float32 network all the same.
    Raises:
        UserError: not a degrid model, or one that was smoothed without a record in its settings; or the place cannot be
            written to.
    """
    if not isinstance(model, Segmenter) or not isinstance(model.config, ModelConfig):
        raise UserError("only models built by degrid can be saved as a model folder; use torch.save for others")
    _check_smoothing(model, model.config)
    folder = Path(path)
    check_utf8(folder)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if half:
        weights = {key: value.half() if value.ndim > 1 else value for key, value in weights.items()}
    for alias, key in _aliases(model).items():  # safetensors holds each shared tensor once
        if key != alias:
            del weights[alias]
    preprocess = dataclasses.asdict(model.preprocess)
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    write_json(
        folder / "config.json",
        {
            "format": MODEL_FORMAT,
            "degrid": VERSION,
            "model": {**configs.to_dict(model.config), "pretrained": False},
            "preprocess": preprocess,
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(model.labels.names, model.labels.colors, strict=True)
            ],
        },
    )


def _check_smoothing(model: Segmenter, config: ModelConfig) -> None:
    """Refuse a model from whose settings it would be built again without its operator.

    Raises:
        UserError: it was smoothed after it was built.
    """
    dressed = (layer for layer in model.modules() if isinstance(layer, DressedConv) and hasattr(layer, "smoothing"))
    found = next((layer.operator_name for layer in dressed), None)
    if found and config.smoothing.operator == "regular":
        raise UserError(
            f"this model was smoothed by {found} after it was built, and would be loaded without it: its settings "
            f'(model.config.smoothing) say "regular": build it with operator="{found}", and load_state_dict the weights'
        )


@checked
def load(path: str | os.PathLike[str]) -> Segmenter:
    """The model in a model folder, or in the model/ of a run folder; in evaluation mode.

    Args:
        path: the folder; "camvid-mobilenetv2", the model that comes with degrid; or hf:OWNER/NAME on the hub.
    Raises:
        UserError: no such folder, a damaged file, or weights that belong to another model; see also
            `degrid.model_places.fetched`.
    """
    folder = _find_folder(path)
    config, preprocess, labels = _read_config(folder)
    with WithoutRandomValues():  # load_weights makes sure that each weight gets a value
        model = build_model(_with_preprocess(config, preprocess), labels)
    file = folder / "model.safetensors"
    load_weights(model, _with_aliases(model, _read_weights(file)), file)
    model.config = config
    return model.eval()


def open_model(path: str | os.PathLike[str]) -> Segmenter | ExportedModel:
    """The model in a model folder or run folder, or in a file that `degrid export` wrote; in evaluation mode.

    Args:
        path: the folder or file, or a name as for `load`; for a format of your own "module:Class=FILE".
    Raises:
        UserError: see `load` and `ExportedModel`.
    """
    return ExportedModel(path) if find_exported(path) else load(path)


def read_settings(path: str | os.PathLike[str]) -> ModelConfig:
    """The settings of the network in a model folder or run folder, its input's mean and deviation included.

    Raises:
        UserError: see `load`.
    """
    config, preprocess, _ = _read_config(_find_folder(path))
    return _with_preprocess(config, preprocess)


def initialise_from(model: Segmenter, path: str | os.PathLike[str], head: bool = True) -> list[str]:
    """Give a network the weights in a model folder or run folder, except where it is meant to differ.

    Gives the names that start anew: the classifier, where the classes are others, and smoothing parameters that the
    folder's network does not have.

    Args:
        head: false leaves the whole head as it is.
    Raises:
        UserError: the folder holds another network; see also `load`.
    """
    file = _find_folder(path) / "model.safetensors"
    weights = _with_aliases(model, _read_weights(file))
    anew_too = ("head.",) if not head else CLASSIFIERS if other_classes(model, path) else ()
    state = model.state_dict()
    given = with_stem(state, {key: value for key, value in weights.items() if not key.startswith(anew_too)})
    fits = {key: value for key, value in given.items() if key in state and value.shape == state[key].shape}
    anew = [key for key in state if key not in fits]
    differing = [*anew, *(key for key in given if key not in state)]
    wrong = [key for key in differing if not _may_differ(key, state, head)]
    if wrong:
        raise UserError(
            f"{file} holds another network: {len(wrong)} tensors do not fit ({some(wrong)}); "
            "degrid info shows what is in a folder"
        )
    model.load_state_dict(fits, strict=False)
    return anew


def other_classes(model: Segmenter, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The classes in a model folder or run folder where they are not the network's; numbered ones can be any."""
    there, here = _read_config(_find_folder(path))[2].names, model.labels.names
    numbered = LabelSpace.of_size(len(here)).names
    return () if there == here or (numbered in (there, here) and len(there) == len(here)) else there


def _may_differ(key: str, state: dict[str, Tensor], head: bool) -> bool:
    """Parameters of smoothing may, and of the network its classifier; its whole head where that is left as it is."""
    return ".smoothing." in key or (key in state and key.startswith(CLASSIFIERS if head else "head."))


def _find_folder(path: str | os.PathLike[str]) -> Path:
    """The folder that holds config.json and model.safetensors.

    Raises:
        UserError: there is none.
    """
    folder = place_of(path)
    if is_on_hub(path):
        check_foreign(folder, path)
    check_utf8(folder)
    if folder.is_file():
        its_own = (folder.parent / "config.json").exists() or (folder.parent / "run.json").exists()
        way = f"give {folder.parent}" if its_own else "turn a checkpoint into one with degrid convert"
        raise UserError(f"expected a model folder or run folder, got the file {folder}; {way}")
    if (folder / "model" / "config.json").exists():
        return folder / "model"
    if (folder / "run.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"the run in {folder} has no model yet: it saves the first one at its first validation")
    if (folder / "encoder.safetensors").exists():
        raise UserError(
            f"{folder} holds ImageNet weights of an encoder, not a whole model; train with "
            f"--set model.pretrained={folder} (settings=...)"
        )
    if not (folder / "config.json").exists():
        meant = file_meant(folder) if not folder.exists() else ""
        raise UserError(f"no model in {folder}: expected config.json and model.safetensors, or a run folder.{meant}")
    return folder


def check_foreign(folder: Path, name: object) -> None:
    """Refuse what somebody put on the hub unless it is a model that needs none of their code.

    Raises:
        UserError: it is another thing, or its settings name a module.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
        raise UserError(f"{name} is not a degrid model: it lacks config.json or model.safetensors")
    config = _read_config(folder)[0]
    family, _, encoder = config.encoder.rpartition(":")
    known = (not family or family in ENCODERS) and re.fullmatch(r"[\w.-]+", encoder)
    if not known or ":" in config.network + config.smoothing.operator:
        parts = some((config.network, config.encoder, config.smoothing.operator))
        raise UserError(f"{name} names code outside degrid ({parts}), which is not run for models from the hub")


def _read_config(folder: Path) -> tuple[ModelConfig, Preprocess, LabelSpace]:
    file = folder / "config.json"
    values = read_json(file, "model config")
    if not isinstance(values, dict) or values.get("format") != MODEL_FORMAT:
        raise UserError(f"{file} is not a degrid model config")
    with blaming(f"{file} lacks or garbles a part of the model config:"):
        labels = LabelSpace(
            tuple(row["name"] for row in values["classes"]),
            tuple(tuple(row["color"]) for row in values["classes"]),
        )
        config = configs.from_dict(ModelConfig, values["model"], "model")
        given = values["preprocess"]
        mean, std = (fitted(tuple[float, ...], given[key], f"{file}: {key}") for key in ("mean", "std"))
        preprocess = Preprocess(mean, std, fitted(bool, given["bgr"], f"{file}: bgr"))
    return config, preprocess, labels


def _with_preprocess(config: ModelConfig, preprocess: Preprocess) -> ModelConfig:
    """The input belongs to the weights: it is the folder's, not the encoder's default."""
    return dataclasses.replace(config, pretrained=False, mean=preprocess.mean, std=preprocess.std, bgr=preprocess.bgr)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"no weights: {file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the weights {file}: the file is damaged or not safetensors") from error


def _with_aliases(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under all names that they have in the model; a file holds a shared tensor once."""
    return weights | {alias: weights[key] for alias, key in _aliases(model).items() if key in weights}


def _aliases(model: nn.Module) -> dict[str, str]:
    """The first name of each tensor that has several in the state dict, by the others."""
    first: dict[tuple[int, int], str] = {}
    names = {}
    for key, value in model.state_dict(keep_vars=True).items():
        owner = first.setdefault((value.data_ptr(), id(value)), key) if value.numel() else key
        if owner != key:
            names[key] = owner
    return names
