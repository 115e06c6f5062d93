"""What a run tells: metrics.jsonl (one line per step), log.txt, TensorBoard, and a progress line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from degrid.files import write_text
from degrid.types import Scores

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np


class RunLog:
    """Writes a run folder's records; use as a context manager.

    Args:
        folder: the run folder; files are appended to, so that a resumed run continues them.
        steps: optimiser steps of the whole run, for the progress bar.
        start: the step the run (re)starts at. Records of later steps, left by a run that was stopped after
            its last checkpoint, are dropped: the run will write them again.
        quiet: nothing on the console.
    """

    def __init__(self, folder: Path, steps: int, start: int = 0, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = folder / "metrics.jsonl"
        _keep_until(self._metrics, start)
        self._jsonl = self._metrics.open("a", encoding="utf-8")
        self._text = (folder / "log.txt").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder), purge_step=start + 1)
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
        self._board.close()

    def step(self, step: int, loss: float, lr: float, images_per_second: float) -> None:
        """Record one optimiser step, counted from 1."""
        self._loss = loss
        self._write({"step": step, "loss": loss, "lr": lr, "images_per_second": round(images_per_second, 2)})
        if step == 1 or step % 10 == 0:
            self._board.add_scalar("train/loss", loss, step)
            self._board.add_scalar("train/lr", lr, step)
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
        for tag, value in (
            ("val/mIoU", found.miou),
            ("val/pixel accuracy", found.pixel_accuracy),
            ("val/mean accuracy", found.mean_accuracy),
            *((f"val IoU/{name}", iou) for name, iou in classes.items()),
        ):
            if value is not None:
                self._board.add_scalar(tag, value, step)
        self.say(
            f"step {step}: val mIoU {100 * found.miou:.2f} %, pixel accuracy {100 * found.pixel_accuracy:.2f} % "
            f"({found.num_images} images, {found.num_classes_counted} classes)"
        )

    def panel(self, step: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H,W,3], such as image | truth | prediction."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def say(self, line: str) -> None:
        """A line for people: on the console and in log.txt."""
        self._text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._text.flush()
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write(self, record: dict[str, Any]) -> None:
        self._jsonl.write(json.dumps(record) + "\n")
        self._jsonl.flush()

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
