"""What a run leaves on record: metrics.jsonl, log.txt, TensorBoard's events, and whatever trackers keep."""

from __future__ import annotations

import io
import json
import math
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from degrid.contracts import unchanged
from degrid.engine.training.cycles import Cycles
from degrid.files import explained, make_folder, parse_json, write_text
from degrid.lookup import counted
from degrid.types import OnProgress, Progress, Scores, Tell

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from torch import Tensor, nn

PARTS = ("train", "val")
SCALAR_STEPS = 10
"""Steps from one recorded scalar to the next."""
LINE_SECONDS = 15
"""Minimum seconds between two lines about steps in log.txt."""


@dataclass(frozen=True)
class StepRecord:
    """An optimiser step, counted from 1, with its mean loss over valid pixels and the encoder's learning rate.

    train_miou: of the training crops since the cycle began, 0 to 1; only in cyclic training.
    parts: the loss by its parts, factors included; empty where it has only one.
    figures: further numbers by name, such as "staleness" in asynchronous training.
    """

    step: int
    loss: float
    lr: float
    images_per_second: float
    train_miou: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


class Recorder:
    """Follows a run as it proceeds. The methods here do nothing; a recorder overrides those that it needs."""

    def step(self, record: StepRecord) -> None:
        """An optimiser step is done."""

    def validation(self, step: int, scores: Scores) -> None:
        """The model was validated after a step."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by tag, such as "train/loss", of some of the steps and of every validation."""

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture, uint8 [H,W,3]."""

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """The network, with RGB images [N,3,H,W] to trace it on; its mode must stay as it is."""

    def say(self, line: str) -> None:
        """A sentence for people."""

    def close(self, failed: bool = False) -> None:
        """The run has ended, or has `failed`; wait until everything has been written."""


class RunLog:
    """Passes what happens in a run to everything that records it; a context manager.

    Args:
        folder: the run folder; files are appended to, so that a resumed run continues them.
        steps: optimiser steps of the whole run.
        start: the step at which the run starts or resumes. Later records, left by a run that was killed after its last
            checkpoint, are dropped: the run will write them again.
        cycles: those of a cyclic training, whose log.txt also has the lines of the code of Ziegler et al.
        trackers: further recorders; they are closed with this log.
        progress, tell: see `degrid.train`; log.txt gets every sentence as well.
        writes: whether anything is recorded; of several processes only one may.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int = 0,
        cycles: Cycles | None = None,
        trackers: Sequence[Recorder] = (),
        progress: OnProgress | None = None,
        tell: Tell | None = None,
        writes: bool = True,
    ) -> None:
        self._text, self._recorders = Recorder(), tuple(trackers)
        self._folder = folder
        if writes:
            make_folder(folder)
            with self._room():
                self._text = _TextLog(folder, cycles)
                self._recorders = (_MetricsFile(folder, start), self._text, _TensorBoard(folder, start), *trackers)
        self.progress: OnProgress = progress or (lambda _: None)
        self.tell: Tell = tell or (lambda _: None)
        self._steps, self._miou, self._last_line = steps, "", time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:  # all are closed, even if one of them fails
            stack.enter_context(self._room() if error is None else suppress(OSError))
            for recorder in reversed(self._recorders):
                stack.callback(recorder.close, failed=error is not None)

    def _room(self) -> AbstractContextManager[None]:
        """Report in a sentence that a record could not be written, for example on a full disk."""
        again = f"the last checkpoint is whole; go on with: degrid train --resume {shlex.quote(str(self._folder))}"
        return explained(self._folder, again)

    def _each(self, act: Callable[[Recorder], None]) -> None:
        """Have every recorder do something.

        Raises:
            UserError: the disk is full, or the place cannot be written to.
        """
        with self._room():
            for recorder in self._recorders:
                act(recorder)

    def step(self, record: StepRecord) -> None:
        """Record an optimiser step."""
        self._each(lambda recorder: recorder.step(record))
        if record.step == 1 or record.step % SCALAR_STEPS == 0:
            values = {"loss": record.loss, "learning rate": record.lr, "mIoU": record.train_miou}
            values |= {f"loss {name}": value for name, value in record.parts.items()} | record.figures
            self._scalars("train", record.step, values)
        now = Progress("training", record.step, self._steps, f"loss {record.loss:.3f}{self._miou}")
        self.progress(now)
        if time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            with self._room():
                self._text.say(str(now))

    def validation(self, step: int, scores: Scores) -> None:
        """Record a validation."""
        self._miou = f" mIoU {100 * scores.miou:.1f} %"
        self._each(lambda recorder: recorder.validation(step, scores))
        means = {"mIoU": scores.miou, "pixel accuracy": scores.pixel_accuracy, "mean accuracy": scores.mean_accuracy}
        classes = zip(scores.class_names, scores.class_iou, strict=True)
        self._scalars("val", step, {**means, **{f"IoU class {name}": iou for name, iou in classes}})
        self.say(
            f"step {step}: val mIoU {100 * scores.miou:.2f} %, pixel accuracy {100 * scores.pixel_accuracy:.2f} % "
            f"({counted(scores.num_images, 'image')}, {counted(scores.num_classes_counted, 'class')})"
        )

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H,W,3], such as an image beside its label and its prediction."""
        self._each(lambda recorder: recorder.image(step, tag, picture))

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """Record the network's graph, traced on RGB images [N,3,H,W]."""
        self._each(lambda recorder: recorder.graph(model, image))

    def say(self, line: str) -> None:
        """Record a sentence for people, and tell it."""
        self._each(lambda recorder: recorder.say(line))
        self.tell(line)

    def _scalars(self, part: str, step: int, values: dict[str, float | None]) -> None:
        known = {f"{part}/{tag}": value for tag, value in values.items() if value is not None}
        self._each(lambda recorder: recorder.scalars(step, known))


class _MetricsFile(Recorder):
    """metrics.jsonl: a JSON object for each step and validation, flushed at once."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        path = folder / "metrics.jsonl"
        _keep_until(path, start)
        self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        values: dict[str, Any] = {"step": record.step, "loss": record.loss, "lr": record.lr}
        values["images_per_second"] = round(record.images_per_second, 2)
        extra = {"train_miou": record.train_miou, "loss_parts": record.parts}
        values |= {key: value for key, value in extra.items() if value not in (None, {})}
        self._write(values | {name.replace(" ", "_"): value for name, value in record.figures.items()})

    def validation(self, step: int, scores: Scores) -> None:
        means = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "mean_accuracy": scores.mean_accuracy}
        classes = dict(zip(scores.class_names, scores.class_iou, strict=True))
        self._write({"step": step, "val": {**means, "class_iou": classes}})

    def close(self, failed: bool = False) -> None:
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


class _TextLog(Recorder):
    """log.txt: dated sentences; in cyclic training also the undated lines of the code of Ziegler et al."""

    def __init__(self, folder: Path, cycles: Cycles | None = None) -> None:
        self._file = (folder / "log.txt").open("a", encoding="utf-8", errors="backslashreplace")
        self._cycles = cycles

    def step(self, record: StepRecord) -> None:
        if self._cycles and record.train_miou is not None:
            update = record.step - 1
            if self._cycles.begins(update):
                self._file.write(f"Iteration: {self._cycles.cycle(update)}\n")
            self._file.write(f"{self._cycles.step(update)}, {record.loss:.3f}, {record.train_miou:.3f}\n")

    def validation(self, step: int, scores: Scores) -> None:
        if self._cycles:
            ious = (math.nan if iou is None else iou for iou in scores.class_iou)
            lines = ["The checkpoint has been created.", f"Pixel Accuracy: {scores.pixel_accuracy:.3f}"]
            lines += [f"class {index}: {iou:.3f}" for index, iou in enumerate(ious)]
            self._file.write("".join(f"{line}\n" for line in [*lines, f"mIoU: {scores.miou:.3f}"]))

    def say(self, line: str) -> None:
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._file.flush()

    def close(self, failed: bool = False) -> None:
        self._file.close()


class _TensorBoard(Recorder):
    """Events in log/train and log/val. Tags lose "train/" and "val/", so that the two curves of one tag overlay."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._boards = {part: SummaryWriter(str(folder / "log" / part), purge_step=start + 1) for part in PARTS}
        self._hook, threading.excepthook = threading.excepthook, self._in_thread

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Let TensorBoard's threads end quietly: the next write, or closing, raises their errors again."""
        if type(failed.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
            self._hook(failed)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            part, _, name = tag.partition("/")
            self._boards[part].add_scalar(name, value, step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        # As the writer's add_image, but compressed four times as fast.
        encoded = io.BytesIO()
        Image.fromarray(picture).save(encoded, format="PNG", compress_level=1)
        height, width, channels = picture.shape
        shown = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=encoded.getvalue())
        board: Any = self._boards[tag.partition("/")[0]]
        board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)

    def graph(self, model: nn.Module, image: Tensor) -> None:
        with warnings.catch_warnings(), torch.no_grad(), unchanged(model):
            # TorchScript warns that it is deprecated and of every size it takes as fixed. The writer would also trace
            # a second time to compare the values, which nobody needs of a drawing: a trace it takes as it is.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(model, image, check_trace=False)  # type: ignore[no-untyped-call]
            self._boards["train"].add_graph(traced, image)

    def close(self, failed: bool = False) -> None:
        try:
            for board in self._boards.values():
                board.close()
        finally:
            threading.excepthook = self._hook


def _keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a truncated last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    write_text(path, "".join(kept))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, in order."""
    return [parse_json(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
