"""Cases of `degrid bench` on parts of the work: operators, convolutions, the loader, and what follows the network."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from degrid.acceleration.winograd_layer import WinogradConv2d
from degrid.bench.measure import MIB, Case, saved_activations
from degrid.bench.suite import Block, Scope
from degrid.data import TrainTransform, open_dataset
from degrid.data.synthetic import LABELS, scene
from degrid.engine.evaluation.metrics import ConfusionMatrix
from degrid.image import palette_image
from degrid.kernels import dense_crf
from degrid.kernels.crf_settings import CRF
from degrid.kernels.dense_crf import refine
from degrid.kernels.upsample_argmax import upsample_argmax
from degrid.smoothing import smooth_dilated_convs
from degrid.smoothing.table import OPERATORS
from degrid.types import IGNORE_INDEX


def nudged(model: nn.Module) -> nn.Module:
    """Move learned filters away from their start, where they could be skipped; in place."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".smoothing." in key:
                parameter.add_(0.01)
    return model


def operators(scope: Scope) -> list[Block]:
    """One dilated convolution in channels_last, plain and with each smoothing operator; forward and training."""
    blocks = []
    for channels, rate in ((256, 2), (512, 4)):
        for batch, side in ((1, 65), (2, 41)):
            shape = (16, rate, 2, 17) if scope.quick else (channels, rate, batch, side)
            doing = "training step" if batch == 2 else "forward"
            name = f"{doing}, {shape[0]} channels, rate {rate}, {shape[2]}x{shape[3]}x{shape[3]}"
            blocks.append(Block(name, 10, partial(_operator_cases, name, shape, batch == 2), seconds=8.0))
    return blocks


def _operator_cases(name: str, shape: tuple[int, int, int, int], training: bool) -> list[Case]:
    channels, rate, batch, side = shape
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last)
    cases = []
    for operator in OPERATORS:
        torch.manual_seed(0)
        conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate, bias=False))
        if operator != "regular":
            smooth_dilated_convs(conv, operator)
        nudged(conv).to(memory_format=torch.channels_last)
        # Without smoothing, nothing in front of the convolution needs the input's gradient: every case computes it.
        run = _training(conv, x.clone().requires_grad_()) if training else _inference(conv, x)
        notes = {"saved MiB": saved_activations(run, conv) / MIB} if training else {}
        cases.append(Case(operator, run, name, operator == "regular", batch, notes))
    return cases


def _inference(conv: nn.Module, x: Tensor) -> Callable[[], object]:
    return torch.inference_mode()(partial(conv, x))


def _training(conv: nn.Module, x: Tensor) -> Callable[[], object]:
    gradient = torch.randn_like(x)

    def call() -> object:
        x.grad = None
        conv.zero_grad(set_to_none=True)
        return conv(x).backward(gradient)

    return call


def winograd(scope: Scope) -> list[Block]:
    """3x3 convolutions in float32, by the direct method and as degrid does them: by Winograd's where that is faster."""
    # Channels in and out, rate, batch, side of the map.
    shapes = [(256, 256, 2, 1, 65), (512, 512, 4, 1, 65), (512, 512, 4, 1, 41), (256, 256, 2, 2, 41)]
    shapes += [(128, 128, 1, 1, 65), (64, 64, 1, 1, 129), *((2048, 256, rate, 1, 65) for rate in (12, 24, 36))]
    blocks = []
    for shape in [(64, 64, 2, 1, 16)] if scope.quick else shapes:
        inputs, outputs, rate, batch, side = shape
        name = f"{inputs} to {outputs} channels, rate {rate}, {batch}x{side}x{side}"
        blocks.append(Block(name, 4, partial(_winograd_cases, name, shape)))
    return blocks


def _winograd_cases(name: str, shape: tuple[int, int, int, int, int]) -> list[Case]:
    inputs, outputs, rate, batch, side = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate)
    x = torch.randn(batch, inputs, side, side)
    truth = cast(Tensor, copy.deepcopy(conv).double()(x.double())).detach()
    last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)
    runs = {
        "direct, NCHW": _inference(conv, x),
        "direct, channels_last": _inference(last, image),
        "degrid": _inference(WinogradConv2d.from_conv(last), image),
    }
    cases = []
    for case, run in runs.items():
        error = (cast(Tensor, run()) - truth).abs().max() / truth.abs().max()
        notes = {"largest error, ppm": 1e6 * error.item()}
        cases.append(Case(case, run, name, case == "direct, channels_last", batch, notes))
    return cases


def loader(scope: Scope) -> list[Block]:
    """Decode, scale, flip and crop; on one thread, so that images per second are per core."""
    crop, count = (97, 4) if scope.quick else (321, 16)
    return [Block(f"JPEG 500x375 to crop {crop}", 6, partial(_loader_cases, crop, count), threads=1)]


def _loader_cases(crop: int, count: int) -> list[Case]:
    folder = Path(tempfile.mkdtemp())
    files = write_photos(folder / "train", count)
    # Another split, since a part of a lone one would be kept for validation.
    write_photos(folder / "val", 1, count)
    dataset, transform = open_dataset(folder, "train"), TrainTransform((crop, crop))

    def ours() -> None:
        for index in range(len(dataset)):
            transform(dataset[index], np.random.default_rng(index))

    def by_hand() -> None:
        for index, (image, mask) in enumerate(files):
            resize_then_crop(image, mask, crop, np.random.default_rng(index))

    weakref.finalize(ours, shutil.rmtree, folder)
    group = f"JPEG 500x375 to crop {crop}, one core"
    return [
        Case("PIL: resize, flip, crop", by_hand, group, True, count),
        Case("degrid: one affine map", ours, group, items=len(dataset)),
    ]


def write_photos(folder: Path, count: int, first: int = 0) -> list[tuple[Path, Path]]:
    """Scenes with camera noise as JPEG files, and masks as palette PNG files, in images/ and masks/.

    Args:
        first: the number of the first scene.
    """
    files, rng = [], np.random.default_rng(first)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for index in range(first, first + count):
        pair = (folder / "images" / f"{index:03d}.jpg", folder / "masks" / f"{index:03d}.png")
        image, label = scene((375, 500), index)
        noisy = (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(pair[0], quality=90)
        palette_image(label, LABELS).save(pair[1])
        files.append(pair)
    return files


def resize_then_crop(image_file: Path, mask_file: Path, crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The usual code: scale both pictures by 0.5 to 2, flip, pad, crop; uint8 [3,crop,crop] and [crop,crop]."""
    image: Image.Image = Image.open(image_file).convert("RGB")
    mask: Image.Image = Image.open(mask_file)
    factor = rng.uniform(0.5, 2.0)
    size = (round(image.width * factor), round(image.height * factor))
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    if rng.random() < 0.5:
        image, mask = ImageOps.mirror(image), ImageOps.mirror(mask)
    left, top = (int(rng.integers(0, max(0, side - crop) + 1)) for side in size)
    canvas, label = Image.new("RGB", (crop, crop), (124, 116, 104)), Image.new("L", (crop, crop), IGNORE_INDEX)
    box = (left, top, min(size[0], left + crop), min(size[1], top + crop))
    canvas.paste(image.crop(box))
    label.paste(Image.fromarray(np.asarray(mask)[box[1] : box[3], box[0] : box[2]]))
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1), torch.from_numpy(np.array(label))


def post(scope: Scope) -> list[Block]:
    """Cases that make class ids at the image's size from logits, and a confusion matrix from ids."""
    shapes = [(5, 13, 13, 97, 97)] if scope.quick else [(21, 65, 65, 513, 513), (19, 128, 256, 1024, 2048)]
    blocks = []
    for classes, height, width, *size in shapes:
        name = f"logits {classes}x{height}x{width} to ids {size[0]}x{size[1]}"
        blocks.append(Block(name, 5, partial(_argmax_cases, name, smooth_logits(classes, height, width), size)))
    size = [97, 97] if scope.quick else [500, 500]
    return [*blocks, Block("confusion matrix", 3, partial(_confusion_cases, size))]


def crf(scope: Scope) -> list[Block]:
    """The dense CRF with DeepLab v2's parameters on 21 classes, on one core and on all; pydensecrf2 if installed."""
    height, width = scope.sizes((375, 500))[0]
    logits = smooth_logits(21, -(-height // 8), -(-width // 8))
    probabilities = F.interpolate(logits, (height, width), mode="bilinear")[0].softmax(0)
    image = torch.from_numpy(scope.picture((height, width))).permute(2, 0, 1).contiguous()
    blocks = []
    for threads, cores in ((1, "one core"), (None, "all cores")):
        name = f"{width}x{height}, 21 classes, 10 iterations, {cores}"
        blocks.append(Block(name, 60, partial(_crf_cases, name, probabilities, image), warmup=1, threads=threads))
    return blocks


def _crf_cases(name: str, probabilities: Tensor, image: Tensor) -> list[Case]:
    cases = [
        Case("degrid: CRF, PyTorch", partial(dense_crf.with_torch, probabilities, image, CRF()), name),
        Case("degrid: CRF", partial(refine, probabilities, image), name),
    ]
    if importlib.util.find_spec("pydensecrf"):
        cases = [Case("pydensecrf2 (one core)", partial(_pydensecrf, probabilities, image, CRF()), name, True), *cases]
    else:
        cases[0] = dataclasses.replace(cases[0], base=True)
    return cases


def _pydensecrf(probabilities: Tensor, image: Tensor, parameters: CRF) -> np.ndarray:
    """Run pydensecrf as its documentation does; marginals [C,H*W]."""
    library = importlib.import_module("pydensecrf.densecrf")
    classes, height, width = probabilities.shape
    field = library.DenseCRF2D(width, height, classes)
    field.setUnaryEnergy(-probabilities.clamp(min=1e-8).log().reshape(classes, -1).numpy())
    field.addPairwiseGaussian(sxy=parameters.pos_xy_std, compat=parameters.pos_weight)
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    field.addPairwiseBilateral(
        sxy=parameters.bi_xy_std, srgb=parameters.bi_rgb_std, rgbim=rgb, compat=parameters.bi_weight
    )
    return np.array(field.inference(parameters.iterations))


def _argmax_cases(name: str, logits: Tensor, size: Sequence[int]) -> list[Case]:
    last = logits.contiguous(memory_format=torch.channels_last)
    return [
        Case("interpolate and argmax, NCHW", partial(interpolate_argmax, logits, size), name, True),
        Case("interpolate and argmax, channels_last", partial(interpolate_argmax, last, size), name),
        Case("degrid: upsample_argmax", partial(upsample_argmax, last, (size[0], size[1]), "half_pixel"), name),
    ]


def smooth_logits(classes: int, height: int, width: int) -> Tensor:
    """Logits as a network gives them: smooth regions and a little noise; float32 [1,C,h,w]."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, max(2, height // 10), max(2, width // 10), generator=rng)
    noise = torch.randn(1, classes, height, width, generator=rng)
    return F.interpolate(coarse, (height, width), mode="bilinear") * 3 + noise * 0.1


def interpolate_argmax(logits: Tensor, size: Sequence[int]) -> Tensor:
    """The usual code; int64 [1,H,W]."""
    with torch.inference_mode():
        return F.interpolate(logits, list(size), mode="bilinear").argmax(1)


def _confusion_cases(size: Sequence[int], classes: int = 21) -> list[Case]:
    rng = np.random.default_rng(0)
    # Squares of 10 pixels, some of them void; the prediction is wrong on a tenth of the pixels.
    coarse = rng.integers(0, classes + 1, (size[0] // 10 + 1, size[1] // 10 + 1))
    truth = np.kron(coarse, np.ones((10, 10), np.int64))[: size[0], : size[1]].astype(np.uint8)
    wrong, other = rng.random(truth.shape) < 0.1, rng.integers(0, classes, truth.shape)
    guess = np.where(wrong, other, truth % classes).astype(np.uint8)
    truth[truth == classes] = IGNORE_INDEX

    def by_hand() -> np.ndarray:
        valid = truth != IGNORE_INDEX
        pairs = truth[valid].astype(np.int64) * classes + guess[valid]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def ours() -> np.ndarray:
        matrix = ConfusionMatrix(classes)
        matrix.update(guess, truth)
        return matrix.counts

    group = f"confusion matrix of {size[0]}x{size[1]} ids, {classes} classes"
    return [Case("numpy bincount, masked", by_hand, group, True), Case("degrid: ConfusionMatrix", ours, group)]
