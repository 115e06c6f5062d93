"""Every setting of a run: frozen dataclasses, strict reading, overrides "a.b=c", JSON and back.

Uses the standard library only, so that the command line answers at once. The text below a field explains it;
`describe_settings` collects these texts.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from degrid.lookup import did_you_mean, flat
from degrid.types import UserError

C = TypeVar("C")
Settings = Iterable[str] | Mapping[str, object]
"""Settings such as {"train.steps": 2000}, ["train.steps=2000"] or "train.steps=2000"."""


@dataclass(frozen=True)
class SmoothingConfig:
    """Which dilated convolutions are smoothed, and how."""

    operator: str = "regular"
    """The smoothing operator: `decompose`, `gi`, `ssc`, `average`, `gaussian`, `aggregation` or `tent`; `regular`
    leaves the convolutions as they are; or a class of your own, `my_module:MyOperator`."""
    max_rate: int = 4
    """Convolutions with a larger dilation rate are left alone."""
    part: str = "encoder"
    """Where to look for them: `encoder` leaves ASPP alone, as both papers do; `all` includes it, up to `max_rate`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the operator: `sigma` (`gaussian`), `size` (`gaussian`, `average`) and `init` (`ssc`: start as
    `identity`, `tent` or `box`), as in `--set model.smoothing.options.sigma=shared`."""


@dataclass(frozen=True)
class ModelConfig:
    """The network. Together with the class names, these settings rebuild the model of a model folder."""

    network: str = "deeplabv3plus"
    """The head: `deeplabv2` (summed ASPP), `deeplabv2_largefov` (one rate), `deeplabv3`, `deeplabv3plus` (with a
    decoder); `deeplabv3_refined` (as torchvision and segmentation_models.pytorch build v3); `deeplabv3_keras_hub`,
    `deeplabv3_mmseg`, `deeplabv3_smp_separable`, `deeplabv3_speedinghzl`, `deeplabv3plus_detectron2_separable`,
    `deeplabv3plus_kazuto1011`, `deeplabv3plus_keras_hub`, `deeplabv3plus_mmseg`, `deeplabv3plus_nvidia`,
    `deeplabv3plus_nvidia_resnet`, `deeplabv3plus_paddleseg`, `deeplabv3plus_smp`, `deeplabv3plus_smp_dense`,
    `deeplabv3plus_tramac`, `deeplabv3plus_vainf` and `deeplabv3plus_vainf_separable` (as the projects of those names
    build them); `deeplabv3_bounded` and `deeplabv3plus_bounded` (ReLU6, as research/deeplab with
    `--use_bounded_activation`); `deeplabv3_linear` (without ReLU, as one TensorFlow implementation); `fcn` and `lraspp`
    of torchvision, and `lraspp_google`, none of which has dilated branches; or a function of your own,
    `my_module:my_head`."""
    encoder: str = "timm:resnet50"
    """The network below the head: `timm:NAME`, for any network of timm that has the output stride (docs/encoders.md);
    `caffe:resnet101` (or 50, 152), `slim:resnet_v1_101` (or 50, 152) and `slim:resnet_v2_101` (or 50, 152, 200), the
    ResNets of the original DeepLabs; `torchvision:mobilenet_v3_large`, or `..._lraspp`; networks as other projects
    changed them (`jfzhang95:xception`, `mobilenet_v2` or `drn_d_54`, `vainf:xception` or `mobilenet_v2`,
    `bubbliiiing:xception`, `tramac:xception`, `gluoncv:xception`, `mmseg:resnet50c`, `paddleseg:resnet50d`,
    `speedinghzl:resnet101s`, `nvidia:wider_resnet38`, `google:xception65`, `google:mobilenetv2_100`,
    `google:mobilenetv3_large`, `bonlime:xception65`, `smp:efficientnet-b0`, `smp:mobilenet_v2`,
    `transformers:mobilevit_s`, ...); or a class of your own, `my_module:MyEncoder`."""
    pretrained: bool | str = True
    """`true`: download timm's ImageNet weights; a path: a local file of any kind that `degrid convert` reads, or a
    folder made by it; `false`: random weights. The input that a file's weights expect is taken from the `config.json`
    beside it (as written by `degrid convert`, or by timm on the Hugging Face hub); without one it is the encoder's
    usual input, and training says so, and whether the batch norm statistics suggest another: see `mean`."""
    output_stride: int = 16
    """Image size over the size of the encoder's last feature map: 8, 16 or 32. Stages beyond it keep their resolution
    and are dilated."""
    rates: tuple[int, ...] | None = None
    """Dilation rates of ASPP, such as `6,12,18`; `none`: those of the paper for this output stride."""
    multi_grid: tuple[int, ...] | None = None
    """Factors on the dilation rates of the units in the encoder's last stage, such as `1,2,4`; `none`: all 1."""
    uniform_rates: bool = False
    """`true`: every unit of a dilated stage has the stage's rate, as in the papers; `false`: the convolution that had
    the stride keeps the rate of the stage before, as in timm and torchvision, and the features keep their values.
    `caffe:` and `slim:` encoders are always uniform."""
    channels: int = 256
    """Channels of ASPP and decoder (`deeplabv3` and `deeplabv3plus`)."""
    dropout: float = 0.1
    """Fraction of values dropped after ASPP, 0 to 1 (`deeplabv3` and `deeplabv3plus`)."""
    separable: bool = False
    """`true`: depthwise-separable convolutions in ASPP and decoder (`deeplabv3` and `deeplabv3plus`)."""
    head_resize: str | None = None
    """How ASPP's output is enlarged inside the decoder; takes the values of `resize`. `none`: `align_corners` for
    `deeplabv3plus_smp` and `deeplabv3plus_smp_dense`, otherwise `half_pixel`."""
    pooling_size: tuple[int, ...] | None = None
    """Height and width of the window over which ASPP's image pooling takes means, in pixels of the image, such as
    `512,1024`, for larger images; `none`: the whole image, whatever its size."""
    low_level_channels: int = 48
    """Channels that the fine feature is reduced to before the decoder joins it (`deeplabv3plus`)."""
    in_channels: int | None = None
    """Channels of the input; `none`: as many as the training images have bands, and 3 for grey. Pretrained weights of
    the first convolution are adapted as in timm: repeated and scaled by 3 / `in_channels`, or summed for one channel;
    `mean` and `std` are repeated, or averaged."""
    mean: tuple[float, ...] | None = None
    """Mean of the input, 0 to 255, one value per channel in the encoder's channel order; `none`: what the
    weights expect, see `pretrained`."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the input, likewise; `none`: the encoder's own."""
    bgr: bool | None = None
    """`true`: the encoder reads blue, green, red; needs `mean` and `std`. `none`: the encoder's own order."""
    range: tuple[float, ...] | str = "auto"
    """The values in image files that become 0 and 255, the darkest and brightest that the network sees: `0,4095`, or
    such a pair for each channel in turn; `file`: found in each file; `bytes`: 8-bit values stay, those of 16 bits are
    divided by 257, fractions from 0 to 1 are multiplied by 255; `auto`: `bytes`, but found in the training images if
    these have more than 8 bits and use only the lower half of their range. The model keeps what was found."""
    resize: str | None = None
    """How logits are enlarged: `half_pixel`, `align_corners` or `tf_legacy`; `none`: `tf_legacy` if `legacy` is set,
    otherwise `half_pixel`."""
    scales: tuple[float, ...] = ()
    """Multi-scale input: further scales besides 1, such as `0.75,0.5`; the network takes the maximum of their
    logits."""
    legacy: bool = False
    """`true`: padding, resizing, batch norm and smoothing as the original TensorFlow code computes them, mistakes
    included, for weights trained with it; `false`: as the papers describe them."""
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)


@dataclass(frozen=True)
class DataConfig:
    """The dataset, and how training crops and augments its images."""

    path: str = "synthetic"
    """A folder, a dataset.yaml or a list file; `synthetic` for the built-in scenes; or a dataset of your own,
    `my_module:MyDataset`."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to validate on; empty for none."""
    crop: tuple[int, int] = (512, 512)
    """Height and width of the training crop, in pixels."""
    centred: bool = False
    """`true`: crop the middle of the image; `false`: a random place."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale factor."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of the random changes of brightness, contrast and saturation (0 to 1) and hue (0 to 0.5); images that do
    not have 3 channels have neither saturation nor hue."""
    void_border: int = 0
    """Void for training: pixels of the crop within this many pixels of another class, where drawn borders are seldom
    exact; 0: none."""
    repeat_rare: float = 0.0
    """Show images of rare classes more often: an image counts sqrt(`repeat_rare` / f) times, at least once, where f is
    the fraction of training images that contain its rarest class; such as 0.3. 0: each image once per epoch."""
    workers: int | str = "auto"
    """Number of processes that load training images; 0: the training process loads them itself. `auto`: decided after
    20 micro-batches by how long they took to load, at most one fewer than the cores that the process may use; on a CPU,
    none if loading takes less than a tenth of the time."""
    shuffle_buffer: int = 0
    """With shards, images are read shard by shard, in random order, and shuffled in a buffer of this many: for disks
    and servers that are slow at random access. 0: all images are shuffled, wherever they are."""
    skip_bad_shards: bool = False
    """`true`: shards that are missing, truncated or damaged are left out, and counted in the log; every shard is read
    completely before the first step. `false`: they stop the run."""
    accept: tuple[str, ...] = ()
    """Doubts about the masks that do not stop training, as `degrid data check` names them, such as
    `one-class,nearly-void`."""


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: str = "sgd"
    """Optimiser: `sgd`, `adamw`, or any other optimiser class, such as `torch.optim:RMSprop`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the optimiser, such as `{"nesterov": true}`."""
    lr: float = 0.007
    """Learning rate of the encoder at the first step after the warm-up."""
    momentum: float = 0.9
    """Momentum of `sgd`, and of any other optimiser that has a parameter of that name."""
    weight_decay: float = 1e-4
    """Weight decay of convolution weights; biases, batch norm and smoothing parameters have none."""
    decay_all: bool = False
    """`true`: weight decay acts on every parameter."""
    head_factor: float = 10.0
    """Learning rate of the head's weights, relative to that of the encoder."""
    head_bias_factor: float = 20.0
    """Learning rate of the head's biases, relative to that of the encoder."""
    smoothing_factor: float = 1.0
    """Learning rate of the smoothing operators' parameters, wherever they are, relative to that of the encoder."""
    schedule: str = "poly"
    """How the learning rate falls: `poly`, `cosine`, `cosine_restarts` (SGDR), `step`, or your own,
    `my_module:my_schedule`, a function of `lr` and `steps` that returns a function from the step to its rate."""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    """Further options of a schedule: `period` (steps of the first descent), `growth` (from one descent to the next) and
    `least` (the lowest rate) of `cosine_restarts`; those of your own."""
    power: float = 0.9
    """Exponent of `poly`: the rate is `lr * (1 - step / steps) ** power`; 0 keeps it constant."""
    step_every: int = 2000
    """Interval, in steps, at which `step` lowers the rate."""
    step_factor: float = 0.1
    """Factor by which `step` multiplies the rate."""
    warmup: int = 0
    """Steps over which the rate rises linearly at the start."""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all parameters together; a larger gradient is scaled down to it. 0: off."""


@dataclass(frozen=True)
class AsynchronousConfig:
    """Training by workers that do not wait for one another, through Ray."""

    workers: int = 0
    """Workers, on one machine or on those of a Ray cluster; each computes steps from its own images, or a part of the
    micro-batches of a step (`train.accumulate`). 0: train in this process."""
    address: str = ""
    """Ray cluster, such as `node1:6379`, or `auto` for the one this machine belongs to; empty: the one in the
    environment variable RAY_ADDRESS, or else Ray is started on this machine."""
    cores: int = 1
    """CPU cores of a worker; with `train.device` on a GPU it also has one of these."""
    max_staleness: int | None = None
    """A gradient is dropped, and its images are used again, if the weights took more steps than this while it was
    computed; `none`: four times the number of workers, which only a much slower worker exceeds."""
    predict: bool = True
    """`true`: workers compute gradients at the weights that are expected when these gradients are used, if the weights
    keep moving as in the last step; `false`: at the current weights. With one worker, or `average_every`, both are the
    same."""
    average_every: int = 0
    """Periodic averaging (local SGD): workers take this many steps of their own, wait for one another, and continue
    from their mean; 0: each gradient is a step as soon as it arrives."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, loss, precision and memory of training, and what is saved."""

    init: str = ""
    """Model folder or run folder whose weights to start from; empty for none."""
    init_head: bool = True
    """`false`: only the encoder takes its weights from `init`; the head starts from random ones."""
    steps: int = 30_000
    """Optimiser steps."""
    epochs: float = 0.0
    """Passes over the training images, with a validation after each; replaces `steps` and `eval_every`. With
    `data.repeat_rare` one pass still has as many images as the dataset; some are drawn twice and some not at all. 0:
    off."""
    cyclic: bool = False
    """`true`: train in cycles of `eval_every` steps and a validation, as in Ziegler et al.'s code; log.txt then also
    has the lines of that code, with the mIoU on the crops of the cycle. With `compat`, every cycle sees the same crops
    and repeats its last step."""
    batch_size: int = 8
    """Images per micro-batch, in each process."""
    accumulate: int = 1
    """Micro-batches per optimiser step, in each process; the loss is the mean over the valid pixels of all of them."""
    fixed_crops: int = 0
    """How many crops are drawn once and then used repeatedly, in a new order for each pass; the encoder's stages before
    the first dilated one stay frozen, batch norm included, and run once for each crop. For studies of the layers after
    them. 0: every crop is new, and the whole network trains."""
    features: str = ""
    """Folder for the outputs of those stages, as float32, shared by runs with the same seed, data and initial weights;
    empty: the run folder."""
    batch_norm: str = "train"
    """`train`: normalise by the statistics of the micro-batch; `synchronised`: by those of the micro-batches of all
    processes; `frozen`: statistics, scale and shift stay as loaded."""
    batch_norm_momentum: float | None = None
    """Weight of the newest batch in the running statistics, 0 to 1, such as `0.0003` in DeepLab v3; `none`: the layers'
    own, usually 0.1."""
    loss_size: str = "label"
    """Where the loss is computed: `label` enlarges the logits to the label's size; `logits` reduces the label to
    theirs, by nearest neighbour."""
    loss: str = "cross_entropy"
    """`cross_entropy`, `ohem` (hard pixels), `focal`, `dice`, `lovasz`, and for labels with mistakes
    `generalised_cross_entropy` and `symmetric_cross_entropy`; several joined by +, with or without factors, such as
    `cross_entropy+0.5*dice`; or your own, `my_module:my_loss`, a function of logits and label."""
    loss_options: dict[str, Any] = field(default_factory=dict)
    """Further options of the losses: `q` of `generalised_cross_entropy`; `alpha`, `beta` and `floor` of
    `symmetric_cross_entropy`; those of your own. Each loss gets the options that it takes."""
    label_smoothing: float = 0.0
    """Fraction of the target that `cross_entropy` and `ohem` spread over all classes; 0: none."""
    focal_gamma: float = 2.0
    """How strongly `focal` discounts pixels that are already right; 0: not at all, which is cross-entropy."""
    ohem_share: float = 0.25
    """Fraction of each micro-batch's valid pixels, of all processes, that `ohem` keeps: those with the largest loss."""
    class_weights: str | tuple[float, ...] = "none"
    """`median_frequency` or `sqrt_median_frequency`: rare classes weigh more; numbers such as `1,2,0.5`, one per class;
    or `none`. `dice` and `lovasz` count all classes the same in any case."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is evaluated and saved in their place; 0: off."""
    precision: str = "auto"
    """`float32`; `bfloat16` (autocast); or `auto`: bfloat16 if the hardware multiplies in it, otherwise float32."""
    fast: bool = True
    """`true`: in float32 on a CPU, convolutions and their gradients are computed by the fastest algorithm for each,
    which rounds differently and is compared with PyTorch's own at its first call; `false`: only by PyTorch."""
    checkpoint_activations: bool = False
    """`true`: residual blocks keep only their input, and run again for their gradient: much less memory, for about a
    third more time."""
    scales_in_turn: bool = False
    """`true`: with multi-scale input, keep the feature maps of one scale at a time: the same gradients with less
    memory, for about a third more time."""
    compile: bool = False
    """`true`: the network is compiled by `torch.compile`, which takes a minute or more at the first step, needs a C++
    compiler and turns `fast` off."""
    sharding: str = "none"
    """`fsdp2`: each of several processes keeps a part of every weight, gradient and optimiser state, for networks that
    would otherwise be too large; more is exchanged in every step. `none`: each process keeps everything."""
    deterministic: bool = False
    """`true`: only algorithms that give the same bits each time, also on a GPU, where they are slower; training stops
    at an operation that has none."""
    channels_last: bool = True
    """`true`: the channels_last memory layout for weights and images; `false`: contiguous."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, ...; `auto`: a GPU if there is one. Each of several processes takes a GPU of its own."""
    timeout: float = 600.0
    """Seconds to wait for another process, or for any worker, before the job is given up."""
    eval_every: int = 1000
    """Steps between validations."""
    patience: int = 0
    """Stop after this many validations in a row without a better mIoU; 0: never."""
    save_every: int = 0
    """Steps between checkpoints; 0: one at every validation."""
    keep_checkpoints: bool = False
    """`true`: keep the checkpoint of every validation, as step_N.ckpt, so that training can resume from any of
    them."""
    trackers: str = ""
    """Experiment trackers: `wandb`, `mlflow`, `wandb+mlflow`, or your own, `my_module:MyTracker`; empty for none."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    asynchronous: AsynchronousConfig = field(default_factory=AsynchronousConfig)


@dataclass(frozen=True)
class RunConfig:
    """One complete run. `degrid train` writes it to run.json, and `degrid train run.json` repeats the run."""

    name: str = "run"
    """Name of the run folder where none is given."""
    then: str = ""
    """Recipe that continues from this run's best model, in a folder of its own beside this one; empty for none."""
    compat: bool = False
    """`true`: a recipe follows the original code where that differs from what its paper describes."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Setting:
    """One row of `describe_settings`.

    Attributes:
        path: such as "train.steps"; of a group "train", of a whole run "".
        type: what may be given, in words; "group" for a group of settings.
        default: as it is written in `--set`; empty for a group.
        text: the explanation, on one line, with names and values in backticks.
    """

    path: str
    type: str
    default: str
    text: str


def describe_settings(kind: type = RunConfig, path: str = "") -> Iterator[Setting]:
    """Every setting with its explanation, in order; each group comes before its settings."""
    yield Setting(path, "group", "", " ".join(inspect.getdoc(kind).split()))  # type: ignore[union-attr]
    hints, texts = typing.get_type_hints(kind), _texts(kind)
    defaults = dataclasses.asdict(kind())
    for key in sorted(hints, key=lambda key: dataclasses.is_dataclass(hints[key])):
        inner = f"{path}.{key}".lstrip(".")
        if dataclasses.is_dataclass(hints[key]):
            yield from describe_settings(typing.cast(type, hints[key]), inner)
        else:
            yield Setting(inner, _in_words(hints[key]), as_given(defaults[key]), texts[key])


def _texts(kind: type) -> dict[str, str]:
    """The string below each field of a class, on one line."""
    body = typing.cast(ast.ClassDef, ast.parse(inspect.getsource(kind)).body[0]).body
    return {
        declared.target.id: " ".join(text.value.value.split())
        for declared, text in itertools.pairwise(body)
        if isinstance(declared, ast.AnnAssign) and isinstance(declared.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def as_given(value: object) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[C], values: object, where: str = "") -> C:
    """Build a config from plain values; settings that are not given keep their defaults.

    Raises:
        UserError: an unknown setting (the message names the closest one) or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where or 'config'}: expected a table of settings, got {values!r}")
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in hints:
            raise _unknown_setting(path, hints)
        given[key] = _convert(hints[key], value, path)
    return kind(**given)


def parse_settings(assignments: Settings) -> dict[str, object]:
    """Settings `a.b=c`, or a single one, as `{"a.b": c}`, where the value is JSON or else text; a mapping is copied.

    Raises:
        UserError: a setting without "=".
    """
    if isinstance(assignments, Mapping):
        return {path: str(value) if isinstance(value, Path) else value for path, value in assignments.items()}
    found: dict[str, object] = {}
    for assignment in [assignments] if isinstance(assignments, str) else assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f'expected a setting like "train.steps=2000", got "{assignment}"')
        found[path.strip()] = _parse(text.strip())
    return found


def override(config: C, assignments: Settings) -> C:
    """Change settings, see `parse_settings`; a text with commas may stand for a tuple.

    Raises:
        UserError: no "=", an unknown setting, or a value of the wrong type.
    """
    values = to_dict(config)
    for path, value in parse_settings(assignments).items():
        _assign(values, path, value)
    return from_dict(type(config), values)


def _assign(values: dict[str, Any], path: str, value: object) -> None:
    *groups, last = path.split(".")
    node = values
    for depth, group in enumerate(groups):
        if not isinstance(node.get(group), dict):
            known = [key for key, inner in node.items() if isinstance(inner, dict)]
            here = ".".join([*groups[:depth], group])
            hint = f"{did_you_mean(group, known)} Groups here: {', '.join(known) or 'none'}"
            raise UserError(f'unknown setting "{path}": no group "{here}".{hint}')
        node = node[group]
    if last not in node and not (groups and groups[-1].endswith("options")):
        raise _unknown_setting(path, node, path_of(values, last))
    node[last] = value


def _unknown_setting(path: str, known: Iterable[str], elsewhere: str = "") -> UserError:
    group, dot, name = path.rpartition(".")
    hint = did_you_mean(name, known).replace('"', f'"{group}{dot}', 1)
    hint = hint or (f' Did you mean "{elsewhere}"?' if elsewhere else "")
    return UserError(f'unknown setting "{path}".{hint} Known here: {", ".join(known)}')


def path_of(settings: Any, name: str) -> str:
    """The first setting of that name in whatever group, such as "train.steps" for steps; "" if there is none.

    Args:
        settings: a config, or one as plain values.
    """
    values = settings if isinstance(settings, dict) else to_dict(settings)
    return next((path for path in flat(values) if path.rpartition(".")[2] == name), "")


def _parse(text: str) -> object:
    lowered = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


_MAY_BE_EMPTY = frozenset({"data.val", "train.init", "train.features", "train.trackers", "then"})
"""Settings of text that may be empty, for which people write "none"; a folder of that name is ./none."""


def _convert(hint: Any, value: object, path: str) -> Any:
    """Check `value` against a type hint; JSON lists and comma texts become tuples."""
    kind = typing.get_origin(hint) or hint
    if kind in (typing.Union, types.UnionType):
        return _convert_union(typing.get_args(hint), value, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, path)
    if kind is tuple:
        return _convert_tuple(typing.get_args(hint), value, path)
    if kind is str and value is None:
        return "" if path in _MAY_BE_EMPTY else "none"  # the word, where a setting is text anyway
    if isinstance(value, bool) != (kind is bool):
        fits = False
    elif isinstance(value, int | float):
        fits = kind is not dict and (kind is not int or isinstance(value, int) or value.is_integer())
    else:
        fits = isinstance(value, kind)
    try:
        if fits:
            return kind(value)
    except OverflowError:
        raise UserError(f'setting "{path}": the number is too large for any computer') from None
    raise UserError(f'setting "{path}": expected {_in_words(hint)}, got {value!r}')


def _convert_union(options: tuple[Any, ...], value: object, path: str) -> Any:
    if value in (None, "") and type(None) in options:
        return None
    for option in options:
        if option is not type(None):
            # In Python, too, "0" and "false" may be meant as what they are on the command line.
            read = _parse(value) if isinstance(value, str) and option is not str else value
            try:
                return _convert(option, read, path)
            except UserError:
                continue
    raise UserError(f'setting "{path}": expected {" or ".join(map(_in_words, options))}, got {value!r}')


def _convert_tuple(hints: tuple[Any, ...], value: object, path: str) -> tuple[Any, ...]:
    if value in (None, "") and hints[-1] is Ellipsis:
        return ()
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


def _in_words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none"}
    if hint in names:
        return names[hint]
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        what = "words" if str in parts else "numbers"
        return f"{'' if Ellipsis in parts else f'{len(parts)} '}{what} separated by commas"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_in_words, parts))
    return "a table"
