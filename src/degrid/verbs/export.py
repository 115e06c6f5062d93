"""Write a model for another runtime: `degrid.export`."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from torch import Tensor, nn

from degrid.arguments import check_fields, checked
from degrid.chance import drawing_for_itself
from degrid.contracts import ExportedNetwork, bands_of, convention_of, copied, declared
from degrid.engine.inference.adapted import adapted
from degrid.exporters.exporter import Exporter
from degrid.exporters.facts import FIXED, Facts, ImageInput
from degrid.exporters.graph import TRACED, Source, example_image
from degrid.exporters.runtime import Comparison, ExportedModel, compared, must_run
from degrid.exporters.sensitivity import LayerLoss, by_loss
from degrid.exporters.table import find_exporter, formats_with_int8, name_of, spelled
from degrid.files import check_utf8, explained, make_folder
from degrid.lookup import counted, in_a_line
from degrid.model_places import is_named
from degrid.types import Bands, Dataset, LabelSpace, OnProgress, Sample, Tell, UserError
from degrid.verbs.evaluate import AnyData, Measures, counting, evaluate, opened
from degrid.verbs.open_network import AnyModel, open_network
from degrid.verbs.open_network import name_of as model_name

_EXAMPLES = 4
"""Number of images with which the layers that lose most in int8 are found."""


@dataclass(frozen=True)
class Int8:
    """Static quantization to int8: the images to choose ranges by, and how much accuracy it may cost.

    Every other image calibrates and the rest measure: neighbours in a sequence are alike, but its halves are not.

    data: a dataset, as for `degrid.open_dataset`, or an opened one; split: used if it is not open yet.
    images: the most to calibrate on, and the most to measure on.
    max_drop: points of mIoU (0..100) that int8 may lose.
    float_layers: the most convolutions that may stay in float32 if int8 in all of them loses more, those that lose most
        first; None: a quarter of all.
    """

    data: AnyData
    split: str = "train"
    images: int = 100
    max_drop: float = 2.0
    float_layers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.float_layers is not None and self.float_layers < 0:
            raise UserError(f"float_layers: expected a number of convolutions, or None, got {self.float_layers}")


@dataclass(frozen=True)
class Int8Scores:
    """mIoU, 0..1, of the float32 and the int8 file, on `images` images that were not calibrated on.

    float_layers: the convolutions that stayed in float32.
    """

    images: int
    float32: float
    int8: float
    float_layers: tuple[LayerLoss, ...] = ()

    @property
    def drop(self) -> float:
        """Points of mIoU that int8 loses."""
        return 100 * (self.float32 - self.int8)

    def __str__(self) -> str:
        before, after = 100 * self.float32, 100 * self.int8
        text = f"mIoU on {counted(self.images, 'image')} not calibrated on: float32 {before:.2f}, int8 {after:.2f}"
        if self.float_layers:
            layers = ", ".join(str(layer) for layer in self.float_layers)
            text += f"; in float32 (and the change of the logits that int8 in it makes): {layers}"
        return text


@dataclass(frozen=True)
class ExportResult:
    """An exported model.

    name: what `degrid predict` takes: the file, with its format before it if the ending does not tell.
    files: all files (or folders), last the one that was asked for.
    comparisons: what was found at each size; empty for a format that cannot be run here.
    """

    name: str
    files: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]
    int8: Int8Scores | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(part.stat().st_size for file in self.files for part in [file, *file.rglob("*")] if part.is_file())


@checked
@drawing_for_itself
def export(
    model: AnyModel,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | type[Exporter] | Exporter = "onnx",
    output: str = "ids",
    takes: ImageInput | None = None,
    int8: Int8 | None = None,
    labels: LabelSpace | None = None,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> ExportResult:
    """Write a model for another runtime, run it there, and compare; only then is there a file.

    Args:
        model: a model folder, a run folder, or a network from RGB images [N,3,H,W] (0-255) to logits, which is not
            changed.
        out: the file to write; by default the folder's name with the format's ending, beside the folder.
        format: a name in `degrid.exporters.table.EXPORTERS`, a class of your own, itself or as "module:Class", or one
            with options, such as `degrid.exporters.onnx.Onnx(opset=19)`.
        output: "ids": class ids at the image's size; "logits": as the network gives them, for fusing scales or a CRF.
        takes: the type of the pixels, and their size and number where they are fixed; None: uint8, any.
        int8: quantize.
        labels: the classes of a network that does not declare them.
        progress: called while the int8 file is measured.
        tell: called with a line about each step.
    Raises:
        UserError: a format, output or network that cannot be exported, a package that is not installed, a result that
            differs, or int8 that loses too much.
    """
    exporter = find_exporter(format)
    takes = takes or ImageInput()
    path = Path(out) if out is not None else _beside(model, exporter, int8 is not None)
    check_utf8(path)
    _check(exporter, path, output, takes, int8 is not None)
    network, labels = _network(model, labels)
    trial = _Trial(int8, labels, bands_of(network), progress) if int8 else None
    source = Source.of(network, output, takes)
    classes = tuple(zip(labels.names, labels.colors, strict=True))
    facts = Facts.of(takes, classes, output, convention_of(network), bands_of(network))
    job = _Job(exporter, network, source, facts, tell or (lambda line: None))
    make_folder(path.parent)
    # On the same disk, so that the finished files can be renamed to their place; under their final names, since they
    # may name one another.
    name = f".{path.name}."
    with explained(path), TemporaryDirectory(dir=path.parent, prefix=name, ignore_cleanup_errors=True) as place:
        made = Path(place) / "float" / path.name
        comparisons, scores = job.write(made), None
        if trial:
            exact, made = made, Path(place) / "int8" / path.name
            comparisons, scores = job.quantize(exact, made, trial)
        files = tuple(exporter.files(path))
        for file, target in zip(exporter.files(made), files, strict=True):
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
    return ExportResult(spelled(exporter, path), files, tuple(comparisons), scores)


def _beside(model: AnyModel, exporter: Exporter, int8: bool) -> Path:
    """Default place of a folder's exported model."""
    if isinstance(model, nn.Module):
        raise UserError("say where to write the network: out must be a file name, such as my_model.onnx")
    folder = Path() if is_named(model) else Path(model).parent
    return folder / f"{Path(model).resolve().name}{'.int8' if int8 else ''}{exporter.ending}"


def _check(exporter: Exporter, path: Path, output: str, takes: ImageInput, int8: bool) -> None:
    """Before any long work: can the format do what is wanted, and is all that it needs installed?"""
    name = name_of(exporter)
    if not path.name.endswith(exporter.ending):
        raise UserError(f"expected a file name that ends in {exporter.ending} for {name}, got {path}")
    if output == "ids" and "ids" not in exporter.outputs:
        raise UserError(
            f"{name} files give logits, from which degrid predict makes class ids; add: --output logits "
            '(output="logits")'
        )
    _check_takes(exporter, takes)
    if int8 and not (exporter.has_int8 and exporter.runs_here):
        raise UserError(f"int8 is for {' and '.join(formats_with_int8())}, not for {name}")
    if int8 and (takes.size or takes.batch):
        raise UserError("int8 is for files that take any number of images of any size; leave out --size and --batch")
    for package in (*exporter.packages, *(exporter.int8_packages if int8 else ())):
        exporter.library(package)


def _check_takes(exporter: Exporter, takes: ImageInput) -> None:
    """Can files of this format take such images?"""
    name = name_of(exporter)
    if takes.type not in exporter.inputs:
        only = exporter.inputs[0]
        raise UserError(f'{name} files take pixels of {only}; add: --input {only} (takes=ImageInput("{only}"))')
    if takes.fixed_batch is None and exporter.any_size and not exporter.any_batch:
        raise UserError(
            f"{name} files are for a fixed number of images; say how many: --batch 1 (takes=ImageInput(batch=1))"
        )
    if takes.size is None and not exporter.any_size:
        raise UserError(
            f"{name} files are for images of one size; say which: --size 512x1024 (takes=ImageInput(size=...))"
        )


def _network(model: AnyModel, labels: LabelSpace | None) -> tuple[nn.Module, LabelSpace]:
    """A copy on the CPU, in evaluation mode and single precision, and its classes; the user's own stays as it is."""
    network = open_network(model)
    known = declared(network)
    if isinstance(known, ExportedNetwork):
        raise UserError(f"{model_name(model)} is an exported model already; export the model folder it came from")
    labels = labels or (known.labels if known else None)
    if labels is None:
        raise UserError(f"{model_name(model)} does not declare its classes; give them as labels")
    return _in_single_precision(copied(network).cpu().eval()), labels


def _in_single_precision(network: nn.Module) -> nn.Module:
    """The network in float32, which every runtime accepts; unchanged if it casts its maps to another type itself."""
    if all(each.dtype == torch.float32 for each in network.parameters() if each.is_floating_point()):
        return network.float()  # buffers, too
    single = copy.deepcopy(network).float()
    image = example_image((1, bands_of(network).count, *TRACED[2:]))
    with torch.no_grad(), suppress(Exception):  # a user's network may raise anything
        adapted(network)(image)
        try:
            adapted(single)(image)
        except Exception:  # likewise
            return network
    return single


@dataclass(frozen=True)
class _Job:
    """The export of one network to one format."""

    exporter: Exporter
    network: nn.Module
    source: Source
    facts: Facts
    tell: Tell

    def write(self, path: Path) -> list[Comparison]:
        """Write the float file, and compare it."""
        graph = self.source.graph
        self.tell(f"{graph.folded} batch norms folded, {graph.fixed} smoothed convolutions with fixed filters")
        self.tell(f"tracing, and writing {path.name}")
        path.parent.mkdir()
        try:
            self.exporter.write(self.source, path, self.facts.to_json())
        except (UserError, OSError, MemoryError):
            raise
        except Exception as error:  # the libraries have exceptions of many kinds
            raise UserError(
                f"{name_of(self.exporter)} cannot hold this network ({in_a_line(error)}); {FIXED}, or another format"
            ) from error
        if not self.exporter.runs_here:
            return []
        self.tell("comparing with PyTorch" + ("" if self.facts.size else " at sizes that were not traced"))
        return compared(adapted(self.network), self._opened(path))

    def quantize(self, exact: Path, path: Path, trial: _Trial) -> tuple[list[Comparison], Int8Scores]:
        """Write the float file `exact` anew as int8, compare it, and try both.

        While it loses too much, twice as many of the convolutions that lose most stay in float32.
        """
        self.tell(f"calibrating int8 on {counted(len(trial.calibrating), 'image')}")
        path.parent.mkdir()
        before = trial.miou(self._opened(exact), "measuring float32")
        ranked: list[LayerLoss] | None = None
        kept: list[LayerLoss] = []
        while True:
            images = (trial.dataset[index].image[None].numpy() for index in trial.calibrating)
            inputs = (image.astype(self.facts.input) for image in images)
            self.exporter.quantize(exact, path, inputs, [layer.name for layer in kept])
            must_run(f"{name_of(self.exporter)}={path}")
            small = self._opened(path)
            found = compared(adapted(self.network), small, exact=False)
            after = trial.miou(small, "measuring int8")
            scores = Int8Scores(len(trial.measuring), before, after, tuple(kept))
            if scores.drop <= trial.how.max_drop:
                return found, scores
            if ranked is None:
                ranked = [] if trial.how.float_layers == 0 else by_loss(self.source.graph, trial.examples())
            most = len(ranked) // 4 if trial.how.float_layers is None else trial.how.float_layers
            if len(kept) >= min(most, len(ranked)):
                trial.refuse(scores)
            kept = ranked[: min(max(1, 2 * len(kept)), most)]
            self.tell(f"int8 loses {scores.drop:.2f} points of mIoU; {counted(len(kept), 'layer')} in float32")

    def _opened(self, path: Path) -> ExportedModel:
        return ExportedModel(f"{name_of(self.exporter)}={path}")


class _Trial:
    """The images of an `Int8`, to calibrate and to measure on."""

    def __init__(self, how: Int8, labels: LabelSpace, bands: Bands, progress: OnProgress | None) -> None:
        dataset = opened(how.data, how.split, labels, bands)
        count = len(dataset)
        if count < 2:
            raise UserError(
                f'split "{how.split}" of {how.data}: {counted(count, "image")}, but int8 needs one half to measure on'
            )
        step = max(2, count // how.images)
        self.how, self.dataset, self.progress = how, dataset, progress
        self.calibrating = range(0, count, step)[: how.images]
        self.measuring = _Part(dataset, [index for index in range(count) if index % step == 1][: how.images])

    def examples(self) -> list[Tensor]:
        """A few of the images to calibrate on, to find the layers that lose most."""
        return [self.dataset[index].image[None].float() for index in self.calibrating[:_EXAMPLES]]

    def refuse(self, scores: Int8Scores) -> NoReturn:
        """Say that int8 loses too much."""
        raise UserError(
            f"int8 loses {scores.drop:.2f} points of mIoU, more than {self.how.max_drop:g} (--max-drop, max_drop=...); "
            f"nothing is written ({scores}). Calibrate on images like those to come, allow more layers in float32 "
            "(--float-layers, float_layers=...), or stay with float32"
        )

    def miou(self, model: nn.Module, task: str) -> float:
        """The mIoU of a file on the images that were not calibrated on."""
        on_image = counting(self.progress, task, len(self.measuring))
        return evaluate(model, self.measuring, device="cpu", measures=Measures(boundary=False), on_image=on_image).miou


class _Part:
    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.labels, self.dataset, self.indices = dataset.labels, dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.dataset[self.indices[index]]
