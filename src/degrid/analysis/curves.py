"""Training curves as numbers, from a run's metrics.jsonl or from the log.txt of the original programs.

The original programs are those of Wang and Ji (KDD 2018) and of Ziegler et al. (arXiv 1903.07992); the cyclic training
of the latter also logs its cycles and their scores.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degrid.files import parse_json
from degrid.types import UserError

LOG_EPOCH_STEPS = 10582 // 10
"""Steps per epoch of the original programs on PASCAL VOC: 10582 training images in batches of 10."""


@dataclass(frozen=True)
class Validation:
    """Scores in 0..1 after a step; an IoU is None for a class that is neither in truth nor in prediction."""

    step: int
    miou: float
    pixel_accuracy: float | None
    class_iou: Mapping[str, float | None]


@dataclass(frozen=True)
class Curves:
    """What a training run recorded.

    steps, loss, lr: one value per optimiser step, in order; `lr` is empty where the log does not hold it. A loss may
    be NaN.
    format: "degrid", "kdd" (Wang and Ji; also Ziegler et al.) or "eth" (the cyclic training of Ziegler et al.).
    epoch_steps: steps per pass over the training images; None where unknown.
    """

    name: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    lr: tuple[float, ...]
    validations: tuple[Validation, ...]
    format: str
    epoch_steps: float | None = None


def read_curves(path: str | Path) -> Curves:
    """Read the curves of a run, which may still be going on.

    Args:
        path: a run folder, a metrics.jsonl, or a log.txt of the original programs (or the folder it is in). Files are
            told apart by their content.
    Raises:
        UserError: no such file, an unknown format, or a damaged line; the message names the line.
    """
    file = _find(Path(path))
    try:
        text = file.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    lines = text.splitlines()
    complete = text.endswith(("\n", "\r"))
    is_json = next((line for line in lines if line.strip()), "").lstrip().startswith("{")
    found = _read_jsonl(file, lines, complete) if is_json else _read_log(file, lines, complete)
    if not found.steps:
        raise UserError(
            f"{file}: expected records of training steps, found none; give a run folder, a metrics.jsonl, "
            f'or a log.txt with lines "step, loss" or "step, loss, mIoU"'
        )
    return found


def distinct(names: Iterable[str]) -> list[str]:
    """The names, with -2, -3, .. appended to repeated ones."""
    wanted = list(names)
    found: list[str] = []
    for name in wanted:
        candidate, count = name, 1
        # A numbered name must not be the name of another run.
        while candidate in found or (count > 1 and candidate in wanted):
            count += 1
            candidate = f"{name}-{count}"
        found.append(candidate)
    return found


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in ("metrics.jsonl", "log.txt"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path} holds no run: expected metrics.jsonl or log.txt in it")


def _name(file: Path) -> str:
    """A run has the name of its folder, unless its file has a name of its own."""
    generic = file.name in ("metrics.jsonl", "log.txt")
    return (Path(os.path.abspath(file)).parent.name if generic else file.stem) or file.stem


def _read_jsonl(file: Path, lines: Sequence[str], complete: bool) -> Curves:
    records: list[tuple[int, float, float]] = []
    validations: list[Validation] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            step = int(record["step"])
            if "val" in record:
                validations.append(_validation(step, record["val"]))
            else:
                records.append((step, float(record["loss"]), float(record.get("lr", "nan"))))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if number == len(lines) and not complete:
                continue  # cut off: the run is being written, or was killed
            raise UserError(
                f'{file}, line {number}: expected a JSON record with "step" and "loss" or "val", got {line[:60]!r}'
            ) from error
    steps, loss, lr = zip(*records, strict=True) if records else ((), (), ())
    return Curves(_name(file), steps, loss, lr, tuple(validations), "degrid", _epoch_steps(file.parent))


def _validation(step: int, found: Mapping[str, Any]) -> Validation:
    classes = found.get("class_iou", {})
    accuracy = found.get("pixel_accuracy")
    ious = {str(name): None if iou is None else float(iou) for name, iou in classes.items()}
    return Validation(step, float(found["miou"]), None if accuracy is None else float(accuracy), ious)


def _epoch_steps(folder: Path) -> float | None:
    """Training images (from log.txt) divided by images per step (from run.json); None where one is missing."""
    try:
        train = parse_json((folder / "run.json").read_text(encoding="utf-8"))["config"]["train"]
        images = re.search(r"; (\d+) training and ", (folder / "log.txt").read_text("utf-8", errors="replace"))
        per_step = int(train["batch_size"]) * int(train.get("accumulate", 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    # A batch may span two epochs, so an epoch need not be a whole number of steps.
    return int(images[1]) / per_step if images and int(images[1]) > 0 and per_step > 0 else None


_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))(?![\w.])"
_STEP = re.compile(rf"\s*(\d+)\s*,\s*{_NUMBER}(?:\s*,\s*{_NUMBER})?", re.I)
_SCORE = re.compile(rf"\s*(class \d+|mIoU|Pixel Accuracy)\s*:\s*{_NUMBER}", re.I)
_CYCLE = re.compile(r"\s*Iteration:\s*(\d+)")
_LOOKS_LIKE = re.compile(r"\s*(?:\d+\s*,|(?:class \d+|mIoU|Pixel Accuracy|Iteration)\s*:)", re.I)
# These programs print three decimals: a last line that ends otherwise may be cut off.
_WHOLE_END = re.compile(r"(?:\.\d{3}|nan|inf)\s*$", re.I)


def _read_log(file: Path, lines: Sequence[str], complete: bool) -> Curves:
    if lines and not complete and not _WHOLE_END.search(lines[-1]):
        lines = lines[:-1]
    log = _Log()
    for number, line in enumerate(lines, 1):
        if match := _CYCLE.match(line):
            log.cycle(int(match[1]))
        elif match := _SCORE.match(line):
            log.score(match[1].lower(), float(match[2]))
        elif match := _STEP.match(line):
            log.step(int(match[1]), float(match[2]), has_miou=match[3] is not None)
        elif _LOOKS_LIKE.match(line):
            raise UserError(
                f'{file}, line {number}: expected "step, loss", "step, loss, mIoU", "Iteration: N" or a score such as '
                f'"mIoU: 0.712", got {line[:60]!r}'
            )
    return log.curves(_name(file))


class _Log:
    """The content of a log.txt, collected line by line. Scores belong to the step before them."""

    def __init__(self) -> None:
        self.records: list[tuple[int, float]] = []
        self.validations: list[Validation] = []
        self.scores: dict[str, float] = {}
        self.format = "kdd"
        self.number = self.offset = 0
        self.begins = False

    def cycle(self, number: int) -> None:
        self.flush()
        self.format, self.number, self.begins = "eth", number, True

    def step(self, step: int, loss: float, has_miou: bool) -> None:
        self.flush()
        if has_miou:
            self.format = "eth"
        if self.begins:
            # Cycles go on counting, and repeat the step at which they meet; if each counts from 0, we add them up.
            self.offset = self.records[-1][0] if self.records and self.number and not step else 0
            self.begins = False
        step += self.offset
        if self.records and step < self.records[-1][0]:
            # The program was started again at an earlier step, and appended to the same file.
            self.records = [record for record in self.records if record[0] < step]
            self.validations = [found for found in self.validations if found.step <= step and self.records]
        self.records.append((step, loss))

    def score(self, name: str, value: float) -> None:
        if name in self.scores:
            self.flush()
        self.scores[name] = value

    def flush(self) -> None:
        """End a list of scores; a list without mIoU was cut off, and is dropped."""
        if "miou" in self.scores and self.records:
            # The IoU of a class that occurs nowhere is 0/0, which these logs print as NaN.
            ious = {name: None if iou != iou else iou for name, iou in self.scores.items() if name.startswith("class ")}
            accuracy = self.scores.get("pixel accuracy")
            self.validations.append(Validation(self.records[-1][0], self.scores["miou"], accuracy, ious))
        self.scores = {}

    def curves(self, name: str) -> Curves:
        self.flush()
        steps, losses = tuple(step for step, _ in self.records), tuple(loss for _, loss in self.records)
        return Curves(name, steps, losses, (), tuple(self.validations), self.format, LOG_EPOCH_STEPS)
