"""Cases of `degrid bench` on parts of the work: operators, convolutions, the loader, and what follows the network."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from degrid.acceleration.winograd_layer import WinogradConv2d
from degrid.bench.measure import Case
from degrid.bench.memory import MIB, saved_activations
from degrid.data import TrainTransform, open_dataset
from degrid.data.synthetic import LABELS, draw_scene
from degrid.engine.evaluation.metrics import ConfusionMatrix
from degrid.image import palette_image
from degrid.kernels.upsample_argmax import upsample_argmax
from degrid.smoothing import smooth_dilated_convs
from degrid.smoothing.table import OPERATORS
from degrid.types import IGNORE_INDEX


@dataclass(frozen=True)
class Block:
    """Cases that are measured together, in turn.

    name: of the job, for the progress.
    cost: seconds that it takes on two quiet cores, roughly; for the time that is left.
    cases: makes them; what must be closed afterwards goes on the stack.
    rounds: at most so many, for long calls; warmup: rounds before the measurement.
    seconds: short calls are repeated for this long.
    threads: of PyTorch; None: all.
    memory: measure the peak memory instead of the time.
    """

    name: str
    cost: float
    cases: Callable[[ExitStack], list[Case]]
    rounds: int | None = None
    warmup: int = 2
    seconds: float = 2.0
    threads: int | None = None
    memory: bool = False


@dataclass(frozen=True)
class Scope:
    """What the cases run on.

    quick: small images, to see that everything works.
    size: height and width of the images instead of the usual ones; image: uint8 [H,W,3], a picture to use.
    """

    quick: bool = False
    size: tuple[int, int] | None = None
    image: np.ndarray | None = None

    def sizes(self, *usual: tuple[int, int]) -> list[tuple[int, int]]:
        """The sizes to measure at, where `usual` is what the set would take."""
        if self.image is not None:
            return [(self.image.shape[0], self.image.shape[1])]
        return [self.size] if self.size else [(97, 97)] if self.quick else list(usual)

    def picture(self, size: tuple[int, int]) -> np.ndarray:
        """The user's picture, or a built-in scene of that size; uint8 [H,W,3]."""
        return self.image if self.image is not None else scene(size)[0]


def scene(size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A built-in scene of any size: image uint8 [H,W,3], label uint8 [H,W]."""
    height, width = size
    image, label = draw_scene(np.random.default_rng(seed), max(64, height), max(64, width))
    return np.ascontiguousarray(image[:height, :width]), np.ascontiguousarray(label[:height, :width])


# ---- smoothing operators ------------------------------------------------------------------------------------


def operators(scope: Scope) -> list[Block]:
    """One dilated convolution in channels_last, plain and with each smoothing operator; forward and training."""
    blocks = []
    for channels, rate in ((256, 2), (512, 4)):
        for batch, side in ((1, 65), (2, 41)):
            shape = (16, rate, 2, 17) if scope.quick else (channels, rate, batch, side)
            training = batch == 2
            doing = "training step" if training else "forward"
            name = f"{doing}, {shape[0]} channels, rate {rate}, {shape[2]}x{shape[3]}x{shape[3]}"
            blocks.append(Block(name, 10, _operator_block(name, shape, training), seconds=8.0))
    return blocks


def _operator_block(name: str, shape: tuple[int, int, int, int], training: bool) -> Callable[[ExitStack], list[Case]]:
    def cases(stack: ExitStack) -> list[Case]:
        channels, rate, batch, side = shape
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
        return [_operator_case(name, operator, channels, rate, x, training) for operator in OPERATORS]

    return cases


def _operator_case(name: str, operator: str, channels: int, rate: int, x: Tensor, training: bool) -> Case:
    conv = _layer(operator, channels, rate)
    # Without smoothing there is nothing in front that needs the input's gradient, so it is asked for in every case.
    run = _training(conv, x.clone().requires_grad_()) if training else _inference(conv, x)
    notes = {"saved MiB": saved_activations(run, conv) / MIB} if training else {}
    return Case(operator, run, name, operator == "regular", len(x), notes)


def _layer(operator: str, channels: int, rate: int) -> nn.Module:
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False))
    if operator != "regular":
        smooth_dilated_convs(conv, operator)
        with torch.no_grad():  # learned filters away from their start, where they could be skipped
            for key, parameter in conv.named_parameters():
                if ".smoothing." in key:
                    parameter.add_(0.01)
    return conv.to(memory_format=torch.channels_last)


def _inference(conv: nn.Module, x: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return conv(x)

    return call


def _training(conv: nn.Module, x: Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(x)

    def call() -> object:
        x.grad = None
        conv.zero_grad(set_to_none=True)
        return conv(x).backward(gradient)

    return call


# ---- 3x3 convolutions ---------------------------------------------------------------------------------------


def winograd(scope: Scope) -> list[Block]:
    """Convolutions in float32, direct and Winograd's way; "direct" again where Winograd's would not pay."""
    shapes = [  # channels in and out, rate, batch, side of the map
        (256, 256, 2, 1, 65),
        (512, 512, 4, 1, 65),
        (512, 512, 4, 1, 41),
        (256, 256, 2, 2, 41),
        (128, 128, 1, 1, 65),
        (64, 64, 1, 1, 129),
        *((2048, 256, rate, 1, 65) for rate in (12, 24, 36)),
    ]
    blocks = []
    for shape in [(64, 64, 2, 1, 16)] if scope.quick else shapes:
        inputs, outputs, rate, batch, side = shape
        name = f"{inputs} to {outputs} channels, rate {rate}, {batch}x{side}x{side}"
        blocks.append(Block(name, 4, _winograd_block(name, shape)))
    return blocks


def _winograd_block(name: str, shape: tuple[int, int, int, int, int]) -> Callable[[ExitStack], list[Case]]:
    def cases(stack: ExitStack) -> list[Case]:
        inputs, outputs, rate, batch, side = shape
        torch.manual_seed(0)
        conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
        x = torch.randn(batch, inputs, side, side)
        truth = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 1, rate, rate)  # type: ignore[union-attr]
        last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
        image = x.contiguous(memory_format=torch.channels_last)
        runs = {
            "direct, NCHW": _inference(conv, x),
            "direct, channels_last": _inference(last, image),
            "degrid": _inference(WinogradConv2d.from_conv(last), image),
        }
        found = {case: cast(Tensor, run()) for case, run in runs.items()}
        errors = {case: ((y - truth).abs().max() / truth.abs().max()).item() for case, y in found.items()}
        return [
            Case(case, run, name, case == "direct, channels_last", batch, {"largest error, ppm": 1e6 * errors[case]})
            for case, run in runs.items()
        ]

    return cases


# ---- loader -------------------------------------------------------------------------------------------------


def loader(scope: Scope) -> list[Block]:
    """Decode, scale, flip and crop; on one thread, so that images per second are per core."""
    crop = 97 if scope.quick else 321
    count = 4 if scope.quick else 16
    return [Block(f"JPEG 500x375 to crop {crop}", 6, lambda stack: _loader_cases(stack, crop, count), threads=1)]


def _loader_cases(stack: ExitStack, crop: int, count: int) -> list[Case]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    files = _write_photos(folder, count)
    dataset, transform = open_dataset(folder, "train"), TrainTransform((crop, crop))

    def ours() -> None:
        for index in range(len(dataset)):
            transform(dataset[index], np.random.default_rng(index))

    def by_hand() -> None:
        for index, (image, mask) in enumerate(files):
            resize_then_crop(image, mask, crop, np.random.default_rng(index))

    group = f"JPEG 500x375 to crop {crop}, one core"
    return [
        Case("PIL: resize, flip, crop", by_hand, group, True, count),
        Case("degrid: one affine map", ours, group, items=len(dataset)),
    ]


def _write_photos(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Scenes with the noise of a camera as JPEG, with palette PNG masks, under train/images and train/masks."""
    files, rng = [], np.random.default_rng(0)
    for index in range(count):
        pair = (folder / "train/images" / f"{index:02d}.jpg", folder / "train/masks" / f"{index:02d}.png")
        for file in pair:
            file.parent.mkdir(parents=True, exist_ok=True)
        image, label = scene((375, 500), index)
        noisy = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(pair[0], quality=90)
        palette_image(label, LABELS).save(pair[1])
        files.append(pair)
    return files


def resize_then_crop(image_file: Path, mask_file: Path, crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The usual way by hand: scale both pictures by 0.5 to 2, flip, pad, crop; uint8 [3,h,w] and [h,w]."""
    image: Image.Image = Image.open(image_file).convert("RGB")
    mask: Image.Image = Image.open(mask_file)
    factor = rng.uniform(0.5, 2.0)
    size = (round(image.width * factor), round(image.height * factor))
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top = (int(rng.integers(0, max(0, side - crop) + 1)) for side in size)
    canvas, label = Image.new("RGB", (crop, crop), (124, 116, 104)), Image.new("L", (crop, crop), IGNORE_INDEX)
    box = (left, top, min(size[0], left + crop), min(size[1], top + crop))
    canvas.paste(image.crop(box))
    label.paste(Image.fromarray(np.asarray(mask)[box[1] : box[3], box[0] : box[2]]))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1), torch.from_numpy(np.array(label))


# ---- after the network --------------------------------------------------------------------------------------


def post(scope: Scope) -> list[Block]:
    """From logits to class ids at the image's size, and from ids to a confusion matrix."""
    shapes = [(21, 65, 65, 513, 513), (19, 128, 256, 1024, 2048)]
    if scope.quick:
        shapes = [(5, 13, 13, 97, 97)]
    blocks = []
    for shape in shapes:
        name = f"logits {shape[0]}x{shape[1]}x{shape[2]} to ids {shape[3]}x{shape[4]}"
        blocks.append(Block(name, 5, _argmax_block(name, shape)))
    size = (97, 97) if scope.quick else (500, 500)
    return [*blocks, Block("confusion matrix", 3, lambda stack: _confusion_cases(size))]


def _argmax_block(name: str, shape: tuple[int, int, int, int, int]) -> Callable[[ExitStack], list[Case]]:
    def cases(stack: ExitStack) -> list[Case]:
        classes, height, width, *size = shape
        logits = smooth_logits(classes, height, width)
        last = logits.contiguous(memory_format=torch.channels_last)
        return [
            Case("interpolate and argmax, NCHW", lambda: interpolate_argmax(logits, size), name, True),
            Case("interpolate and argmax, channels_last", lambda: interpolate_argmax(last, size), name),
            Case("degrid: upsample_argmax", lambda: upsample_argmax(last, (size[0], size[1]), "half_pixel"), name),
        ]

    return cases


def smooth_logits(classes: int, height: int, width: int) -> Tensor:
    """Logits as a network gives them: smooth regions and a little noise; float32 [1,C,h,w]."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, max(2, height // 10), max(2, width // 10), generator=rng)
    noise = torch.randn(1, classes, height, width, generator=rng)
    return F.interpolate(coarse, (height, width), mode="bilinear") * 3 + noise * 0.1


def interpolate_argmax(logits: Tensor, size: list[int] | tuple[int, ...]) -> Tensor:
    """The usual way by hand; int64 [1,H,W]."""
    with torch.inference_mode():
        return F.interpolate(logits, size, mode="bilinear").argmax(1)


def _confusion_cases(size: tuple[int, int]) -> list[Case]:
    classes = 21
    rng = np.random.default_rng(0)
    # Regions of 10 pixels, some of them void; the prediction is wrong in a tenth of the pixels.
    coarse = rng.integers(0, classes + 1, (size[0] // 10 + 1, size[1] // 10 + 1))
    truth = np.kron(coarse, np.ones((10, 10), np.int64))[: size[0], : size[1]].astype(np.uint8)
    guess = np.where(rng.random(size) < 0.1, rng.integers(0, classes, size), truth % classes).astype(np.uint8)
    truth[truth == classes] = IGNORE_INDEX
    prediction, label = torch.from_numpy(guess), torch.from_numpy(truth)

    def by_hand() -> np.ndarray:
        valid = truth != IGNORE_INDEX
        pairs = truth[valid].astype(np.int64) * classes + guess[valid]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def ours() -> Tensor:
        matrix = ConfusionMatrix(classes)
        matrix.update(prediction, label)
        return matrix.counts

    group = f"confusion matrix of {size[0]}x{size[1]} ids, {classes} classes"
    return [
        Case("numpy bincount, masked", by_hand, group, True),
        Case("degrid: ConfusionMatrix", ours, group),
    ]
