"""Write a model for another runtime, as `degrid export` does."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from degrid.data import open_dataset
from degrid.engine.evaluation.evaluate import evaluate
from degrid.exporters.check import Comparison
from degrid.exporters.export import Quantization, check_can_export, export_model
from degrid.exporters.exporter import Exporter
from degrid.exporters.table import find_exporter, find_opener, name_of
from degrid.model_folder import load
from degrid.models import Segmenter
from degrid.types import Dataset, LabelSpace, OnProgress, Progress, Sample, Tell, UserError


@dataclass(frozen=True)
class Int8:
    """Static quantization to int8: the images to choose ranges by, and how much accuracy it may cost.

    Every other image calibrates and the others measure: the neighbours in a sequence are alike, its halves are not.

    Attributes:
        data: a dataset, as for `degrid.open_dataset`, or an opened one.
        split: of the dataset, where it is not open yet.
        images: at most so many to calibrate on, and as many to measure on.
        max_drop: points of mIoU (0..100) that int8 may lose.
    """

    data: str | os.PathLike[str] | Dataset
    split: str = "train"
    images: int = 100
    max_drop: float = 2.0


@dataclass(frozen=True)
class Int8Scores:
    """What int8 costs: mIoU, 0..1, of the float32 and the int8 file on images that were not calibrated on."""

    images: int
    float32: float
    int8: float

    def __str__(self) -> str:
        before, after = 100 * self.float32, 100 * self.int8
        return f"mIoU on {self.images} images that were not calibrated on: float32 {before:.2f}, int8 {after:.2f}"


@dataclass(frozen=True)
class ExportResult:
    """An exported model.

    Attributes:
        path: the file that `degrid predict` takes; `name` says how.
        name: the path, with the format before it where the file's ending does not tell it.
        files: all files, `path` among them.
        comparisons: what was found at each size; empty for a format that cannot be run here.
        int8: what int8 costs; None without int8.
    """

    path: Path
    name: str
    files: tuple[Path, ...]
    comparisons: tuple[Comparison, ...]
    int8: Int8Scores | None = None

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(part.stat().st_size for file in self.files for part in [file, *file.rglob("*")] if part.is_file())


def export(
    model: str | os.PathLike[str] | Segmenter,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | type[Exporter] = "onnx",
    output: str = "ids",
    input_type: str = "uint8",
    size: tuple[int, int] | None = None,
    int8: Int8 | None = None,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> ExportResult:
    """Write a model for another runtime: RGB pixels of any size in, class ids out; nothing else is needed there.

    The file is run and compared with the model at several sizes before it counts: what differs leaves no file.

    Args:
        model: a model folder or run folder, or a network of degrid.
        out: the file to write; by default beside the folder, with the folder's name and the format's ending.
        format: "onnx", "openvino" or another name in `degrid.exporters.table.EXPORTERS`, or a class of your own,
            itself or as "module:Class".
        output: "ids": class ids at the image's size; "logits": as the network gives them, for fusing scales or a CRF.
        input_type: of the RGB pixels 0-255, "uint8" or "float32".
        size: height and width, for a file that takes one image of this size only.
        int8: quantize.
        progress: called while the int8 file is measured.
        tell: called with a line about each step.
    Raises:
        UserError: see `degrid.exporters.export.export_model`; or int8 loses more than it may.
    """
    exporter = find_exporter(format)
    path = Path(out) if out is not None else _beside(model, exporter, int8 is not None)
    check_can_export(exporter, path, size, int8 is not None)
    network = _network(model)
    judge = _Judge(int8, network.labels, progress) if int8 else None
    found = export_model(
        network,
        network.labels,
        path,
        type(exporter),
        output=output,
        input_type=input_type,
        size=size,
        int8=Quantization(judge.pictures, judge) if judge else None,
        tell=tell or (lambda line: None),
    )
    opener = find_opener(path)
    by_ending = opener is not None and type(opener[0]) is type(exporter)
    name = str(path) if by_ending else f"{name_of(exporter)}={path}"
    return ExportResult(path, name, tuple(exporter.files(path)), tuple(found), judge.scores if judge else None)


def _beside(model: str | os.PathLike[str] | Segmenter, exporter: Exporter, int8: bool) -> Path:
    """Where a folder's exported model goes by default."""
    if isinstance(model, Segmenter):
        raise UserError("say where to write the network: out must be a file name, such as my_model.onnx")
    name = Path(model).resolve().name
    return Path(model).parent / f"{name}{'.int8' if int8 else ''}{exporter.ending}"


def _network(model: str | os.PathLike[str] | Segmenter) -> Segmenter:
    """In evaluation mode on the CPU; the user's own stays as it is."""
    if isinstance(model, Segmenter):
        return copy.deepcopy(model).cpu().float().eval()
    opener = find_opener(model)
    if opener and opener[1].is_file():
        raise UserError(f"{model} is an exported model already; export the model folder it came from")
    return load(model)


class _Judge:
    """Holds the images of an `Int8`, and refuses a model that loses too much on those that did not calibrate it."""

    def __init__(self, how: Int8, labels: LabelSpace, progress: OnProgress | None) -> None:
        dataset = how.data
        if isinstance(dataset, str | os.PathLike):
            dataset = open_dataset(os.fspath(dataset), how.split, labels=labels)
        count = len(dataset)
        if count < 2:
            raise UserError(
                f'the split "{how.split}" of {how.data} has {count} images; int8 needs one half to measure on'
            )
        step = max(2, count // how.images)
        chosen = range(0, count, step)[: how.images]
        rest = [index for index in range(count) if index % step == 1]
        self.pictures = [dataset[index].image.permute(1, 2, 0).numpy() for index in chosen]
        """To calibrate on, uint8 [H,W,3]."""
        self.measured = _Part(dataset, rest[: how.images])
        self.max_drop, self.progress = how.max_drop, progress or (lambda progress: None)
        self.scores: Int8Scores | None = None

    def __call__(self, exact: nn.Module, small: nn.Module) -> None:
        before, after = self._miou(exact, "measuring float32"), self._miou(small, "measuring int8")
        self.scores = Int8Scores(len(self.measured), before, after)
        drop = 100 * (before - after)
        if drop > self.max_drop:
            raise UserError(
                f"int8 loses {drop:.2f} points of mIoU, more than {self.max_drop:g} (--max-drop); nothing is written "
                f"({self.scores}). Calibrate on images like those to come, or stay with float32"
            )

    def _miou(self, model: nn.Module, task: str) -> float:
        total = len(self.measured)

        def on_image(index: int, *_: object) -> None:
            self.progress(Progress(task, index + 1, total))

        return evaluate(model, self.measured, device="cpu", boundary=False, on_image=on_image).miou


class _Part:
    """Some images of a dataset."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.labels, self.dataset, self.indices = dataset.labels, dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.dataset[self.indices[index]]
