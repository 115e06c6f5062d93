"""Trackers: other places where a run is recorded, such as Weights & Biases and MLflow, through their own clients."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degrid.engine.training.log import Recorder
from degrid.files import read_json, write_json
from degrid.lookup import flat, lookup
from degrid.types import Tell, UserError

RUN_IDS = "trackers.json"
"""File in the run folder with the run's id in each tracker, so that a resumed run continues there too."""
PROJECT = "degrid"
"""W&B project and MLflow experiment, unless WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say otherwise."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run that begins.

    folder: the run folder. name: what people call the run. config: its settings, nested, of plain values. run_id: the
    id that the tracker gave it earlier, None for a new run. tell: takes sentences that the user should read.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    run_id: str | None = None
    tell: Tell = lambda _: None


class Tracker(Recorder):
    """A recorder that is made when a run begins; if `run.run_id` is set, it continues that run.

    run_id: by which the tracker finds the run again. package: the Python package that it needs; "" for none.
    """

    run_id: str = ""
    package: str = ""

    def __init__(self, run: TrackedRun) -> None:
        pass


def make_trackers(names: str, folder: Path, config: dict[str, Any], tell: Tell | None = None) -> list[Tracker]:
    """Begin a run in each tracker, or continue the run whose id `folder` holds.

    Args:
        names: rows of TRACKERS or "module:Class" of your own, joined by "+"; "" for none.
        folder, config, tell: see `TrackedRun`; the run is named after the folder.
    Raises:
        UserError: an unknown name, a client that is not installed, or one that cannot begin a run.
    """
    kinds = check_trackers(names)
    path = folder / RUN_IDS
    ids: dict[str, str] = read_json(path, "trackers' run ids") if path.exists() else {}
    trackers: list[Tracker] = []
    try:
        for kind, make in kinds.items():
            tracker = make(TrackedRun(folder, folder.name, config, ids.get(kind), tell or (lambda _: None)))
            trackers.append(tracker)
            ids[kind] = tracker.run_id
            write_json(path, ids)
    except BaseException:
        for tracker in trackers:
            tracker.close(failed=True)
        raise
    return trackers


def check_trackers(names: str) -> dict[str, type[Tracker]]:
    """The trackers by name; refuses those that could not begin, before anything is written.

    Raises:
        UserError: an unknown name, something other than a `Tracker`, or a client that is not installed.
    """
    kinds: dict[str, type[Tracker]] = {}
    for kind in dict.fromkeys(part.strip() for part in names.split("+")) if names.strip() else ():
        if kind not in TRACKERS and ":" not in kind:
            wanted = f"{' or '.join(TRACKERS)}, or both joined by +"
            raise UserError(f'setting "train.trackers": expected {wanted}, got "{names}"; your own: "module:Class"')
        found = lookup(TRACKERS, kind, "tracker")
        if not (isinstance(found, type) and issubclass(found, Tracker)):
            raise UserError(f'tracker "{kind}": expected a subclass of {Tracker.__module__}.Tracker')
        if found.package:
            _client(found.package)
        kinds[kind] = found
    return kinds


def _client(kind: str) -> Any:
    """The tracker's own package; refused if it is not installed."""
    try:
        module = importlib.import_module(kind)
    except ImportError:
        module = None
    # Both clients make a folder of that name in the working directory, which can be imported too but has no file.
    if module is None or getattr(module, "__file__", None) is None:
        raise UserError(f"the tracker {kind} is not installed; pip install degrid[{kind}]")
    return module


class WandbTracker(Tracker):
    """A run of Weights & Biases.

    The client's own variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, ...) are respected; by default its
    files are in the run folder. W&B ignores steps that it has already.
    """

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        self._wandb = _client("wandb")
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=os.environ.get("WANDB_DIR", str(run.folder)),
                config=run.config,
                name=run.name,
                id=run.run_id,
                resume="allow" if run.run_id else None,
                # If W&B captured the console it would garble the progress bar.
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            remedy = "log in with wandb login, or set WANDB_MODE=offline"
            raise UserError(f"W&B cannot begin a run: {_one_line(error)}; {remedy}") from error
        self.run_id: str = self._run.id

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Recorder`."""
        self._run.log(values, step=step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """See `Recorder`."""
        self._run.log({tag: self._wandb.Image(picture)}, step=step)

    def close(self, failed: bool = False) -> None:
        """See `Recorder`."""
        self._run.finish(exit_code=1 if failed else 0)


class MlflowTracker(Tracker):
    """A run of MLflow.

    The client's own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) are respected. If the store fails
    during the run, the user is told and the run continues without it.
    """

    package = "mlflow"

    def __init__(self, run: TrackedRun) -> None:
        mlflow = _client("mlflow")
        self._entities, self._failure = mlflow.entities, mlflow.exceptions.MlflowException
        self._tell, self._lost = run.tell, False
        try:
            self._client = mlflow.MlflowClient()
            self.run_id: str = run.run_id or self._begin(run.config, run.name)
            if run.run_id:
                self._client.update_run(run.run_id, status="RUNNING")
        except self._failure as error:
            store = mlflow.get_tracking_uri()
            without = store.startswith("sqlite") and importlib.util.find_spec("sqlalchemy") is None
            remedy = "pip install sqlalchemy alembic, or " if without else ""
            where = f"; this run has the id {run.run_id} there" if run.run_id else ""
            raise UserError(
                f"MLflow cannot use the store {store}: {_one_line(error)}; {remedy}set MLFLOW_TRACKING_URI to another, "
                f"such as your server's address{where}"
            ) from error

    def _begin(self, config: dict[str, Any], name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(title)
        home = experiment.experiment_id if experiment else self._client.create_experiment(title)
        run_id: str = self._client.create_run(home, run_name=name).info.run_id
        params = [self._entities.Param(key, str(value)[:MLFLOW_VALUE]) for key, value in flat(config).items()]
        for first in range(0, len(params), MLFLOW_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + MLFLOW_PARAMS])
        return run_id

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Recorder`."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(mlflow_name(tag), value, now, step) for tag, value in values.items()]
        self._send(lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """See `Recorder`."""
        self._send(lambda: self._client.log_image(self.run_id, picture, key=mlflow_name(tag), step=step))

    def close(self, failed: bool = False) -> None:
        """See `Recorder`."""
        self._send(lambda: self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED"))

    def _send(self, record: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            record()
        except (self._failure, OSError) as error:
            # The client has tried for minutes by now; trying again with every record would hold up the training.
            self._lost = True
            self._tell(f"MLflow gets no more of this run ({_one_line(error)}); the run folder has everything")


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}

MLFLOW_PARAMS, MLFLOW_VALUE = 100, 500
"""How many parameters MLflow accepts at a time, and how many characters of a value every version of it accepts."""


def mlflow_name(tag: str) -> str:
    """A tag in the characters that MLflow accepts: letters, digits, "/", "_", "-", ".", space; others become "_"."""
    return posixpath.normpath(re.sub(r"[^\w/\-. ]", "_", tag))


def _one_line(error: Exception) -> str:
    """The first sentence of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
