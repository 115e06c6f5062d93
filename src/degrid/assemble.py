"""The only place where settings meet code: config in, plain objects out."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import degrid
from degrid import config as configs
from degrid import recipes
from degrid.catalog import lookup
from degrid.config import ModelConfig, RunConfig, SmoothingConfig
from degrid.data import TrainTransform, open_dataset, training_batches
from degrid.engine.checkpoint import load_weights
from degrid.engine.device import PRECISIONS, pick_device
from degrid.engine.evaluate import evaluate
from degrid.engine.log import RunLog
from degrid.engine.losses import CLASS_WEIGHTS, LOSS_SIZES, median_frequency_weights
from degrid.engine.optim import make_optimizer, moving_average, parameter_groups, poly_schedule
from degrid.engine.train import Training
from degrid.engine.train import train as train_loop
from degrid.files import atomic_write, read_json, write_json
from degrid.image import overlay_classes
from degrid.models import NETWORKS, Segmenter, freeze_batch_norm
from degrid.smoothing import rate_at_most, smooth_dilated_convs
from degrid.types import Dataset, LabelSpace, Preprocess, Sample, Scores, UserError

MODEL_FORMAT = "degrid model 1"


# ---- models -------------------------------------------------------------------------------------------------


def build_model(config: ModelConfig, labels: LabelSpace) -> Segmenter:
    """The network that a config describes, smoothed by the public retrofit.

    Raises:
        UserError: an unknown name or an impossible combination.
    """
    preprocess = None
    if config.mean is not None or config.std is not None:
        if config.mean is None or config.std is None:
            raise UserError("model.mean and model.std go together; only one is set")
        preprocess = Preprocess(config.mean, config.std)
    model: Segmenter = lookup(NETWORKS, config.network, "network")(
        config.encoder,
        labels,
        pretrained=config.pretrained,
        output_stride=config.output_stride,
        rates=config.rates,
        multi_grid=config.multi_grid,
        channels=config.channels,
        dropout=config.dropout,
        separable=config.separable,
        preprocess=preprocess,
    )
    smoothing = config.smoothing
    if smoothing.part not in ("encoder", "all"):
        raise UserError(f'setting "model.smoothing.part": expected encoder or all, got "{smoothing.part}"')
    if smoothing.operator != "regular":
        part = model.encoder if smoothing.part == "encoder" else model
        smooth_dilated_convs(part, smoothing.operator, rate_at_most(smoothing.max_rate), **smoothing.options)
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
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"expected a model folder or run folder, got the file {folder}; try {folder.parent}")
    if (folder / "model" / "config.json").exists():
        folder = folder / "model"
    elif (folder / "run.json").exists() and not (folder / "config.json").exists():
        raise UserError(f"the run in {folder} has no model yet: it saves the first one at its first validation")
    if not (folder / "config.json").exists():
        raise UserError(f"no model in {folder}: expected config.json and model.safetensors, or a run folder")
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
    model = build_model(dataclasses.replace(config, pretrained=False, mean=preprocess.mean, std=preprocess.std), labels)
    file = folder / "model.safetensors"
    try:
        weights: dict[str, Tensor] = load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"no weights: {file} is missing") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read the weights {file}: the file is damaged or not safetensors") from error
    weights |= {alias: weights[key] for alias, key in _aliases(model).items() if key in weights}
    load_weights(model, weights, file)
    model.config = config
    return model.eval()


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


# ---- runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunResult:
    """Where a run left its results."""

    folder: Path
    best_miou: float | None

    def __str__(self) -> str:
        score = f"best val mIoU {100 * self.best_miou:.2f} %; " if self.best_miou is not None else ""
        return f"{score}model: {self.folder / 'model'}; try: degrid predict {self.folder} IMAGES"


def run(config: RunConfig, folder: Path, *, resume: bool = False, quiet: bool = False) -> RunResult:
    """Train as a config says; everything the run leaves is in `folder`.

    Args:
        folder: the run folder; must not hold a run already, unless `resume`.
        resume: continue the run in `folder` with its own settings; `config` is ignored.
        quiet: nothing on the console.
    Raises:
        UserError: settings or data that cannot be used, or a folder that is taken.
        Stopped: the user stopped the run; it is saved.
    """
    if resume:
        config = recipes.load(str(folder / "run.json"))
    elif (folder / "run.json").exists():
        raise UserError(f"{folder} holds a run already; continue it with --resume {folder}, or choose another -o")
    _check(config)
    data, settings = config.data, config.train
    dataset = open_dataset(data.path, data.train)
    held_out: Dataset | None = open_dataset(data.path, data.val, labels=dataset.labels) if data.val else None
    device = pick_device(settings.device)
    torch.manual_seed(settings.seed)
    model = build_model(config.model, dataset.labels)
    model.to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    if settings.batch_norm == "frozen":
        freeze_batch_norm(model)
    state = _training_state(config, model)
    if resume and (folder / "last.ckpt").exists():
        state.restore(folder / "last.ckpt")
    if not resume:
        write_json(folder / "run.json", _provenance(config))

    transform = TrainTransform(crop=data.crop, scale=data.scale, flip=data.flip, jitter=data.jitter)
    batches = training_batches(
        dataset, transform, settings.batch_size, settings.seed, state.step * settings.accumulate, data.workers
    )
    schedule = poly_schedule(config.optim.lr, settings.steps, config.optim.power, config.optim.warmup)
    with RunLog(folder, settings.steps, state.step, quiet) as log:
        log.say(_greeting(config, model, dataset, held_out, device, state.step))

        def validate(network: nn.Module, step: int) -> Scores:
            assert held_out is not None
            panels = _Panels(held_out)
            found = evaluate(
                network,
                held_out,
                device=str(device),
                precision=settings.precision,
                boundary=False,
                on_image=panels.collect,
            )
            for name, picture in panels.pictures.items():
                log.panel(step, f"val/{name}", picture)
            return found

        train_loop(
            state,
            batches,
            folder,
            log,
            steps=settings.steps,
            lr_at=schedule,
            accumulate=settings.accumulate,
            loss_size=settings.loss_size,
            class_weights=_class_weights(settings.class_weights, dataset),
            precision=settings.precision,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            validate=validate if held_out is not None else None,
            publish=lambda network: save(_segmenter(network, model), folder / "model"),
        )
    return RunResult(folder, state.best_miou if held_out is not None else None)


def _segmenter(network: nn.Module, model: Segmenter) -> Segmenter:
    assert isinstance(network, Segmenter)
    network.config = model.config  # a deep copy has its own
    return network


def _training_state(config: RunConfig, model: Segmenter) -> Training:
    optim = config.optim
    groups = parameter_groups(model, optim.weight_decay, optim.head_factor, optim.head_bias_factor)
    optimizer = make_optimizer(optim.name, groups, optim.lr, optim.momentum)
    average = moving_average(model, config.train.ema) if config.train.ema else None
    return Training(model, optimizer, average)


def _check(config: RunConfig) -> None:
    """Refuse settings that could only fail later."""
    settings, data = config.train, config.data
    for path, value in (
        ("train.steps", settings.steps),
        ("train.batch_size", settings.batch_size),
        ("train.accumulate", settings.accumulate),
        ("train.eval_every", settings.eval_every),
        ("data.crop", min(data.crop)),
    ):
        if value < 1:
            raise UserError(f'setting "{path}": expected at least 1, got {value}')
    for path, choice, known in (
        ("train.loss_size", settings.loss_size, LOSS_SIZES),
        ("train.batch_norm", settings.batch_norm, ("train", "frozen")),
        ("train.precision", settings.precision, PRECISIONS),
        ("train.class_weights", settings.class_weights, tuple(CLASS_WEIGHTS)),
    ):
        if choice not in known:
            raise UserError(f'setting "{path}": expected {" or ".join(known)}, got "{choice}"')
    if not 0 < data.scale[0] <= data.scale[1]:
        raise UserError(f'setting "data.scale": expected 0 < smallest <= largest, got {data.scale}')
    if not 0 <= settings.ema < 1:
        raise UserError(f'setting "train.ema": expected 0 (off) or a decay below 1, got {settings.ema}')


def _class_weights(kind: str, dataset: Dataset) -> Tensor | None:
    if kind == "none":
        return None
    pixels = torch.zeros(256, dtype=torch.int64)
    for index in range(len(dataset)):
        pixels += torch.bincount(dataset[index].label.reshape(-1).long(), minlength=256)
    return median_frequency_weights(pixels[: len(dataset.labels)], CLASS_WEIGHTS[kind])


def _provenance(config: RunConfig) -> dict[str, Any]:
    """What it takes to understand and repeat a run."""
    return {
        "config": configs.to_dict(config),
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "versions": {
            "degrid": degrid.__version__,
            "git": _git_hash(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "machine": {
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }


def _git_hash() -> str | None:
    """Commit of the source tree this package runs from, with "+" for uncommitted changes; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside somebody else's repository: only a tracked file counts.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain") else "")


def _greeting(
    config: RunConfig,
    model: Segmenter,
    dataset: Dataset,
    held_out: Dataset | None,
    device: torch.device,
    start: int,
) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    at = f", from step {start}" if start else ""
    return (
        f"{config.model.network} on {config.model.encoder}, output stride {config.model.output_stride}, "
        f"{config.model.smoothing.operator} dilated convolutions, {millions:.1f} M parameters; "
        f"{len(dataset)} training and {len(held_out) if held_out is not None else 0} validation images, "
        f"{len(dataset.labels)} classes; {config.train.steps} steps of "
        f"{config.train.batch_size * config.train.accumulate} images on {device}{at}"
    )


class _Panels:
    """Image | truth | prediction of a few images spread over a dataset, for TensorBoard."""

    def __init__(self, dataset: Dataset, count: int = 4) -> None:
        self.wanted = {round(i * (len(dataset) - 1) / max(1, count - 1)) for i in range(count)}
        self.labels = dataset.labels
        self.pictures: dict[str, np.ndarray] = {}

    def collect(self, index: int, sample: Sample, ids: Tensor) -> None:
        if index in self.wanted:
            image = sample.image.permute(1, 2, 0).numpy()
            truth = overlay_classes(image, sample.label.numpy(), self.labels)
            guess = overlay_classes(image, ids.numpy(), self.labels)
            self.pictures[sample.name] = np.concatenate([image, truth, guess], axis=1)
