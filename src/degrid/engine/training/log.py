"""What a run tells: metrics.jsonl (one line per step), log.txt, TensorBoard, trackers, and a progress line."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from degrid.engine.training.cycles import Cycles
from degrid.files import write_text
from degrid.types import Scores

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from torch import Tensor, nn

    from degrid.engine.training.trackers import Tracker


PARTS = ("train", "val")


class RunLog:
    """Writes a run folder's records; use as a context manager.

    Args:
        folder: the run folder; files are appended to, so that a resumed run continues them.
        steps: optimiser steps of the whole run, for the progress bar.
        start: the step the run (re)starts at. Records of later steps, left by a run that was stopped after
            its last checkpoint, are dropped: the run will write them again.
        quiet: nothing on the console.
        cycles: of a cyclic training, whose log.txt also has the lines of Ziegler et al.'s code.
        trackers: who else wants to know; they are closed with this.

    TensorBoard's events are in log/train (`loss`, `learning rate`, in cycles `mIoU`) and log/val (`mIoU`,
    `pixel accuracy`, `mean accuracy`, `IoU class NAME`), so that the curves of one tag lie over one another.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        start: int = 0,
        quiet: bool = False,
        cycles: Cycles | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        _keep_until(self._metrics, start)
        self._jsonl = self._metrics.open("a", encoding="utf-8")
        self._text = (folder / "log.txt").open("a", encoding="utf-8")
        self._boards = {part: SummaryWriter(str(folder / "log" / part), purge_step=start + 1) for part in PARTS}
        self._cycles, self._trackers = cycles, trackers
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            disable=not self._console.is_terminal or quiet,
        )
        self._task = self._bar.add_task("train", total=steps, completed=start, status="")
        self._steps, self._start = steps, start
        self._began = self._last_line = time.monotonic()
        self._loss, self._miou = float("nan"), float("nan")

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._jsonl.close()
        self._text.close()
        for board in self._boards.values():
            board.close()
        for tracker in self._trackers:
            tracker.close(failed=error is not None)

    def step(self, step: int, loss: float, lr: float, images_per_second: float, miou: float | None = None) -> None:
        """Record one optimiser step, counted from 1.

        Args:
            miou: of the training crops since the cycle began.
        """
        self._loss = loss
        record = {"step": step, "loss": loss, "lr": lr, "images_per_second": round(images_per_second, 2)}
        self._write(record if miou is None else {**record, "train_miou": miou})
        if self._cycles and miou is not None:
            if self._cycles.begins(step - 1):
                self._text.write(f"Iteration: {self._cycles.cycle(step - 1)}\n")
            self._text.write(f"{self._cycles.step(step - 1)}, {loss:.3f}, {miou:.3f}\n")
        if step == 1 or step % 10 == 0:
            self._scalars("train", step, {"loss": loss, "learning rate": lr, "mIoU": miou})
        self._show(step)

    def validation(self, step: int, found: Scores) -> None:
        """Record the scores of a validation."""
        self._miou = found.miou
        classes = dict(zip(found.class_names, found.class_iou, strict=True))
        self._write(
            {
                "step": step,
                "val": {
                    "miou": found.miou,
                    "pixel_accuracy": found.pixel_accuracy,
                    "mean_accuracy": found.mean_accuracy,
                    "class_iou": classes,
                },
            }
        )
        means = {"mIoU": found.miou, "pixel accuracy": found.pixel_accuracy, "mean accuracy": found.mean_accuracy}
        self._scalars("val", step, {**means, **{f"IoU class {name}": iou for name, iou in classes.items()}})
        if self._cycles:
            ious = (float("nan") if iou is None else iou for iou in found.class_iou)
            lines = [f"class {index}: {iou:.3f}" for index, iou in enumerate(ious)]
            self._text.write("The checkpoint has been created.\n")
            self._text.write(f"Pixel Accuracy: {found.pixel_accuracy:.3f}\n")
            self._text.write("".join(f"{line}\n" for line in [*lines, f"mIoU: {found.miou:.3f}"]))
        self.say(
            f"step {step}: val mIoU {100 * found.miou:.2f} %, pixel accuracy {100 * found.pixel_accuracy:.2f} % "
            f"({found.num_images} images, {found.num_classes_counted} classes)"
        )

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H,W,3], such as image | truth | prediction."""
        self._boards["val"].add_image(name, picture, step, dataformats="HWC")
        for tracker in self._trackers:
            tracker.image(step, name, picture)

    def graph(self, model: nn.Module, image: Tensor) -> None:
        """Record the network's graph, traced on RGB images [N,3,H,W]; the model's mode stays as it is."""
        training = model.training
        with warnings.catch_warnings(), torch.no_grad():
            # TensorBoard's writer traces with TorchScript, which warns of its age and of every size it takes as fixed.
            warnings.simplefilter("ignore")
            self._boards["train"].add_graph(model.eval(), image)
        model.train(training)

    def say(self, line: str) -> None:
        """A line for people: on the console and in log.txt."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._text.flush()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self, record: dict[str, Any]) -> None:
        self._jsonl.write(json.dumps(record) + "\n")
        self._jsonl.flush()

    def _scalars(self, part: str, step: int, values: dict[str, float | None]) -> None:
        known = {tag: value for tag, value in values.items() if value is not None}
        for tag, value in known.items():
            self._boards[part].add_scalar(tag, value, step)
        for tracker in self._trackers:
            tracker.scalars(step, {f"{part}/{tag}": value for tag, value in known.items()})

    def _show(self, step: int) -> None:
        miou = "" if self._miou != self._miou else f" mIoU {100 * self._miou:.1f} %"
        status = f"loss {self._loss:.3f}{miou}"
        self._bar.update(self._task, completed=step, status=status)
        now = time.monotonic()
        # Where no bar can be drawn, a plain line now and then.
        if self._bar.disable and (now - self._last_line > 15 or step == self._steps):
            self._last_line = now
            left = (now - self._began) / max(1, step - self._start) * (self._steps - step)
            self.say(f"step {step}/{self._steps}: {status}, ETA {int(left // 60)}:{int(left % 60):02d}")


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
