"""Asynchronous training on Ray: real workers in processes of their own."""

import os
import signal
from pathlib import Path

import pytest
import torch

import degrid
from degrid import UserError
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import Stopped, load_state
from degrid.files import parse_json

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SMALL = {
    "model.encoder": "timm:test_resnet",
    "model.pretrained": False,
    "data.crop": (48, 48),
    "data.val": "",
    "train.steps": 24,
    "train.eval_every": 24,
    "train.batch_size": 4,
    "train.class_weights": "none",
    "train.precision": "float32",
    "train.device": "cpu",
    "model.dropout": 0.0,
}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray with two cores, for all runs; they use it as that of the caller."""
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, logging_level="ERROR"
    )
    yield
    ray.shutdown()


def workers():
    """The processes that Ray has for workers; their parent is a child of this process."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title = (place / "cmdline").read_bytes()
            parents = [int(place.name)]
            while parents[-1] > 1 and len(parents) < 4:
                parents.append(int((Path("/proc") / str(parents[-1]) / "stat").read_text().rsplit(")")[1].split()[1]))
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        if title.startswith(b"ray::_Actor") and os.getpid() in parents:
            found.append(int(place.name))
    return found


def train(out, workers, progress=None, **more):
    settings = {**SMALL, "train.asynchronous.workers": workers, **more}
    return degrid.train(data="synthetic", settings=settings, out=out, progress=progress)


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


def test_one_worker_trains_as_this_process(tmp_path):
    settings = {"train.steps": 4, "train.eval_every": 4}
    train(tmp_path / "ray", 1, **settings)
    train(tmp_path / "here", 0, **settings)
    assert losses(tmp_path / "ray") == losses(tmp_path / "here")
    states = [load_state(tmp_path / name / "last.ckpt") for name in ("ray", "here")]
    for part in ("model", "average"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


def test_a_worker_is_killed_and_the_run_stopped_and_resumed(tmp_path):
    """Nothing is lost but the step of the killed worker, whose images another one gets."""
    killed = []

    def disturb(progress):
        if progress.done == 6 and not killed:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)
        if progress.done == 14:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        train(folder, 2, disturb)
    state = load_state(folder / "last.ckpt")
    assert state["step"] == 14
    learned = state["turns"]["following"] - len(state["turns"]["left"])
    assert learned == 14
    told = parse_json((folder / "run.json").read_text())["asynchronous"]
    assert (told["steps"], told["lost"], told["dropped"]) == (14, 1, 0)
    assert told["staleness_max"] >= 1
    degrid.train(resume=folder)
    state = load_state(folder / "last.ckpt")
    assert state["turns"]["following"] - len(state["turns"]["left"]) == state["step"] == 24
    found = losses(folder)
    assert len(found) == 24
    assert sum(found[-5:]) < sum(found[:5])
    assert "staleness" in read_metrics(folder)[-1]
    assert "workers lost: 1" in (folder / "log.txt").read_text()


def test_workers_that_cannot_work(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"no worker has answered for 2 seconds \(train.timeout\): 1 of 1 have not begun"
    ):
        train(tmp_path / "cores", 1, **{"train.asynchronous.cores": 8, "train.timeout": 2})
    monkeypatch.setattr("degrid.verbs.workers.VERSION", "9.9")
    with pytest.raises(UserError, match="same versions and data as the server, but degrid is 9.9 there and"):
        train(tmp_path / "version", 1)
