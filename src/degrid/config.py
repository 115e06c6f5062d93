"""Every knob of a run: frozen dataclasses, strict reading, overrides "a.b=c", JSON round trip.

Standard library only, so that the command line answers at once. The line below a field says what it does.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from degrid.lookup import did_you_mean
from degrid.types import UserError

C = TypeVar("C")


@dataclass(frozen=True)
class SmoothingConfig:
    """Which dilated convolutions are smoothed, and how."""

    operator: str = "regular"
    """A smoothing operator ("ssc", "average", "tent", ...), or "module:Class"; "regular" changes nothing."""
    max_rate: int = 4
    """Convolutions of a larger rate stay as they are."""
    part: str = "encoder"
    """encoder: leaves ASPP alone, as both papers do; all: ASPP too, up to max_rate."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the operator, such as {"sigma": "shared"}."""


@dataclass(frozen=True)
class ModelConfig:
    """A network; together with the class names it rebuilds the model of a model folder."""

    network: str = "deeplabv3plus"
    """deeplabv2, deeplabv2_largefov, deeplabv3 or deeplabv3plus."""
    encoder: str = "timm:resnet50"
    """timm:<name> of any timm network that supports the output stride; caffe:resnet101, slim:resnet_v1_50,
    slim:resnet_v2_50, .. as the original DeepLabs had them; or "module:Encoder"."""
    pretrained: bool | str = True
    """True: timm's ImageNet weights; a path: a local .safetensors or .pth file; False: random."""
    output_stride: int = 16
    """Image size over feature size where dilation takes over: 8, 16 or 32."""
    rates: tuple[int, ...] | None = None
    """ASPP rates; none: the paper's for this output stride."""
    multi_grid: tuple[int, ...] | None = None
    """Factors on the rates of the last stage's units, such as 1,2,4; none: no multi-grid."""
    uniform_rates: bool = False
    """true: every unit of a dilated stage has the stage's rate, as in the papers; false: the first unit keeps the rate
    before, as timm and torchvision do. caffe: and slim: encoders are always uniform."""
    channels: int = 256
    """Width of ASPP and decoder."""
    dropout: float = 0.1
    """Share of channels' values dropped before the classifier, 0 to 1."""
    separable: bool = False
    """Depthwise-separable convolutions in ASPP and decoder."""
    mean: tuple[float, float, float] | None = None
    """Input mean on the 0-255 scale, in the encoder's channel order; none: the encoder's own."""
    std: tuple[float, float, float] | None = None
    """Input deviation on the 0-255 scale; none: the encoder's own."""
    bgr: bool | None = None
    """Whether the encoder reads blue first; none: the encoder's own order."""
    resize: str | None = None
    """How logits are enlarged: half_pixel, align_corners or tf_legacy; none: half_pixel, with legacy tf_legacy."""
    scales: tuple[float, ...] = ()
    """Further scales of multi-scale input, such as 0.75,0.5; the maximum over the scales is taken."""
    legacy: bool = False
    """true: padding, resizing, batch norm and smoothing as the original TensorFlow code computes them, slips included,
    for weights that were trained with it; false: as the papers mean it."""
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)


@dataclass(frozen=True)
class DataConfig:
    """Where images and labels come from, and what training does with them."""

    path: str = "synthetic"
    """A folder, dataset.yaml or list file; "synthetic" for the built-in scenes; or "module:Dataset"."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to validate on; "" for none."""
    crop: tuple[int, int] = (512, 512)
    """Height and width of the training crop, pixels."""
    centred: bool = False
    """true: crop around the middle of the image; false: anywhere."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale factor."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of brightness, contrast, saturation (0 to 1) and hue (0 to 0.5) changes."""
    workers: int = 0
    """Processes that load training images; 0 loads in the training process."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule."""

    name: str = "sgd"
    """sgd or adamw."""
    lr: float = 0.007
    """Learning rate of the encoder at step 0 (after warm-up)."""
    momentum: float = 0.9
    """SGD momentum."""
    weight_decay: float = 1e-4
    """On convolution weights only: not on biases, batch norm or smoothing parameters."""
    decay_all: bool = False
    """true: weight decay on every parameter."""
    head_factor: float = 10.0
    """Learning rate of the head's weights over the encoder's."""
    head_bias_factor: float = 20.0
    """Learning rate of the head's biases over the encoder's."""
    schedule: str = "poly"
    """poly, cosine or step."""
    power: float = 0.9
    """Poly decay: lr * (1 - step / steps) ** power; 0 keeps the rate constant."""
    step_every: int = 2000
    """Steps after which the schedule "step" lowers the rate."""
    step_factor: float = 0.1
    """What the schedule "step" multiplies the rate by."""
    warmup: int = 0
    """Steps of linear warm-up."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how."""

    init: str = ""
    """A model folder or run folder whose weights to start from; "": none."""
    init_head: bool = True
    """false: only the encoder takes its weights from there."""
    steps: int = 30_000
    """Optimiser steps."""
    epochs: float = 0.0
    """Passes over the training images, with a validation after each: then they count, not steps and eval_every; 0: off.
    """
    cyclic: bool = False
    """true: cycles of eval_every steps and a validation; log.txt also has the lines of Ziegler et al.'s train_test and
    its mIoU on the cycle's crops. With compat each cycle sees the same crops and repeats its last step."""
    batch_size: int = 8
    """Images per micro-batch."""
    accumulate: int = 1
    """Micro-batches per optimiser step; the loss is the mean over the valid pixels of all of them."""
    batch_norm: str = "train"
    """train: batch statistics; frozen: statistics and affine parameters stay as loaded."""
    loss_size: str = "label"
    """label: logits are enlarged to the label; logits: labels are reduced (nearest) to the logits."""
    loss: str = "cross_entropy"
    """cross_entropy, ohem (hard pixels), focal, dice or lovasz; several joined by "+", such as cross_entropy+dice; or
    "module:Name", a function of logits and label."""
    label_smoothing: float = 0.0
    """Share of the target that cross_entropy and ohem spread over all classes; 0: none."""
    focal_gamma: float = 2.0
    """How much less focal counts pixels that are right already; 0: cross-entropy."""
    ohem_share: float = 0.25
    """Share of each micro-batch's valid pixels, the hardest, that ohem keeps."""
    class_weights: str = "none"
    """sqrt_median_frequency or median_frequency: rare classes weigh more; numbers such as 1,2,0.5, one per class; or
    none. Dice and lovasz count all classes the same whatever this says."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights that is evaluated and saved; 0: off."""
    precision: str = "auto"
    """float32, bfloat16 (autocast), or auto: bfloat16 where the hardware multiplies in it, else float32."""
    checkpoint_activations: bool = False
    """true: residual blocks keep their input only and are computed again for their gradient: large crops in the memory
    of small ones, for a third more time."""
    scales_in_turn: bool = False
    """true: of multi-scale input, one scale's feature maps are in memory at a time; the same gradients, for a third
    more time."""
    channels_last: bool = True
    """Memory layout of weights and images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU where there is one."""
    eval_every: int = 1000
    """Steps between validations."""
    save_every: int = 0
    """Steps between checkpoints; 0: at every validation."""
    keep_checkpoints: bool = False
    """true: also keep the state of every validation, as step_N.ckpt, to go on from."""
    trackers: str = ""
    """Who else records the run: wandb or mlflow, or both joined by "+"; "": nobody."""
    seed: int = 0
    """Seed of initial weights, order of images and augmentation."""


@dataclass(frozen=True)
class RunConfig:
    """One complete run. `degrid train` writes it to run.json; that file repeats the run."""

    name: str = "run"
    """Names the run folder when none is given."""
    then: str = ""
    """A recipe that goes on from this run's best model, in a folder of its own beside this one; "": none."""
    compat: bool = False
    """true: a recipe follows the original's code where that differs from what its paper means."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[C], values: object, where: str = "") -> C:
    """Build a config from plain values; keys that are not given keep their defaults.

    Raises:
        UserError: an unknown key (with the closest known one) or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'config'}: expected a table of settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise UserError(f'unknown setting "{path}".{did_you_mean(str(key), hints)} Known here: {", ".join(hints)}')
        given[key] = _convert(hints[key], value, path)
    return kind(**given)


def override(config: C, assignments: list[str]) -> C:
    """Apply "a.b=c" settings; the value is JSON, or else taken as text, or a comma list for a tuple.

    Raises:
        UserError: no "=", an unknown setting, or a value of the wrong type.
    """
    values = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f'expected a setting like "train.steps=2000", got "{assignment}"')
        _assign(values, config, path.strip(), _parse(text.strip()))
    return from_dict(type(config), values)


def _assign(values: dict[str, Any], config: Any, path: str, value: object) -> None:
    *groups, last = path.split(".")
    node = values
    for depth, group in enumerate(groups):
        if not isinstance(node.get(group), dict):
            known = [key for key, inner in node.items() if isinstance(inner, dict)]
            here = ".".join([*groups[:depth], group])
            raise UserError(
                f'unknown setting "{path}": no group "{here}".{did_you_mean(group, known)} '
                f"Groups here: {', '.join(known) or 'none'}"
            )
        node = node[group]
    if last not in node and groups[-1:] != ["options"]:
        hint = did_you_mean(last, node) or _elsewhere(values, last)
        raise UserError(f'unknown setting "{path}".{hint} Known here: {", ".join(node)}')
    node[last] = value


def _elsewhere(values: dict[str, Any], key: str, prefix: str = "") -> str:
    """' Did you mean "train.steps"?' when the key exists in another group."""
    for name, inner in values.items():
        if isinstance(inner, dict):
            if key in inner:
                return f' Did you mean "{prefix}{name}.{key}"?'
            deeper = _elsewhere(inner, key, f"{prefix}{name}.")
            if deeper:
                return deeper
    return ""


def _parse(text: str) -> object:
    lowered = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _convert(hint: Any, value: object, path: str) -> Any:
    """Check `value` against a type hint; JSON lists and comma texts become tuples."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, path)
    if origin is tuple:
        return _convert_tuple(typing.get_args(hint), value, path)
    if origin is dict:
        if isinstance(value, dict):
            return dict(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    raise UserError(f'setting "{path}": expected {_describe(hint)}, got {value!r}')


def _convert_union(options: tuple[Any, ...], value: object, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is not type(None):
            try:
                return _convert(option, value, path)
            except UserError:
                continue
    expected = " or ".join("none" if option is type(None) else _describe(option) for option in options)
    raise UserError(f'setting "{path}": expected {expected}, got {value!r}')


def _convert_tuple(hints: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [_parse(part.strip()) for part in value.split(",")]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list | tuple):
        raise UserError(f'setting "{path}": expected numbers separated by commas, got {value!r}')
    each = [hints[0]] * len(value) if len(hints) == 2 and hints[1] is Ellipsis else list(hints)
    if len(each) != len(value):
        raise UserError(f'setting "{path}": expected {len(each)} values, got {len(value)}: {value!r}')
    return tuple(_convert(hint, item, path) for hint, item in zip(each, value, strict=True))


def _describe(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint in names:
        return names[hint]
    return "numbers separated by commas" if typing.get_origin(hint) is tuple else "a table"
