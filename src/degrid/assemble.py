"""Where settings become a network, and a network a folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import degrid
from degrid import config as configs
from degrid import recipes
from degrid.config import ModelConfig, SmoothingConfig
from degrid.engine.checkpoint import load_weights
from degrid.export import ENDINGS, ExportedModel
from degrid.files import atomic_write, read_json, write_json
from degrid.models import EncoderSettings, Segmenter, build_network
from degrid.smoothing import rate_at_most, smooth_dilated_convs
from degrid.types import LabelSpace, Preprocess, UserError

MODEL_FORMAT = "degrid model 1"
CLASSIFIERS = ("head.classifier.", "head.branches.")
"""Beginnings of the names of classifiers, in v3 and v2 heads."""


def build_model(config: ModelConfig, labels: LabelSpace) -> Segmenter:
    """The network that a config describes, smoothed by the public retrofit.

    Raises:
        UserError: an unknown name or an impossible combination.
    """
    preprocess = None
    if config.mean is not None or config.std is not None:
        if config.mean is None or config.std is None:
            raise UserError("model.mean and model.std go together; only one is set")
        preprocess = Preprocess(config.mean, config.std, bool(config.bgr))
    elif config.bgr is not None:
        raise UserError("model.bgr needs model.mean and model.std beside it, in that order of channels")
    model = build_network(
        config.network,
        config.encoder,
        labels,
        body=EncoderSettings(
            config.output_stride,
            config.pretrained,
            config.multi_grid,
            config.uniform_rates,
            preprocess,
            config.legacy,
        ),
        rates=config.rates,
        channels=config.channels,
        dropout=config.dropout,
        separable=config.separable,
        resize=config.resize or ("tf_legacy" if config.legacy else "half_pixel"),
        scales=config.scales,
    )
    smoothing = config.smoothing
    if smoothing.part not in ("encoder", "all"):
        raise UserError(f'setting "model.smoothing.part": expected encoder or all, got "{smoothing.part}"')
    if smoothing.operator != "regular":
        part = model.encoder if smoothing.part == "encoder" else model
        where = rate_at_most(smoothing.max_rate)
        smooth_dilated_convs(part, smoothing.operator, where, legacy=config.legacy, **smoothing.options)
    model.config = config
    return model


def _network(
    name: str, encoder: str, num_classes: int | LabelSpace, operator: str, settings: dict[str, Any]
) -> Segmenter:
    labels = num_classes if isinstance(num_classes, LabelSpace) else LabelSpace.of_size(num_classes)
    smoothing = SmoothingConfig(
        operator,
        settings.pop("max_rate", SmoothingConfig.max_rate),
        options=settings.pop("operator_options", {}),
    )
    values = {"network": name, "encoder": encoder, "smoothing": configs.to_dict(smoothing), **settings}
    return build_model(configs.from_dict(ModelConfig, values), labels)


def deeplabv2(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 8,
    operator: str = "regular",
    pretrained: bool | str = False,
    large_fov: bool = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v2: an encoder and the summed ASPP, or LargeFOV.

    Args:
        encoder: "timm:<name>".
        num_classes: the number of classes, or their names and colours.
        output_stride: 8, 16 or 32.
        operator: smoothing operator for the dilated convolutions of rate `max_rate` (default 4) or less.
        pretrained: True for timm's ImageNet weights, or a local file.
        settings: the other fields of `degrid.config.ModelConfig`; `max_rate` and `operator_options`.
    Source: arXiv 1606.00915, section 3.
    """
    name = "deeplabv2_largefov" if large_fov else "deeplabv2"
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network(name, encoder, num_classes, operator, settings)


def deeplabv3(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 16,
    operator: str = "regular",
    pretrained: bool | str = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v3: an encoder and the concatenated ASPP with image pooling. Arguments as `deeplabv2`.

    Source: arXiv 1706.05587, section 3.
    """
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network("deeplabv3", encoder, num_classes, operator, settings)


def deeplabv3plus(
    encoder: str,
    num_classes: int | LabelSpace,
    *,
    output_stride: int = 16,
    operator: str = "regular",
    pretrained: bool | str = False,
    **settings: Any,
) -> Segmenter:
    """DeepLab v3+: v3 with a decoder that adds detail from the features at stride 4. Arguments as `deeplabv2`.

    Source: arXiv 1802.02611, section 3.
    """
    settings |= {"output_stride": output_stride, "pretrained": pretrained}
    return _network("deeplabv3plus", encoder, num_classes, operator, settings)


def save(model: Segmenter, path: str | os.PathLike[str]) -> None:
    """Write a model folder: model.safetensors and config.json, which `load` reads anywhere, without pickle.

    Raises:
        UserError: not a model of degrid, or the place cannot be written to.
    """
    if not isinstance(getattr(model, "config", None), ModelConfig):
        raise UserError("only models built by degrid can be saved as a model folder; use torch.save for others")
    folder = Path(path)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
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
            "degrid": degrid.__version__,
            "model": {**configs.to_dict(model.config), "pretrained": False},
            "preprocess": preprocess,
            "classes": [
                {"name": name, "color": color}
                for name, color in zip(model.labels.names, model.labels.colors, strict=True)
            ],
        },
    )


def load(path: str | os.PathLike[str]) -> Segmenter:
    """The model in a model folder, or in the model/ of a run folder; in evaluation mode.

    Raises:
        UserError: no such folder, a damaged file, or weights that belong to another model.
    """
    folder = find_model(path)
    config, preprocess, labels = _read_config(folder)
    model = build_model(_with_preprocess(config, preprocess), labels)
    file = folder / "model.safetensors"
    weights = _read_weights(file)
    weights |= {alias: weights[key] for alias, key in _aliases(model).items() if key in weights}
    load_weights(model, weights, file)
    model.config = config
    return model.eval()


def load_any(path: str | os.PathLike[str]) -> Segmenter | ExportedModel:
    """The model in a model folder or run folder, or in a file that `degrid export` wrote; in evaluation mode.

    Raises:
        UserError: see `load` and `ExportedModel`.
    """
    file = Path(path)
    return ExportedModel(file) if file.is_file() and file.suffix in ENDINGS else load(file)


def model_settings(path: str | os.PathLike[str]) -> ModelConfig:
    """The settings of the network in a model folder or run folder, its input's mean and deviation included.

    Raises:
        UserError: see `load`.
    """
    config, preprocess, _ = _read_config(find_model(path))
    return _with_preprocess(config, preprocess)


def start_from(model: Segmenter, path: str | os.PathLike[str], head: bool = True) -> list[str]:
    """Give a network the weights in a model folder or run folder, except where it is meant to differ.

    Gives the names that start anew: the classifier, where the number of classes differs, and smoothing parameters that
    the folder's network does not have.

    Args:
        head: false leaves the whole head as it is.
    Raises:
        UserError: the folder holds another network; see also `load`.
    """
    file = find_model(path) / "model.safetensors"
    given, state = _read_weights(file), model.state_dict()
    if not head:
        given = {key: value for key, value in given.items() if not key.startswith("head.")}
    given |= {alias: given[key] for alias, key in _aliases(model).items() if key in given}
    fits = {key: value for key, value in given.items() if key in state and value.shape == state[key].shape}
    anew = [key for key in state if key not in fits]
    wrong = [key for key in anew if not (key.startswith(CLASSIFIERS if head else "head.") or ".smoothing." in key)]
    wrong += [key for key in given if key not in state and ".smoothing." not in key]
    if wrong:
        raise UserError(
            f"{file} holds another network: {len(wrong)} tensors do not fit, {wrong[0]} among them; "
            "degrid info shows what is in a folder"
        )
    model.load_state_dict(fits, strict=False)
    return anew


def find_model(path: str | os.PathLike[str]) -> Path:
    """The folder that holds config.json and model.safetensors.

    Raises:
        UserError: there is none.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(
            f"expected a model folder or run folder, got the file {folder}; try {folder.parent}, or turn a checkpoint "
            "into a model folder with degrid convert"
        )
    if (folder / "model" / "config.json").exists():
        return folder / "model"
    if (folder / "run.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"the run in {folder} has no model yet: it saves the first one at its first validation")
    if (folder / "encoder.safetensors").exists():
        raise UserError(
            f"{folder} holds ImageNet weights of an encoder, not a whole model; train with "
            f"--set model.pretrained={folder}"
        )
    if not (folder / "config.json").exists():
        raise UserError(f"no model in {folder}: expected config.json and model.safetensors, or a run folder")
    return folder


def _read_config(folder: Path) -> tuple[ModelConfig, Preprocess, LabelSpace]:
    values = read_json(folder / "config.json", "model config")
    if not isinstance(values, dict) or values.get("format") != MODEL_FORMAT:
        raise UserError(f"{folder / 'config.json'} is not a model config of degrid")
    try:
        labels = LabelSpace(
            tuple(row["name"] for row in values["classes"]),
            tuple(tuple(row["color"]) for row in values["classes"]),
        )
        config = configs.from_dict(ModelConfig, values["model"], "model")
        preprocess = Preprocess(
            tuple(values["preprocess"]["mean"]),
            tuple(values["preprocess"]["std"]),
            values["preprocess"]["bgr"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} lacks or garbles a part of the model config: {error}") from error
    return config, preprocess, labels


def _with_preprocess(config: ModelConfig, preprocess: Preprocess) -> ModelConfig:
    """The input belongs to the weights: what the folder says, not what the encoder would want by default."""
    return dataclasses.replace(config, pretrained=False, mean=preprocess.mean, std=preprocess.std, bgr=preprocess.bgr)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except FileNotFoundError as error:
        raise UserError(f"no weights: {file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the weights {file}: the file is damaged or not safetensors") from error


def _aliases(model: nn.Module) -> dict[str, str]:
    """For each name in the state dict the first name of the same tensor, where it has several."""
    first: dict[tuple[int, int], str] = {}
    names = {}
    for key, value in model.state_dict(keep_vars=True).items():
        owner = first.setdefault((value.data_ptr(), id(value)), key) if value.numel() else key
        if owner != key:
            names[key] = owner
    return names


def open_model(name: str, num_classes: int) -> Segmenter:
    """A model folder, a run folder, or the untrained network of a recipe or run.json."""
    if Path(name).is_dir():
        return load(name)
    config = dataclasses.replace(recipes.load(name).model, pretrained=False)
    return build_model(config, LabelSpace.of_size(num_classes))


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" -> (512, 1024): height, width.

    Raises:
        UserError: another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f'expected a size like 512x1024 (height x width), got "{text}"')
    return int(parts[0]), int(parts[1])
