"""The records of a run folder: metrics.jsonl (one line per step), log.txt, TensorBoard, and those of trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from degrid.engine.training.cycles import Cycles
from degrid.engine.training.recorder import Recorder, StepRecord
from degrid.engine.training.tensorboard_log import TensorBoard
from degrid.files import write_text
from degrid.types import OnProgress, Progress, Scores, Tell

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from torch import Tensor, nn

SCALAR_STEPS = 10
"""Plots get the values of every so many steps."""

LINE_SECONDS = 15
"""Least time between two lines about steps in log.txt."""


class RunLog:
    """Hands what happens in a run to all that record it; use as a context manager.

    Args:
        folder: the run folder; files are appended to, so that a resumed run continues them.
        steps: optimiser steps of the whole run.
        start: the step at which the run starts or resumes. Later records, left by a run that was killed after its last
            checkpoint, are dropped: the run will write them again.
        cycles: those of a cyclic training, whose log.txt also has the lines of the code of Ziegler et al.
        trackers: further recorders; they are closed with this log.
        progress: called after every step.
        tell: called with every sentence for people, which log.txt gets as well.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int = 0,
        *,
        cycles: Cycles | None = None,
        trackers: Sequence[Recorder] = (),
        progress: OnProgress | None = None,
        tell: Tell | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._text = TextLog(folder, cycles)
        self._recorders = (MetricsFile(folder, start), self._text, TensorBoard(folder, start), *trackers)
        self.progress: OnProgress = progress or (lambda _: None)
        self.tell: Tell = tell or (lambda _: None)
        self._steps, self._miou = steps, math.nan
        self._last_line = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for recorder in self._recorders:
            recorder.close(failed=error is not None)

    def step(self, record: StepRecord) -> None:
        """Record an optimiser step."""
        for recorder in self._recorders:
            recorder.step(record)
        if record.step == 1 or record.step % SCALAR_STEPS == 0:
            values = {"loss": record.loss, "learning rate": record.lr, "mIoU": record.train_miou}
            self._scalars("train", record.step, values)
        miou = "" if math.isnan(self._miou) else f" mIoU {100 * self._miou:.1f} %"
        now = Progress("step", record.step, self._steps, f"loss {record.loss:.3f}{miou}")
        self.progress(now)
        if time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            self._text.say(str(now))

    def validation(self, step: int, scores: Scores) -> None:
        """Record a validation."""
        self._miou = scores.miou
        for recorder in self._recorders:
            recorder.validation(step, scores)
        means = {"mIoU": scores.miou, "pixel accuracy": scores.pixel_accuracy, "mean accuracy": scores.mean_accuracy}
        classes = zip(scores.class_names, scores.class_iou, strict=True)
        self._scalars("val", step, {**means, **{f"IoU class {name}": iou for name, iou in classes}})
        self.say(
            f"step {step}: val mIoU {100 * scores.miou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} % "
            f"({scores.num_images} images, {scores.num_classes_counted} classes)"
        )

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H,W,3]."""
        for recorder in self._recorders:
            recorder.image(step, tag, picture)

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """Record the network's graph, traced on RGB images [N,3,H,W]."""
        for recorder in self._recorders:
            recorder.graph(model, image)

    def say(self, line: str) -> None:
        """Record a sentence, and tell it."""
        for recorder in self._recorders:
            recorder.say(line)
        self.tell(line)

    def _scalars(self, part: str, step: int, values: dict[str, float | None]) -> None:
        known = {f"{part}/{tag}": value for tag, value in values.items() if value is not None}
        for recorder in self._recorders:
            recorder.scalars(step, known)


class MetricsFile(Recorder):
    """metrics.jsonl, one JSON object for each step and validation, flushed at once.

    Args:
        folder: the run folder.
        start: records of later steps are dropped, and so is a last line that was cut short.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        path = folder / "metrics.jsonl"
        _keep_until(path, start)
        self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        """See `Recorder`."""
        values = {"step": record.step, "loss": record.loss, "lr": record.lr}
        values["images_per_second"] = round(record.images_per_second, 2)
        self._write(values if record.train_miou is None else {**values, "train_miou": record.train_miou})

    def validation(self, step: int, scores: Scores) -> None:
        """See `Recorder`."""
        found = {
            "miou": scores.miou,
            "pixel_accuracy": scores.pixel_accuracy,
            "mean_accuracy": scores.mean_accuracy,
            "class_iou": dict(zip(scores.class_names, scores.class_iou, strict=True)),
        }
        self._write({"step": step, "val": found})

    def close(self, failed: bool = False) -> None:
        """See `Recorder`."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class TextLog(Recorder):
    """log.txt: dated sentences; in cyclic training also the undated lines of the code of Ziegler et al."""

    def __init__(self, folder: Path, cycles: Cycles | None = None) -> None:
        self._file = (folder / "log.txt").open("a", encoding="utf-8")
        self._cycles = cycles

    def step(self, record: StepRecord) -> None:
        """See `Recorder`."""
        if self._cycles and record.train_miou is not None:
            update = record.step - 1
            if self._cycles.begins(update):
                self._file.write(f"Iteration: {self._cycles.cycle(update)}\n")
            self._file.write(f"{self._cycles.step(update)}, {record.loss:.3f}, {record.train_miou:.3f}\n")

    def validation(self, step: int, scores: Scores) -> None:
        """See `Recorder`."""
        if self._cycles:
            ious = (math.nan if iou is None else iou for iou in scores.class_iou)
            lines = ["The checkpoint has been created.", f"Pixel Accuracy: {scores.pixel_accuracy:.3f}"]
            lines += [f"class {index}: {iou:.3f}" for index, iou in enumerate(ious)]
            self._file.write("".join(f"{line}\n" for line in [*lines, f"mIoU: {scores.miou:.3f}"]))

    def say(self, line: str) -> None:
        """See `Recorder`."""
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._file.flush()

    def close(self, failed: bool = False) -> None:
        """See `Recorder`."""
        self._file.close()


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that was cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
