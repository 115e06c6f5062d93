"""Weights & Biases and MLflow, through their own clients: what else hears of a run beside its folder."""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from degrid.files import read_json, write_json
from degrid.types import UserError

RUN_IDS = "trackers.json"
"""In the run folder: the run's id in each tracker, so that a resumed run goes on there too."""

PROJECT = "degrid"
"""W&B project and MLflow experiment, where WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME name no other."""


class Tracker(Protocol):
    """Hears of a run while it goes on. What it does with it, and where, its own settings say."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Values by tag, such as "train/loss", after optimiser step `step`, from 1; steps never fall."""

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """A picture, uint8 [H,W,3]."""

    def close(self, failed: bool = False) -> None:
        """The run has ended, or has `failed`; wait until everything is on its way."""


def make_trackers(names: str, folder: Path, config: dict[str, Any], name: str) -> list[Tracker]:
    """Begin a run in each tracker, or go on with the run that `folder` remembers.

    Args:
        names: "wandb", "mlflow", both joined by "+", or "" for none.
        folder: the run folder.
        config: the run's settings, nested, of plain values.
        name: what people call the run.
    Raises:
        UserError: an unknown name, a client that is not installed, or one that cannot begin a run.
    """
    check_trackers(names)
    path = folder / RUN_IDS
    ids: dict[str, str] = read_json(path, "trackers' run ids") if path.exists() else {}
    trackers: list[WandbTracker | MlflowTracker] = []
    try:
        for kind in _split(names):
            tracker = TRACKERS[kind](folder, config, name, ids.get(kind))
            trackers.append(tracker)
            ids[kind] = tracker.run_id
            write_json(path, ids)
    except BaseException:
        for tracker in trackers:
            tracker.close(failed=True)
        raise
    return list(trackers)


def check_trackers(names: str) -> None:
    """Refuse trackers that could not begin, before anything is written.

    Raises:
        UserError: an unknown name, or a client that is not installed.
    """
    for kind in _split(names):
        if kind not in TRACKERS:
            known = " or ".join(TRACKERS)
            raise UserError(f'setting "train.trackers": expected {known}, or both joined by +, got "{names}"')
        _client(kind)


def _split(names: str) -> list[str]:
    """Names, each once."""
    return list(dict.fromkeys(part.strip() for part in names.split("+"))) if names.strip() else []


def _client(kind: str) -> Any:
    """The tracker's own package.

    Raises:
        UserError: it is not installed.
    """
    try:
        module = importlib.import_module(kind)
    except ImportError:
        module = None
    # A folder of that name in the working directory, as both clients make, can be imported too; it has no file.
    if module is None or getattr(module, "__file__", None) is None:
        raise UserError(f"the tracker {kind} is not installed; pip install degrid[{kind}]")
    return module


class WandbTracker:
    """A run of Weights & Biases.

    WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR and the others of its client are heeded; its files are in the run
    folder by default. Steps that W&B has already are not written again.
    """

    def __init__(self, folder: Path, config: dict[str, Any], name: str, run_id: str | None) -> None:
        self._wandb = _client("wandb")
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                dir=os.environ.get("WANDB_DIR", str(folder)),
                config=config,
                name=name,
                id=run_id,
                resume="allow" if run_id else None,
                # Its capture of the console would garble our progress bar.
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            raise UserError(
                f"W&B cannot begin a run: {_one_line(error)}; log in with wandb login, or set WANDB_MODE=offline"
            ) from error
        self.run_id: str = self._run.id

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(values, step=step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """See `Tracker`."""
        self._run.log({tag: self._wandb.Image(picture)}, step=step)

    def close(self, failed: bool = False) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=1 if failed else 0)


class MlflowTracker:
    """A run of MLflow.

    MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and the others of its client are heeded. Should the store fail during
    the run, a line on the standard error says so, and the run goes on without it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], name: str, run_id: str | None) -> None:
        mlflow = _client("mlflow")
        self._failure = mlflow.exceptions.MlflowException
        self._metric, self._param = mlflow.entities.Metric, mlflow.entities.Param
        self._lost = False
        try:
            self._client = mlflow.MlflowClient()
            if run_id is None:
                self.run_id: str = self._begin(config, name)
            else:
                self.run_id = run_id
                self._client.update_run(run_id, status="RUNNING")
        except self._failure as error:
            store = mlflow.get_tracking_uri()
            without = store.startswith("sqlite") and importlib.util.find_spec("sqlalchemy") is None
            remedy = "pip install sqlalchemy alembic, or " if without else ""
            where = f"; this run has the id {run_id} there" if run_id else ""
            raise UserError(
                f"MLflow cannot use the store {store}: {_one_line(error)}; {remedy}set MLFLOW_TRACKING_URI to another, "
                f"such as your server's address{where}"
            ) from error

    def _begin(self, config: dict[str, Any], name: str) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(title)
        home = experiment.experiment_id if experiment else self._client.create_experiment(title)
        run_id: str = self._client.create_run(home, run_name=name).info.run_id
        params = [self._param(key, str(value)[:MLFLOW_VALUE]) for key, value in flattened(config).items()]
        for first in range(0, len(params), MLFLOW_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + MLFLOW_PARAMS])
        return run_id

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `Tracker`."""
        now = int(1000 * time.time())
        metrics = [self._metric(mlflow_name(tag), value, now, step) for tag, value in values.items()]
        self._send(lambda: self._client.log_batch(self.run_id, metrics=metrics))

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """See `Tracker`."""
        self._send(lambda: self._client.log_image(self.run_id, picture, key=mlflow_name(tag), step=step))

    def close(self, failed: bool = False) -> None:
        """See `Tracker`."""
        self._send(lambda: self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED"))

    def _send(self, record: Callable[[], object]) -> None:
        if self._lost:
            return
        try:
            record()
        except (self._failure, OSError) as error:
            # The client has tried for minutes by now; trying again with every record would stop the training.
            self._lost = True
            print(
                f"degrid: MLflow gets no more of this run ({_one_line(error)}); the run folder has everything",
                file=sys.stderr,
            )


TRACKERS: dict[str, Callable[[Path, dict[str, Any], str, str | None], WandbTracker | MlflowTracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}

MLFLOW_PARAMS, MLFLOW_VALUE = 100, 500
"""Parameters that MLflow takes at a time, and letters of a value that every version and store of it takes."""


def flattened(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "a.b" to value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(flattened(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def mlflow_name(tag: str) -> str:
    """A tag in the letters that MLflow takes: words, "/", "_", "-", "." and spaces; others become "_"."""
    return posixpath.normpath(re.sub(r"[^\w/\-. ]", "_", tag))


def _one_line(error: Exception) -> str:
    """The first sentence of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__
