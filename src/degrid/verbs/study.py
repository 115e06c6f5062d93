"""degrid.study: the same training with every operator and many seeds, and how large the differences are."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import typing
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from degrid import config as configs
from degrid.analysis.curves import read_curves
from degrid.analysis.field_numbers import gridding_score
from degrid.analysis.receptive_field import dilated_stage_receptive_field
from degrid.arguments import check_fields, checked
from degrid.chance import drawing_for_itself
from degrid.config import RunConfig
from degrid.data import absolute, open_dataset
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import Stopped
from degrid.files import check_utf8, make_folder, parse_json, parse_yaml, read_json, read_text, write_json
from degrid.lookup import counted, some
from degrid.model_folder import initialise_from, load
from degrid.networks import build_model
from degrid.threads import signals_caught
from degrid.types import LabelSpace, OnProgress, Progress, Tell, UserError
from degrid.verbs.evaluate import Measures
from degrid.verbs.fixed_crops import check_fixed_crops, frozen_stages
from degrid.verbs.model_card import training_of
from degrid.verbs.run_settings import check_settings
from degrid.verbs.study_results import RunScores, StudyResult
from degrid.verbs.train import run_config
from degrid.version import VERSION

PROTOCOL = "study.json"
"""File of a study's folder with the protocol; written before the first run, and not changed afterwards."""


@dataclass(frozen=True)
class StudyProtocol:
    """What a study runs, fixed before its first run.

    Attributes:
        name: of the study.
        cells: what is compared: settings by the name of the cell; the others are compared with the first.
        question: what the study is to answer.
        recipe, data: see `degrid.train`.
        settings: of all runs.
        variants: further settings under which all cells are run, by name, such as networks or data.
        seeds: one run of each cell for every seed, which sets initial weights, order and crops.
        split: of the data, that the runs are scored on.
        corruptions, shift: see `degrid.Measures`; further scores of each run.
    Raises:
        UserError: fewer than two cells or seeds, or a name that occurs twice or cannot be that of a folder.
    """

    name: str
    cells: dict[str, dict[str, Any]]
    question: str = ""
    recipe: str | None = None
    data: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = tuple(range(10))
    split: str = "test"
    corruptions: tuple[str, ...] = ()
    shift: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        Measures(corruptions=self.corruptions)
        if len(self.cells) < 2 or len(self.seeds) < 2:
            raise UserError(
                f"a study compares two cells or more over two seeds or more; {self.name} has "
                f"{counted(len(self.cells), 'cell')} and {counted(len(self.seeds), 'seed')}"
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"seeds are different whole numbers from 0, got {some(self.seeds, 12)}")
        for name in (*self.cells, *self.variants):
            if not name or "/" in name or name.startswith("."):
                raise UserError(f'a cell or variant is the name of a folder, without "/" and leading "."; got "{name}"')

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """Variant, cell and seed of each run; seed by seed, so that an early look sees complete comparisons."""
        for seed in self.seeds:
            yield from ((variant, cell, seed) for variant in (self.variants or {"": {}}) for cell in self.cells)

    def config(self, variant: str, cell: str, seed: int, device: str = "auto") -> RunConfig:
        """The complete settings of a run."""
        own = {**self.settings, **self.variants.get(variant, {}), **self.cells[cell]}
        own |= {"name": f"{variant}_{cell}".lstrip("_"), "train.seed": seed, "train.device": device}
        return run_config(self.recipe, data=self.data, settings=own)


@checked
@drawing_for_itself
def study(
    protocol: str | os.PathLike[str] | StudyProtocol,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    devices: Sequence[str] = ("auto",),
    retry: bool = False,
    look: bool = False,
    progress: OnProgress | None = None,
    tell: Tell | None = None,
) -> StudyResult:
    """Train every cell with every seed, score each run on held-out images, and compare the cells over the seeds.

        degrid.study("smoothing.yaml", devices=["cuda:0", "cuda:1"])

    Each run is a process of its own, so that a failed one is listed while the others continue. Its result is a file
    beside its folder; a run that has one is done, wherever it was made and whether or not its folder still exists.
    Started again, a study continues where it was stopped, even in the middle of a run; several programs started in one
    folder, on one machine or several, divide the runs among them.

    Args:
        protocol: what to run, or a YAML or JSON file with the fields of `StudyProtocol`.
        out: folder of the study; by default studies/NAME.
        data: the data, if not the protocol's; may lie elsewhere when the study continues.
        devices: where to train, one run at a time on each; a device that is named twice gets two runs at a time.
        retry: repeat failed runs.
        look: run nothing, and say what the runs so far show.
        progress: called after each step of a run, if there is one device, and after each run.
        tell: called with a sentence on each run.
    Raises:
        UserError: settings that cannot be used, a folder with another study, or other test images than before.
        Stopped: by Ctrl-C or SIGTERM; the runs are saved.
    """
    found = protocol if isinstance(protocol, StudyProtocol) else _read(Path(protocol))
    if data is not None:
        found = dataclasses.replace(found, data=absolute(data))
    folder = Path(out) if out is not None else Path("studies") / found.name
    if not devices:
        raise UserError("a study needs one device or more, such as devices=['cpu'] (--devices cpu)")
    began = _agree(found, folder)
    work = _Work(found, folder, len(devices) == 1, progress, tell)
    if look and not began:
        raise UserError(f"{folder} holds no study; expected {PROTOCOL} in it")
    if not look:
        for run in work.to_check(retry):
            _check(found.config(*run), found.split)
        began = began or _begin(found, folder)
        _same_images(found, list(work.scores()))
        work.run_all(devices, retry)
    result = StudyResult(found.name, found.question, tuple(found.cells), tuple(work.scores()), work.failures(), began)
    if result.runs:
        result.save(folder)
    return dataclasses.replace(result, folder=folder, planned=len(list(found.runs())))


def _read(path: Path) -> StudyProtocol:
    """The protocol in a file.

    Fields that are missing come from the file beside it that "like" names; settings are added to those of that file.

    Raises:
        UserError: no such file, or fields that a protocol does not have.
    """
    return configs.from_dict(StudyProtocol, {"name": path.stem, **_fields(path)})


def _fields(path: Path, depth: int = 0) -> dict[str, Any]:
    """The content of a study's file, merged with that of the file that `like` names."""
    text = read_text(path, "file of a study, see docs/study.md,")
    values = parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected the fields of a study, such as name and cells; see docs/study.md")
    if isinstance(values.get("seeds"), int):
        values["seeds"] = list(range(values["seeds"]))
    for table in {"settings", "cells", "variants"} & set(values):
        if isinstance(values[table] or {}, dict):
            nothing: dict[str, Any] | None = None if table == "settings" else {}
            rows = (values[table] or {}).items()
            values[table] = {str(name): nothing if value is None else value for name, value in rows}
    if (other := values.pop("like", None)) is None:
        return values
    if depth > 8:
        raise UserError(f'{path}: "like" leads from file to file in a circle')
    base = _fields(path.parent / str(other), depth + 1)
    base.pop("name", None)  # without it, a study is named after its file
    return base | values | {"settings": base.get("settings", {}) | values.get("settings", {})}


def _agree(protocol: StudyProtocol, folder: Path) -> str:
    """When the study of this folder began; empty if it has not.

    Raises:
        UserError: it has another protocol.
    """
    file = folder / PROTOCOL
    if not file.exists():
        return ""
    before = parse_json(file.read_text("utf-8"))
    elsewhere = {"data"}  # may lie in another place on another machine; see _same_images
    plan, known = _plan(protocol), before["protocol"]
    changed = [name for name, value in plan.items() if name not in elsewhere and known.get(name) != value]
    if changed:
        raise UserError(
            f"{file} was written on {before['date']} before the first run, and differs in: "
            f"{', '.join(changed)}; a changed protocol is another study: choose another -o (out=...)"
        )
    return str(before["date"])


def _begin(protocol: StudyProtocol, folder: Path) -> str:
    """Write the protocol, before the first run; returns when."""
    check_utf8(folder)
    make_folder(folder)
    date = time.strftime("%Y-%m-%d %H:%M:%S %z")
    versions = {"degrid": VERSION, "python": platform.python_version(), "torch": torch.__version__}
    write_json(folder / PROTOCOL, {"date": date, "protocol": _plan(protocol), "versions": versions})
    return date


def _plan(protocol: StudyProtocol) -> dict[str, Any]:
    """A protocol as JSON holds it."""
    plan: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(protocol)))
    return plan


def _check(config: RunConfig, split: str) -> None:
    """Refuse cells whose runs would all fail.

    Raises:
        UserError: settings, a network or data that cannot be used.
    """
    check_settings(config)
    check_fixed_crops(config)
    if config.then:
        raise UserError(f'a study runs single stages, but after {config.name} comes "{config.then}"; set then to ""')
    file = config.model.pretrained if isinstance(config.model.pretrained, str) else False  # nothing is downloaded here
    model = build_model(dataclasses.replace(config.model, pretrained=file), LabelSpace.of_size(2))
    if config.train.fixed_crops:
        frozen_stages(model.encoder)
    if config.train.init:
        initialise_from(model, config.train.init, config.train.init_head)
    for wanted in dict.fromkeys((config.data.train, split)):
        open_dataset(config.data.path, wanted)


def _same_images(protocol: StudyProtocol, runs: Sequence[RunScores]) -> None:
    """Refuse to continue with other test images than those of the runs that are done.

    Raises:
        UserError: another number of images, or other classes.
    """
    for run in {run.variant: run for run in runs}.values():
        path = protocol.config(run.variant, run.cell, run.seed).data.path
        now = open_dataset(path, protocol.split)
        before = run.scores["num_images"], tuple(run.scores["class_names"])
        if (len(now), now.labels.names) != before:
            raise UserError(
                f"{path} has {len(now)} {protocol.split} images of {some(now.labels.names, 12)}, but the runs that are "
                f"done were scored on {before[0]} of {some(before[1], 12)}; give the earlier data"
            )


_NO_OUTCOME = ("could not write", "cannot make the folder")
"""The beginnings of errors that are not the run's fault, such as a full disk; see `degrid.files.explained`."""


def _why(code: int, said: str) -> str:
    """The reason for which a run failed, the last of what it said.

    Raises:
        UserError: it is none of the run's.
    """
    last = (said.strip().splitlines()[-1:] or [f"it ended with code {code}"])[0].removeprefix("degrid: ")
    if last.startswith(_NO_OUTCOME):
        raise UserError(f"{last}; the study goes on from here by the same command (the same call)")
    return last


class _Work:
    """The runs of a study that are to be made, by this program and perhaps others."""

    def __init__(
        self, protocol: StudyProtocol, folder: Path, alone: bool, progress: OnProgress | None, tell: Tell | None
    ) -> None:
        self.protocol, self.folder = protocol, folder
        self._step = progress if alone else None
        self._progress, self._tell = progress, tell or (lambda line: None)
        self._children: set[subprocess.Popen[str]] = set()
        self._stopped = threading.Event()
        self._starting = threading.Lock()

    def place(self, variant: str, cell: str, seed: int) -> Path:
        """The run folder."""
        return self.folder / variant / cell / f"seed_{seed}"

    def outcome(self, variant: str, cell: str, seed: int) -> Path:
        """The file with what came of a run: its scores and costs, or an error; there once the run has ended.

        It stays when the run folder, which is larger by far, is removed.
        """
        return self.place(variant, cell, seed).with_suffix(".json")

    def ended(self) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
        """The runs that have ended, and what came of them.

        Raises:
            UserError: a file that cannot be read.
        """
        for run in self.protocol.runs():
            if self.outcome(*run).exists():
                yield run, read_json(self.outcome(*run), "outcome of a run")

    def features(self, seed: int) -> Path:
        """The folder for the features of fixed crops, which the cells of one seed share; there until all are done."""
        return self.folder / "features" / f"seed_{seed}"

    def run_all(self, devices: Sequence[str], retry: bool) -> None:
        """Make every run that nobody has made or is making.

        Raises:
            Stopped: this program was told to stop.
        """
        try:
            with signals_caught(lambda *_: self._stop()):
                # Once more after each round that made something: a program that had a run may have been stopped since.
                while self._round(devices, retry) and not self._stopped.is_set():
                    retry = False
        except BaseException:
            self._stop()
            raise
        if self._stopped.is_set():
            raise Stopped(self.folder, "the same command (the same call of degrid.study)")

    def _round(self, devices: Sequence[str], retry: bool) -> bool:
        """Try each remaining run; returns whether any was made."""
        todo = iter([run for run in self.protocol.runs() if self._left(run, retry)])
        take = threading.Lock()

        def serve(device: str) -> bool:
            made = False
            while not self._stopped.is_set():
                with take:
                    run = next(todo, None)
                if run is None:
                    break
                made |= self._make(run, device, retry)
            return made

        with ThreadPoolExecutor(len(devices)) as pool:
            return sum([done.result() for done in [pool.submit(serve, device) for device in devices]]) > 0

    def to_check(self, retry: bool) -> list[tuple[str, str, int]]:
        """One run that is to be made of every variant and cell that has any."""
        left = [run for run in self.protocol.runs() if self._left(run, retry)]
        return list({run[:2]: run for run in reversed(left)}.values())[::-1]

    def _left(self, run: tuple[str, str, int], retry: bool) -> bool:
        file = self.outcome(*run)
        return not file.exists() or (retry and "error" in read_json(file, "outcome of a run"))

    def _make(self, run: tuple[str, str, int], device: str, retry: bool) -> bool:
        """Make one run, unless another program has it, or has made it; returns whether it was made here."""
        variant, cell, seed = run
        place = self.place(*run)
        make_folder(place.parent)
        try:
            with FileLock(place.with_name(f".{place.name}.lock"), timeout=0):
                if not self._left(run, retry):
                    return False
                self.outcome(*run).unlink(missing_ok=True)
                self._train_and_score(run, place, device)
        except Timeout:
            return False
        if not any(self._left(each, False) for each in self.protocol.runs() if each[2] == seed):
            shutil.rmtree(self.features(seed), ignore_errors=True)
        name = " ".join(filter(None, (variant, cell, f"seed {seed}")))
        if self.outcome(*run).exists():
            found = read_json(self.outcome(*run), "outcome of a run")
            if "error" in found:
                self._tell(f"{name} failed: {found['error']}")
            else:
                self._tell(f"{name}: {self.protocol.split} mIoU {100 * found['scores']['miou']:.2f} %")
        if self._progress and not self._stopped.is_set():
            every = list(self.protocol.runs())
            self._progress(Progress("runs", sum(not self._left(each, False) for each in every), len(every), name))
        return True

    def _train_and_score(self, run: tuple[str, str, int], place: Path, device: str) -> None:
        config = self.protocol.config(*run, device)
        if config.train.fixed_crops and not config.train.features:
            kept = str(self.features(run[2]).absolute())
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, features=kept))
        settings = place.with_name(f".{place.name}.settings.json")
        write_json(settings, configs.to_dict(config))
        scores = place / "study_eval.json"
        begun = (place / "run.json").exists()
        train = ["train", "--quiet", *(["--resume", place] if begun else [settings, "-o", place])]
        test = ["eval", place, "--data", config.data.path, "--split", self.protocol.split, "--device", device]
        test += [word for each in self.protocol.corruptions for word in ("--corrupt", each)]
        test += ["--shift", self.protocol.shift]
        began = time.monotonic()
        for command in (train, [*test, "-o", scores]):
            code, said, peak = self._command([str(word) for word in command], place)
            if self._stopped.is_set():
                return
            if code:
                write_json(self.outcome(*run), {"error": _why(code, said), "command": command[0]})
                return
            if command is train:
                seconds, memory = time.monotonic() - began, peak
        settings.unlink()
        cost = {**_cost(place, config), "peak_memory_mib": memory, "train_seconds": None if begun else round(seconds)}
        made = training_of(place) or {}
        made.pop("command", None)  # by this program; the protocol says what to run
        found = {
            # These files travel, so they name the data as the protocol does, not by their place on this machine.
            "scores": read_json(scores, "scores") | {"data": self.protocol.data or config.data.path},
            "cost": cost,
            "gridding": _gridding(place, config),
            "made": made,
        }
        write_json(self.outcome(*run), found, indent=None)
        scores.unlink()

    def _command(self, arguments: list[str], place: Path) -> tuple[int, str, int]:
        """Run `degrid ARGUMENTS` in a process; its exit code, what it said, and its peak memory in MiB."""
        with self._starting:
            if self._stopped.is_set():
                return 1, "", 0
            child = subprocess.Popen(
                [sys.executable, "-m", "degrid", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches it through this program, once
            )
            self._children.add(child)
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.extend(typing.cast(Any, child.stderr)))
        reader.start()
        watcher = threading.Thread(target=self._watch, args=(child, place), daemon=True)
        if self._step and arguments[0] == "train":
            watcher.start()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self._children.discard(child)
        reader.join()
        typing.cast(Any, child.stderr).close()
        return child.returncode, "".join(said), used.ru_maxrss // 1024

    def _watch(self, child: subprocess.Popen[str], place: Path) -> None:
        """Report a run's steps while it proceeds."""
        config, step = None, 0
        while child.returncode is None:
            time.sleep(1)
            try:
                config = config or parse_json((place / "run.json").read_text("utf-8"))["config"]["train"]["steps"]
                *_, last = (place / "metrics.jsonl").read_text("utf-8").splitlines()
                now = parse_json(last).get("step", 0)
            except (OSError, ValueError, UserError):
                continue
            if self._step and now > step:
                step = now
                self._step(Progress(f"training {place.parent.name} {place.name}", step, config))

    def _stop(self) -> None:
        """Tell the runs to save and to end."""
        with self._starting:
            self._stopped.set()
            for child in list(self._children):
                child.terminate()

    def scores(self) -> Iterator[RunScores]:
        """The scores of every run that is done."""
        for run, found in self.ended():
            if "error" not in found:
                yield RunScores(*run, **found)

    def failures(self) -> dict[str, str]:
        """Why runs have no scores, by their folders below the study's."""
        failed = [(self.place(*run), found["error"]) for run, found in self.ended() if "error" in found]
        return {str(place.relative_to(self.folder)): error for place, error in failed}


def _cost(place: Path, config: RunConfig) -> dict[str, Any]:
    """Parameters, and the median time of a step after the first tenth of them."""
    model = load(place)
    seconds = []
    for record in read_metrics(place):
        if record.get("images_per_second"):
            images = config.train.batch_size * config.train.accumulate
            seconds.append(images / record["images_per_second"])
    steady = seconds[len(seconds) // 10 :]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_seconds": round(statistics.median(steady), 4) if steady else None,
        "steps": len(read_curves(place).steps),
    }


def _gridding(place: Path, config: RunConfig) -> dict[str, float] | None:
    """The gridding score at rate 2 of the last dilated stage, with the run's first weights and with its last ones.

    None for an encoder without dilated convolutions.
    """
    trained = load(place)
    torch.manual_seed(config.train.seed)
    model = dataclasses.replace(config.model, in_channels=trained.bands.count if trained.bands.count != 3 else None)
    fresh = build_model(model, trained.labels)
    try:
        fields = {"before": dilated_stage_receptive_field(fresh.encoder)}
        fields["after"] = dilated_stage_receptive_field(trained.encoder)
    except UserError:
        return None
    return {when: gridding_score(field, 2) for when, field in fields.items()}
