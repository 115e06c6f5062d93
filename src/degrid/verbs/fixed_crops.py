"""Training on crops that are drawn once, where the stages before the first dilated one are frozen and run once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from degrid.analysis.receptive_field import is_dilated, stages_of
from degrid.config import RunConfig
from degrid.contracts import evaluating
from degrid.data import Share, batches_by_number
from degrid.engine.ranks import rank_and_count
from degrid.files import make_folder
from degrid.models import Segmenter, freeze_batch_norm
from degrid.types import Batch, Dataset, OnProgress, Progress, UserError
from degrid.verbs.run_settings import transform_of


def check_fixed_crops(config: RunConfig) -> None:
    """Refuse what does not go with crops that are drawn once.

    Raises:
        UserError: names the first such setting.
    """
    settings = config.train
    if settings.fixed_crops < 0:
        raise UserError(f'setting "train.fixed_crops": expected 0 (off) or more, got {settings.fixed_crops}')
    if not settings.fixed_crops:
        if settings.features:
            raise UserError(
                'setting "train.features": only fixed crops have features to keep, and without train.fixed_crops every '
                "step draws new ones; set train.fixed_crops to the number of crops"
            )
        return
    for path, impossible, instead in (
        ("train.cyclic=true", settings.cyclic, "set train.cyclic=false"),
        ("train.compile=true", settings.compile, "set train.compile=false"),
        ("train.asynchronous (--async)", settings.asynchronous.workers > 0, "set train.asynchronous.workers=0"),
        ("model.scales", bool(config.model.scales), "leave model.scales empty"),
        ("data.repeat_rare", config.data.repeat_rare > 0, "set data.repeat_rare=0"),
        ("data.shuffle_buffer", config.data.shuffle_buffer > 0, "set data.shuffle_buffer=0"),
        ("several processes", rank_and_count()[1] > 1, "start one process"),
    ):
        if impossible:
            raise UserError(f"train.fixed_crops does not go with {path}; {instead}, or train.fixed_crops=0")


def frozen_stages(encoder: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """The stages of an encoder before the first dilated one, and those from there on.

    Raises:
        UserError: no stage is dilated, or the very first one.
    """
    stages = stages_of(encoder)
    first = next((place for place, stage in enumerate(stages) if is_dilated(stage)), 0)
    if not first:
        raise UserError(
            "train.fixed_crops freezes the stages before the first dilated one, but no stage of this encoder comes "
            "before a dilated one; use a smaller model.output_stride, or train.fixed_crops=0"
        )
    return stages[:first], stages[first:]


def freeze_stages(model: Segmenter) -> None:
    """Freeze what comes before the first dilated stage, batch norm included, in place.

    Raises:
        UserError: see `frozen_stages`.
    """
    early = nn.ModuleList(frozen_stages(model.encoder)[0])
    early.requires_grad_(False)
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training for each in early.modules()):
        freeze_batch_norm(early, fold=False)


class _Reached(Exception):  # noqa: N818 - the forward pass has gone as far as it should
    """Raised when the first dilated stage is about to run."""


class Replay(nn.Module):
    """A network whose frozen stages return their earlier outputs instead of computing them.

    Args:
        model: frozen by `freeze_stages`, on the device where it is to train.
        image: uint8 or float [1,C,H,W], of the size of all others.
    Raises:
        UserError: an encoder whose stages do not run one after the other.
    """

    def __init__(self, model: Segmenter, image: Tensor) -> None:
        super().__init__()
        self.model = model
        self._early, self._late = frozen_stages(model.encoder)
        self._size = tuple(image.shape[1:])
        with evaluating(model), torch.no_grad():
            self._places = self._needed(image)
            maps = self._run(image)
            self.shapes = [tuple(each.shape[1:]) for each in maps]
            """Shapes of the maps that are kept, such as [C,h,w]."""
            self._layouts = [_layout(each) for each in maps]
            wanted, found = model(image), self(self.features(image))[0]
        if not torch.allclose(wanted, found, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())):
            raise UserError(
                "train.fixed_crops: this encoder reads its early maps in more ways than from stage to stage, so that "
                "they cannot be kept; use train.fixed_crops=0"
            )

    def _needed(self, image: Tensor) -> list[int]:
        """The frozen stages whose output anything but the next frozen stage reads."""
        given: list[Tensor] = []
        read: list[tuple[Any, ...]] = []  # kept, so that no other tensor gets one's identity
        read_late: set[int] = set()
        order: list[int] = []

        def hook(place: int) -> Any:
            def ran(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
                order.append(place)
                given.append(out)
                read.append(args)

            return ran

        hooks = [stage.register_forward_hook(hook(place)) for place, stage in enumerate(self._early)]
        hooks += [
            stage.register_forward_pre_hook(lambda _, args: read_late.update(map(id, args))) for stage in self._late
        ]
        hooks.append(self._late[0].register_forward_pre_hook(lambda *_: order.append(len(self._early))))
        try:
            features = self.model.encoder(self.model._normalised(image))
        finally:
            for each in hooks:
                each.remove()
        if order != list(range(len(self._early) + 1)) or not all(isinstance(each, Tensor) for each in given):
            raise UserError(
                "train.fixed_crops: the stages of this encoder do not run one after the other, each once; use "
                "train.fixed_crops=0"
            )
        read_early = {id(each) for args in read for each in args}
        shown = {each.untyped_storage().data_ptr() for each in features}
        return [
            place
            for place, out in enumerate(given)
            if id(out) in read_late or id(out) not in read_early or out.untyped_storage().data_ptr() in shown
        ]

    def _run(self, image: Tensor) -> list[Tensor]:
        """The maps that are kept, of images."""
        kept: list[Tensor] = []
        hooks = [
            self._early[place].register_forward_hook(lambda _, __, out: kept.append(out)) for place in self._places
        ]

        def reached(*_: Any) -> None:
            raise _Reached

        hooks.append(self._late[0].register_forward_pre_hook(reached))
        try:
            self.model(image)
        except _Reached:
            pass
        finally:
            for each in hooks:
                each.remove()
        return kept

    def features(self, image: Tensor) -> Tensor:
        """Images [N,C,H,W] -> what the frozen stages make of them, float32 [N,K,1,1]."""
        with evaluating(self.model), torch.no_grad():
            return torch.cat([each.float().flatten(1) for each in self._run(image)], 1)[..., None, None]

    def forward(self, features: Tensor) -> list[Tensor]:
        """Features [N,K,1,1] -> the logits [N,C,h,w] as a list of one, as `Maps` gives them."""
        lengths = [math.prod(shape) for shape in self.shapes]
        parts = features.flatten(1).split(lengths, 1)  # type: ignore[no-untyped-call]
        outputs = {
            place: part.unflatten(1, shape).contiguous(memory_format=layout)
            for place, part, shape, layout in zip(self._places, parts, self.shapes, self._layouts, strict=True)
        }
        blank = torch.zeros(1, *self._size, device=features.device).expand(len(features), *self._size)
        with _replaced(self._early, outputs):
            return [cast(Tensor, self.model(blank))]


def _layout(x: Tensor) -> torch.memory_format:
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


@contextmanager
def _replaced(stages: Sequence[nn.Module], outputs: dict[int, Tensor]) -> Iterator[None]:
    """Inside the context, the stages return these outputs, by position, and the others pass on their input."""
    for place, stage in enumerate(stages):
        stage.__dict__["forward"] = partial(outputs.get, place)  # the input is the default
    try:
        yield
    finally:
        for stage in stages:
            del stage.__dict__["forward"]


@dataclass(frozen=True)
class FixedCrops:
    """Crops that are drawn once, as what the frozen stages make of them.

    Attributes:
        features: float32 [crops,K], in a file.
        labels: uint8 [crops,H,W], likewise.
        names: of the images.
        seed: of the order; each pass over the crops has its own.
    """

    features: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    seed: int

    def batches(self, batch_size: int, start: int) -> Iterator[Batch]:
        """Batches without end from number `start` on; features [N,K,1,1] stand in the place of images."""
        order, passed = np.empty(0, np.int64), -1
        for number in range(start * batch_size, 2**62, batch_size):
            chosen = []
            for position in range(number, number + batch_size):
                passes, place = divmod(position, len(self.names))
                if passes != passed:
                    passed = passes
                    # 0 and 1 in this place are the order and the augmentation of crops that are drawn anew.
                    order = np.random.default_rng([self.seed, 2, passes]).permutation(len(self.names))
                chosen.append(int(order[place]))
            features = torch.from_numpy(self.features[chosen])[..., None, None]
            labels = torch.from_numpy(self.labels[chosen]).long()
            yield Batch(features, labels, tuple(self.names[each] for each in chosen))


def fixed_crops(
    config: RunConfig, dataset: Dataset, model: Segmenter, folder: Path, progress: OnProgress
) -> tuple[Replay, FixedCrops]:
    """The crops of a run, and its network that reads them; made, or found where another run has made them.

    They are the first ones that a run with this seed and no fixed crops would see. The features are computed in
    float32, whatever the precision of training.

    Args:
        folder: of the run, which keeps them where `train.features` is empty.
    Raises:
        UserError: see `Replay`; or what was kept was made from other images.
    """
    data, settings = config.data, config.train
    draw = batches_by_number(dataset, transform_of(data), Share.of(1, 1), settings.seed)
    device = next(model.parameters()).device
    first = draw(0)
    replay = Replay(model, first.image.to(device))
    own = np.asarray(replay.features(first.image.to(device)).flatten().cpu())
    place = (Path(settings.features) if settings.features else folder / "features") / _key(config, model, replay)
    make_folder(place.parent)
    with FileLock(f"{place}.lock"):
        if not place.exists():
            _compute(replay, draw, settings.fixed_crops, place, progress)
    features, labels = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("features", "labels"))
    same = np.allclose(features[0], own, rtol=1e-3, atol=1e-3) and np.array_equal(labels[0], first.label[0].numpy())
    if not same:
        raise UserError(f"{place} was made from images other than those now in {data.path}; remove that folder")
    names = tuple(json.loads((place / "names.json").read_text("utf-8")))
    return replay, FixedCrops(features, labels, names, settings.seed)


def _compute(replay: Replay, draw: Any, crops: int, place: Path, progress: OnProgress) -> None:
    """Write the folder `place`, which is there once it is complete."""
    begun = place.with_name(f"{place.name}.part")
    shutil.rmtree(begun, ignore_errors=True)
    make_folder(begun)
    device = next(replay.parameters()).device
    names, length = [], sum(map(math.prod, replay.shapes))
    features: Any = None
    labels: Any = None
    for number in range(crops):
        batch: Batch = draw(number)
        if labels is None:
            features = np.lib.format.open_memmap(begun / "features.npy", "w+", np.float32, (crops, length))
            labels = np.lib.format.open_memmap(begun / "labels.npy", "w+", np.uint8, (crops, *batch.label.shape[1:]))
        features[number] = replay.features(batch.image.to(device)).flatten().cpu()
        labels[number] = batch.label[0]
        names.append(batch.names[0])
        progress(Progress("drawing crops", number + 1, crops))
    features.flush()
    labels.flush()
    (begun / "names.json").write_text(json.dumps(names), "utf-8")
    begun.rename(place)


def _key(config: RunConfig, model: Segmenter, replay: Replay) -> str:
    """A name that differs if the crops or the frozen stages do."""
    frozen = nn.ModuleList(frozen_stages(model.encoder)[0])
    data = {name: value for name, value in dataclasses.asdict(config.data).items() if name not in ("val", "workers")}
    facts = [data, config.train.fixed_crops, str(frozen), str(model.preprocess), str(model.bands), replay.shapes]
    found = hashlib.sha256(json.dumps([*facts, torch.__version__]).encode())
    for name, value in frozen.state_dict().items():
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return f"seed_{config.train.seed}_{found.hexdigest()[:16]}"
