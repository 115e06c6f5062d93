"""Cases of `degrid bench` on whole networks: inference, training, memory, large images. Weights are random."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import degrid
from degrid.acceleration.fold import folded
from degrid.acceleration.training import FastConvolutions
from degrid.acceleration.winograd_layer import use_winograd
from degrid.bench.measure import MIB, Apart, Case, Made, can_sample_memory, peak_memory, saved_activations
from degrid.bench.part_cases import interpolate_argmax, nudged, write_photos
from degrid.bench.suite import Block, Scope
from degrid.contracts import convention_of
from degrid.data import TrainTransform, open_dataset, training_batches
from degrid.data.synthetic import scene
from degrid.engine.device import autocast
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.memory import keep_freed_memory, resident_bytes
from degrid.engine.training.loop import Training, train_step
from degrid.engine.training.objective import Objective
from degrid.models import freeze_batch_norm
from degrid.models.activation_checkpointing import CheckpointedBlock, checkpoint_activations
from degrid.smoothing.table import OPERATORS
from degrid.threads import fields_of
from degrid.types import IGNORE_INDEX, Batch

CLASSES = 21
Way = Callable[[], Tensor]
"""One way from an image to its class ids, [H,W]."""


def deeplabv3_resnet50(classes: int = CLASSES) -> nn.Module:
    """DeepLab v3 on ResNet-50 at output stride 8, which most sets use."""
    return randomised(degrid.deeplabv3("timm:resnet50", classes, output_stride=8))


def deeplabv2_resnet101(operator: str = "regular") -> nn.Module:
    """DeepLab v2 on ResNet-101 at output stride 8."""
    return randomised(degrid.deeplabv2("timm:resnet101", CLASSES, operator=operator))


def deeplabv3plus_mobilenetv2(classes: int = CLASSES) -> nn.Module:
    """DeepLab v3+ on MobileNetV2 at output stride 16."""
    return randomised(degrid.deeplabv3plus("timm:mobilenetv2_100", classes))


def randomised(model: nn.Module) -> nn.Module:
    """Give batch norms random statistics, scale and shift, so that folding has work to do; in evaluation mode."""
    rng = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(0.5, 1.5, generator=rng)
            norm.bias.data.normal_(0, 0.1, generator=rng)
            for buffers, values in ((norm.running_mean, (-0.1, 0.1)), (norm.running_var, (0.5, 1.5))):
                if buffers is not None:
                    buffers.uniform_(*values, generator=rng)
    return model.eval()


def by_hand(model: nn.Module, image: Tensor, precision: str = "float32") -> Way:
    """The usual code: the network in inference mode, then interpolate and argmax."""

    def call() -> Tensor:
        with torch.inference_mode(), autocast(image.device, precision):
            logits = model(image).float()
        return interpolate_argmax(logits, tuple(image.shape[-2:]))[0]

    return call


def by_predictor(
    model: nn.Module, precision: str, options: InferenceOptions | None = None
) -> Callable[[np.ndarray], Tensor]:
    """Class ids of a picture, uint8 [H,W,3], as users of the library make them.

    Not with the precision "auto": it compares bfloat16 with float32 on the first images, and random weights separate
    the classes less clearly than trained ones.
    """
    predict = degrid.Predictor(model, device="cpu", precision=precision, options=options)
    return lambda picture: torch.from_numpy(predict(picture))


def cases_of(group: str, ways: dict[str, Way], agreement: bool = True) -> list[Case]:
    """Ways to the same class ids, the first of which is the base; with the percentage of pixels that agree with it."""
    base = next(iter(ways))
    wanted = ways[base]() if agreement else None
    return [
        Case(name, way, group, name == base, notes={} if wanted is None else {"same ids %": same_ids(way(), wanted)})
        for name, way in ways.items()
    ]


def same_ids(found: Tensor, wanted: Tensor) -> float:
    """Pixels with the same class id, in percent."""
    return 100 * (found.long() == wanted.long()).double().mean().item()


def networks(scope: Scope) -> list[Block]:
    """Cases from a picture to class ids at its size: the usual code, `degrid.Predictor`, and smoothing operators."""
    rows: list[tuple[str, Callable[[], nn.Module], list[tuple[int, int]], float]] = [
        ("DeepLab v3 ResNet-50 stride 8", deeplabv3_resnet50, scope.sizes((513, 513), (321, 321)), 50),
        ("DeepLab v2 ResNet-101 stride 8", deeplabv2_resnet101, scope.sizes((321, 321)), 26),
        ("DeepLab v3+ MobileNetV2 stride 16", deeplabv3plus_mobilenetv2, scope.sizes((513, 513)), 8),
    ]
    blocks = []
    for title, make, sizes, cost in rows:
        for size in sizes:
            name = f"{title}, {size[0]}x{size[1]}"
            part = size[0] * size[1] / (sizes[0][0] * sizes[0][1])
            blocks.append(Block(name, cost * part, partial(_inference_cases, name, make, scope.picture(size))))
    size = scope.sizes((321, 321))[0]
    name = f"DeepLab v2 ResNet-101 stride 8, {size[0]}x{size[1]}, smoothed, Predictor in float32"
    return [*blocks, Block(name, 28, partial(_smoothed_cases, name, scope.picture(size)))]


def _inference_cases(name: str, make: Callable[[], nn.Module], picture: np.ndarray, agree: bool = True) -> list[Case]:
    return cases_of(name, inference_ways(make(), picture), agree)


def inference_ways(model: nn.Module, picture: np.ndarray) -> dict[str, Way]:
    """The ways that are compared, the base first."""
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
    last = image.contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(model).to(memory_format=torch.channels_last)
    merged = folded(plain)
    winograd = copy.deepcopy(merged)
    use_winograd(winograd)
    return {
        "eager, NCHW": by_hand(model, image),
        "channels_last": by_hand(plain, last),
        "channels_last, folded": by_hand(merged, last),
        "channels_last, folded, Winograd": by_hand(winograd, last),
        "bfloat16 autocast, NCHW": by_hand(model, image, "bfloat16"),
        "bfloat16, channels_last, folded": by_hand(_halved(merged), last, "bfloat16"),
        "Predictor, float32": partial(by_predictor(model, "float32"), picture),
        "Predictor, bfloat16": partial(by_predictor(model, "bfloat16"), picture),
    }


def _halved(model: nn.Module) -> nn.Module:
    """A copy with the convolutions' weights in bfloat16, which autocast then need not convert."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
    return copied


def _smoothed_cases(name: str, picture: np.ndarray) -> list[Case]:
    ways: dict[str, Way] = {
        each: partial(by_predictor(nudged(deeplabv2_resnet101(each)), "float32"), picture) for each in OPERATORS
    }
    return cases_of(name, ways, agreement=False)


def train(scope: Scope) -> list[Block]:
    """One optimiser step, and the activations it keeps: plain on two crops, and with each smoothing operator."""
    crop = 97 if scope.quick else 321
    name = f"training step, DeepLab v3 ResNet-50 stride 8, 2 crops of {crop}"
    smoothed = f"training step, DeepLab v2 ResNet-101 stride 8, frozen, float32, 1 crop of {crop}, smoothed"
    fed = f"training steps with their data, DeepLab v3+ MobileNetV2 stride 16, 4 crops of {crop}, float32"
    return [
        Block(name, 95, partial(training_cases, name, crop), warmup=1),
        Block(fed, 60, partial(_fed_cases, fed, crop), warmup=1),
        Block(smoothed, 60, partial(_smoothed_training_cases, smoothed, crop), rounds=2, warmup=1),
    ]


def training_cases(group: str, crop: int) -> list[Case]:
    """The ways to take a step that are compared, the base first."""
    ways = {  # precision, or "" for the usual code; frozen batch norm; activation checkpointing
        "eager, NCHW": ("", False, False),
        "degrid, float32": ("float32", False, False),
        "degrid, bfloat16": ("bfloat16", False, False),
        "degrid, frozen, float32": ("float32", True, False),
        "degrid, frozen, bfloat16": ("bfloat16", True, False),
        "degrid, frozen, bfloat16, checkpointed": ("bfloat16", True, True),
    }
    batch = training_batch(crop)
    cases = []
    for name, (precision, frozen, checkpointed) in ways.items():
        model = deeplabv3_resnet50().train()
        model = model.to(memory_format=torch.channels_last) if precision else model
        if frozen:
            freeze_batch_norm(model)
        if checkpointed:
            checkpoint_activations(model)
        run = training_step(model, batch, precision) if precision else step_by_hand(model, batch)
        inputs = [module for module in model.modules() if isinstance(module, CheckpointedBlock)]
        notes = {"saved MiB": saved_activations(run, model, inputs) / MIB}
        cases.append(Case(name, run, group, not precision, len(batch.image), notes))
    return cases


def _fed_cases(group: str, crop: int) -> list[Case]:
    """Steps on photographs that this process or another one loads, and the share of them spent waiting for data."""
    folder = Path(tempfile.mkdtemp())
    write_photos(folder / "train", 16)
    write_photos(folder / "val", 1, 16)  # because part of a lone split would be used for it
    dataset, transform = open_dataset(folder, "train"), TrainTransform((crop, crop))
    cases = []
    for workers in (0, 1):
        model = deeplabv3plus_mobilenetv2().train().to(memory_format=torch.channels_last)
        state, objective = Training(model, _sgd(model), fast=FastConvolutions()), Objective()
        run = partial(_fed_steps, state, objective, training_batches(dataset, transform, 4, seed=0, workers=workers))
        run()
        name = f"{workers} loading processes" if workers != 1 else "1 loading process"
        cases.append(Case(name, run, group, not workers, 4 * _FED_STEPS, {"waiting for data, %": 100 * run()}))
    weakref.finalize(dataset, shutil.rmtree, folder)
    return cases


_FED_STEPS = 4


def _fed_steps(state: Training, objective: Objective, batches: Iterator[Batch]) -> float:
    """The share of the time of a few steps that is spent waiting for data, 0 to 1."""
    began, waited = time.perf_counter(), 0.0
    for _ in range(_FED_STEPS):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        train_step(state, [batch], objective)
    return waited / (time.perf_counter() - began)


def _smoothed_training_cases(group: str, crop: int) -> list[Case]:
    """A step with each operator, as fine-tuning with frozen batch norm takes it."""
    batch = training_batch(crop, 1)
    cases = []
    for operator in OPERATORS:
        model = nudged(deeplabv2_resnet101(operator)).train().to(memory_format=torch.channels_last)
        freeze_batch_norm(model)
        run = training_step(model, batch, "float32")
        notes = {"saved MiB": saved_activations(run, model) / MIB}
        cases.append(Case(operator, run, group, operator == "regular", 1, notes))
    return cases


def training_batch(crop: int, count: int = 2) -> Batch:
    """Built-in scenes as a batch."""
    images, labels = zip(*(scene((crop, crop), seed) for seed in range(count)), strict=True)
    image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Batch(image, torch.from_numpy(np.stack(labels)).long(), tuple(str(seed) for seed in range(count)))


def training_step(model: nn.Module, batch: Batch, precision: str) -> Callable[[], object]:
    """A step as `degrid train` does it."""
    state = Training(model, _sgd(model), fast=FastConvolutions())
    objective = Objective(convention=convention_of(model))
    return lambda: train_step(state, [batch], objective, precision)


def step_by_hand(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """The usual code: enlarge the logits, cross-entropy, backward, SGD."""
    optimizer = _sgd(model)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        found = F.interpolate(model(batch.image), batch.label.shape[-2:], mode="bilinear")
        loss = F.cross_entropy(found, batch.label, ignore_index=IGNORE_INDEX)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    """At a learning rate so low that the network stays practically the same, however often it is measured."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=1e-7, momentum=0.9)


def memory(scope: Scope) -> list[Block]:
    """The peak growth of the process, in MiB, during inference and during a training step; what a process holds."""
    size, crop = scope.sizes((513, 513))[0], 97 if scope.quick else 321
    network = "DeepLab v3 ResNet-50 stride 8"
    inference = f"growth during inference, {network}, {size[0]}x{size[1]}"
    training = f"growth during a training step, {network}, 2 crops of {crop}"
    cases = partial(_inference_cases, inference, deeplabv3_resnet50, scope.picture(size), agree=False)
    held = f"processes of their own, {network}, {size[0]}x{size[1]}"
    return [
        Block(inference, 24, cases, rounds=3, warmup=1, seconds=0, memory=True),
        Block(training, 40, partial(training_cases, training, crop), rounds=2, warmup=0, seconds=0, memory=True),
        Block(held, 40, partial(_process_cases, held, scope.picture(size)), rounds=1, warmup=0, seconds=0),
    ]


_LIMIT = 1536 << 20
"""Memory that a process may take, bytes; the libraries alone take half of it."""


def _process_cases(group: str, picture: np.ndarray) -> list[Case]:
    ways = {
        "eager, NCHW": Apart(_held, picture, False),
        "Predictor, float32": Apart(_held, picture, True),
        f"Predictor, float32, memory={_LIMIT // MIB:.0f} MiB": Apart(_held, picture, True, _LIMIT),
    }
    return [Case(name, way, group, not number, notes=way.notes) for number, (name, way) in enumerate(ways.items())]


def _held(picture: np.ndarray, fast: bool, limit: int | None = None) -> Made:
    """Two images, and what the process holds before and after each, and held at most, in MiB."""
    keep_freed_memory()
    model, held = deeplabv3_resnet50(), [resident_bytes()]
    call: Callable[[], Tensor] = by_hand(model, torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous())
    if fast:
        call = partial(by_predictor(model, "float32", InferenceOptions(memory=limit)), picture)
    for _ in range(2):
        call()
        held.append(resident_bytes())
    most = fields_of(Path("/proc/self/status")).get("VmHWM:", 0) / 1024
    names = ("first image MiB", "second image MiB")
    return call, {name: (held[k + 1] - held[k]) / MIB for k, name in enumerate(names)} | {"most MiB": most}


def large(scope: Scope) -> list[Block]:
    """A scene of Cityscapes' size, whole and in windows: time, and peak growth of the process in the first run."""
    size = scope.sizes((1024, 2048))[0]
    name = f"DeepLab v3 ResNet-50 stride 8, 19 classes, {size[0]}x{size[1]}"
    return [Block(name, 120, partial(_large_cases, name, scope.picture(size)), rounds=1, warmup=0, seconds=0)]


def _large_cases(name: str, picture: np.ndarray) -> list[Case]:
    model = deeplabv3_resnet50(19)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].contiguous()
    side = min(769, *(max(2, 3 * length // 4) for length in picture.shape[:2]))
    windows = InferenceOptions(window=(side, side), overlap=1 / 3)
    ways: dict[str, Way] = {
        "eager, NCHW": by_hand(model, image),
        "Predictor, float32": partial(by_predictor(model, "float32"), picture),
        "Predictor, bfloat16": partial(by_predictor(model, "bfloat16"), picture),
        f"Predictor, bfloat16, windows of {side}": partial(by_predictor(model, "bfloat16", windows), picture),
    }
    cases = cases_of(name, ways, agreement=False)
    if not can_sample_memory():
        return cases
    return [dataclasses.replace(case, notes={"growth MiB": peak_memory(case.run)}) for case in cases]
