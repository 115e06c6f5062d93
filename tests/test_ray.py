"""Asynchronous training on Ray: real workers in processes of their own."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_machines import DEGRID, ENVIRONMENT, machines, wait_for_step  # noqa: F401
from test_machines import SMALL as OPTIONS

import degrid
from degrid import UserError
from degrid.engine.training.log import read_metrics
from degrid.engine.training.loop import Stopped, load_state
from degrid.files import parse_json

ray = pytest.importorskip("ray")

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
    "train.fast": False,
    "train.device": "cpu",
    "model.dropout": 0.0,
}


@pytest.fixture(scope="module")
def cluster():
    """Ray with two cores, for all runs; they use it as that of the caller."""
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, logging_level="ERROR"
    )
    yield
    ray.shutdown()


def workers(of=None):
    """The processes that Ray has for workers; their parent is a child of the given process, by default this one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            title = (place / "cmdline").read_bytes()
            parents = [int(place.name)]
            while parents[-1] > 1 and len(parents) < 4:
                parents.append(int((Path("/proc") / str(parents[-1]) / "stat").read_text().rsplit(")")[1].split()[1]))
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        if title.startswith(b"ray::_Actor") and (of or os.getpid()) in parents:
            found.append(int(place.name))
    return found


def train(out, workers, progress=None, **more):
    settings = {**SMALL, "train.asynchronous.workers": workers, **more}
    return degrid.train(data="synthetic", settings=settings, out=out, progress=progress)


def losses(folder):
    return [record["loss"] for record in read_metrics(folder) if "loss" in record]


@pytest.mark.slow
def test_one_worker_trains_as_this_process(cluster, tmp_path):
    settings = {"train.steps": 4, "train.eval_every": 4}
    train(tmp_path / "ray", 1, **settings)
    train(tmp_path / "here", 0, **settings)
    assert losses(tmp_path / "ray") == losses(tmp_path / "here")
    states = [load_state(tmp_path / name / "last.ckpt") for name in ("ray", "here")]
    for part in ("model", "average"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())


@pytest.mark.long  # on an idle machine the run may be stopped before Ray notices that a process is gone
def test_a_worker_is_killed_and_the_run_stopped_and_resumed(cluster, tmp_path):
    """Nothing is lost but what the killed worker was computing, half a step, whose images another one gets."""
    killed = []

    def disturb(progress):
        if progress.done == 6 and not killed:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)
        if progress.done == 60:
            os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "run"
    halves = {"train.batch_size": 2, "train.accumulate": 2}
    with pytest.raises(Stopped):
        train(folder, 2, disturb, **{"train.steps": 100, "train.eval_every": 100}, **halves)
    state = load_state(folder / "last.ckpt")
    assert state["step"] == 60
    learned = state["turns"]["following"] - len(state["turns"]["left"])
    assert learned == 2 * 60  # halves of steps
    told = parse_json((folder / "run.json").read_text())["asynchronous"]
    assert (told["steps"], told["lost"], told["dropped"]) == (60, 1, 0)
    assert told["staleness_max"] <= 8  # four times the workers
    degrid.train(resume=folder, settings={"train.asynchronous.workers": 1})  # parts of steps stay halves
    state = load_state(folder / "last.ckpt")
    assert state["turns"]["following"] - len(state["turns"]["left"]) == 2 * 100
    assert state["step"] == 100
    found = losses(folder)
    assert len(found) == 100
    assert sum(found[-5:]) < sum(found[:5])
    assert "staleness" in read_metrics(folder)[-1]
    assert "workers lost: 1" in (folder / "log.txt").read_text()


@pytest.mark.slow
def test_workers_that_cannot_work(cluster, tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"no worker has answered for 2 seconds \(train.timeout\): 1 of 1 have not begun"
    ):
        train(tmp_path / "cores", 1, **{"train.asynchronous.cores": 8, "train.timeout": 2})
    monkeypatch.setattr("degrid.verbs.workers.VERSION", "9.9")
    with pytest.raises(UserError, match="same versions and data as the server, but degrid is 9.9 there and"):
        train(tmp_path / "version", 1)


@pytest.mark.long
def test_machines_are_lost_and_join(machines, tmp_path):  # noqa: F811
    """Three hosts with a core each: two begin, one of them is lost, the third joins; three workers are wanted."""
    on, kill = machines
    folder, log = tmp_path / "run", tmp_path / "errors.txt"
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token"}  # without it only the first machine uses the token
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--object-store-memory=100000000"]

    def join(each):
        where = ["--head", "--port=6379", "--include-dashboard=false"] if each == 1 else ["--address=10.77.13.1:6379"]
        words = [*on(each), *command, *where, f"--node-ip-address=10.77.13.{each}", "--disable-usage-stats"]
        started = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert started.returncode == 0, started.stdout + started.stderr

    join(1)
    join(2)
    steps = ["--set", "train.steps=500", "--set", "train.eval_every=500", "--set", "train.class_weights=none"]
    asynchronous = ["--async", "--workers", "3", "--address", "10.77.13.1:6379", "--set", "train.save_every=10"]
    words = [*on(1), *DEGRID, *OPTIONS, *steps, *asynchronous, "-o", str(folder)]
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(log.open("w"))
        server = stack.enter_context(subprocess.Popen(words, env=environment, stderr=errors))
        for each in (1, 2, 3):
            stack.callback(kill, each)
        wait_for_step(folder, 10, server)
        kill(2)
        wait_for_step(folder, 30, server)
        join(3)
        assert server.wait(timeout=400) == 0, log.read_text()
    told = parse_json((folder / "run.json").read_text())["asynchronous"]
    assert told["steps"] == 500
    assert told["lost"] == 1
    assert told["staleness_max"] <= 12  # four times the workers
    turns = load_state(folder / "last.ckpt")["turns"]
    assert turns["following"] - len(turns["left"]) == 500
    found = losses(folder)
    assert sum(found[-10:]) < sum(found[:10])
    staleness = [record["staleness"] for record in read_metrics(folder) if "staleness" in record]
    assert max(staleness[-100:]) >= 1  # two at work again


@pytest.mark.slow
def test_a_signal_to_all_processes_saves_the_run_which_goes_on_with_other_workers(tmp_path):
    """As `timeout` and job systems send it; Ray's processes must not end by it, or the server would with them."""
    folder, steps = tmp_path / "run", ["--set", "train.steps=30", "--set", "train.eval_every=30"]
    halves = ["--set", "train.batch_size=2", "--set", "train.accumulate=2", "--set", "data.val="]
    words = [*DEGRID, *OPTIONS, *steps, *halves, "--set", "train.class_weights=none", "-o", str(folder)]
    asynchronous = ["--async", "--workers", "2"]
    with subprocess.Popen(
        [*words, *asynchronous], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        wait_for_step(folder, 4, server)
        priorities = [os.getpriority(os.PRIO_PROCESS, each) for each in workers(server.pid)]
        os.killpg(server.pid, signal.SIGTERM)
        _, errors = server.communicate(timeout=300)
    assert server.returncode == 130, errors
    assert priorities == [os.getpriority(os.PRIO_PROCESS, 0)] * 2  # Ray's own default would let all else go first
    assert f"stopped and saved; continue with: degrid train --resume {folder}" in errors
    assert load_state(folder / "last.ckpt")["step"] >= 4
    again = [*DEGRID, "--resume", str(folder), "--quiet", *asynchronous[:2], "1", "--max-staleness", "9"]
    done = subprocess.run(again, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    state = load_state(folder / "last.ckpt")
    assert state["turns"]["following"] - len(state["turns"]["left"]) == 2 * 30  # halves, as before
    assert "by 1 worker, not waiting for one another" in (folder / "log.txt").read_text()
    assert [record["step"] for record in read_metrics(folder) if "loss" in record] == list(range(1, 31))


@pytest.mark.slow
def test_a_cluster_that_is_not_there(tmp_path):
    """In a process of its own, as this one may have Ray already."""
    words = [*DEGRID, *OPTIONS, "--async", "--address", "127.0.0.1:1", "--set", "train.timeout=4"]
    done = subprocess.run([*words, "-o", str(tmp_path / "run")], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "could not join the Ray cluster at 127.0.0.1:1 (train.asynchronous.address): no answer within 4" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
