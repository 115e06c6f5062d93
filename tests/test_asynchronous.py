"""Asynchronous training: the server and its workers in this process, in whatever order they answer; then on Ray."""

import copy
import dataclasses
import itertools
import json
import os
import random
import signal
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train_ranks import Net, Noise
from torch import nn
from typer.testing import CliRunner

from degrid import UserError
from degrid.cli import app
from degrid.config import AsynchronousConfig, RunConfig, TrainConfig
from degrid.data import Share, batches_by_number, training_batches
from degrid.engine.training.asynchronous import Answer, Copy, Result, Server, Task, Worker, copy_of, pieces_of
from degrid.engine.training.log import RunLog
from degrid.engine.training.loop import Plan, Stopped, Training, in_this_process, train
from degrid.engine.training.losses import make_losses
from degrid.engine.training.objective import Objective
from degrid.engine.training.optimizers import moving_average, set_learning_rate
from degrid.engine.training.turns import Turns
from degrid.verbs.run import _greeting
from degrid.verbs.run_settings import check_settings
from degrid.verbs.workers import STARTS, _connect

SHARE = Share.of(4, 2)  # two micro-batches per step
OBJECTIVE = Objective(make_losses("cross_entropy+0.5*dice"), names=("cross_entropy", "dice"))
PLAN = Plan(8, lambda step: 0.2 / (1 + step), SHARE.pieces, eval_every=5, clip_norm=1.0)


def new_state():
    model = Net(scales=(0.5,))
    groups = [{"params": list(model.parameters()), "factor": 1.0}]
    return Training(model, torch.optim.SGD(groups, 0.1, momentum=0.9, weight_decay=0.01), moving_average(model, 0.9))


def keep(sample, rng):
    return sample


def worker():
    batch = batches_by_number(Noise(), keep, SHARE, 1)
    return Worker(new_state(), lambda turn: [batch(2 * turn), batch(2 * turn + 1)], OBJECTIVE, PLAN)


class Crew:
    """Workers that answer in a given order; at -1-n worker n is lost if it has a task, and at once replaced."""

    def __init__(self, workers, order):
        self.workers, self.order = workers, iter(order)
        self.tasks, self.given = {}, []

    def share(self, shared):
        return copy.deepcopy(shared)

    def free(self):
        return [number for number in range(len(self.workers)) if number not in self.tasks]

    def give(self, number, task, shared):
        self.tasks[number] = task, shared
        self.given.append((number, task))

    def wait(self, stop):
        number = next(self.order)
        if number < 0:
            return Answer(-1 - number, None) if self.tasks.pop(-1 - number, None) else None
        if number not in self.tasks:
            return None
        task, shared = self.tasks.pop(number)
        return Answer(number, copy.deepcopy(self.workers[number](task, shared)))


def run(state, advance, plan=PLAN):
    """As the training loop does; what was done in each step."""
    done = []
    while state.step < plan.steps:
        set_learning_rate(state.optimizer, plan.lr_at(state.step))
        done.append(advance(state))
        state.step += done[-1].steps
    return done


@pytest.fixture(scope="module")
def synchronous():
    """The state and the steps of training in this process."""
    state = new_state()
    batches = training_batches(Noise(), keep, SHARE, 1)
    return state, run(state, in_this_process(batches, OBJECTIVE, PLAN))


@pytest.mark.parametrize("average_every", [0, 3])
def test_one_worker_trains_as_one_process(synchronous, average_every):
    """Accumulated micro-batches, several scales, a sum of losses, batch norm, a clipped gradient, momentum, decay."""
    state = new_state()
    server = Server(Crew([worker()], itertools.repeat(0)), PLAN, 0, average_every, OBJECTIVE.names, predict=True)
    done = run(state, server)
    other, steps = synchronous
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    if not average_every:  # else the average follows the weights from round to round
        averages = [each.average.state_dict() for each in (state, other)]
        assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[1])
    momenta = [each.optimizer.state_dict()["state"] for each in (state, other)]
    assert all(torch.equal(momenta[0][n]["momentum_buffer"], momenta[1][n]["momentum_buffer"]) for n in momenta[1])
    ends = list(itertools.accumulate(each.steps for each in done))
    assert ends == ([3, 5, 8] if average_every else list(range(1, 9)))  # a round ends where the plan validates
    assert [each.loss for each in done] == [steps[end - 1].loss for end in ends]
    assert [each.parts for each in done] == [steps[end - 1].parts for end in ends]
    assert sum(each.images for each in done) == 8 * 4
    assert (server.figures.steps, server.figures.staleness_max, server.figures.dropped) == (8, 0, 0)


class Number(nn.Module):
    """One parameter and one running mean."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.zeros(1))


class Arithmetic:
    """A worker whose gradient is ten to the power of its turn, and whose running mean is that turn."""

    def __call__(self, task, shared):
        turn = np.array([task.turns[0]], np.float32)
        return Result((1.0,), 1, Copy({"mean": turn}), (10.0**turn,))


def number_state():
    model = Number()
    return Training(model, torch.optim.SGD([{"params": [model.weight], "factor": 1.0}], 1.0))


def test_stale_gradients_are_used_up_to_the_bound_and_then_dropped_and_their_images_used_again():
    """Three workers begin with turns 0, 1 and 2 of step 0.

    Their next ones are 3, 4 and 5. Worker 0 answers (staleness 0) and gets turn 3, and then 6; worker 1 answers
    (staleness 1) and gets turn 4, and then 7; worker 0 answers with turn 3 (staleness 1) and gets turn 6, and then 8.
    Worker 2 is now three steps late: its turn is dropped, and is its next after turn 5. Worker 2 answers with turn 5
    (staleness 0) and gets turn 2; worker 1 answers with turn 4 (staleness 2).
    """
    state, plan = number_state(), Plan(5, lambda step: 1.0)
    crew = Crew([Arithmetic()] * 3, [0, 1, 0, 2, 2, 1])
    server = Server(crew, plan, max_staleness=2)
    done = run(state, server, plan)
    assert [task.turns[0] for _, task in crew.given] == [0, 1, 2, 3, 4, 6, 5, 2]
    assert [task.ahead for _, task in crew.given] == [3, 4, 5, 6, 7, 8, 2, 9]
    assert [each.figures["staleness"] for each in done] == [0, 1, 1, 0, 2]
    assert state.model.weight.item() == -(1 + 10 + 1000 + 100_000 + 10_000)
    assert (server.figures.dropped, server.figures.lost, server.figures.staleness_max) == (1, 0, 2)
    assert server.figures.to_dict()["staleness_mean"] == 0.8
    # Means of 0; 0 and 1; 0.5 and 3; all of 5; and a third of the way from 5 to 4.
    assert state.model.mean.item() == pytest.approx(5 - 1 / 3)


def test_gradients_are_computed_where_the_weights_will_be():
    """Two workers on a valley w^2 / 2 with momentum; steps of 0.1.

    Both begin at 1. Worker 0 answers 1: w = 0.9, and gets 0.8, the step repeated for worker 1. Worker 1 answers 1: the
    step is 0.1 (1 + 0.5), w = 0.75, and it gets 0.6. Worker 0 answers 0.8: 0.1 (0.8 + 0.75), w = 0.595, and gets 0.44.
    """
    seen = []

    class Valley:
        def __call__(self, task, shared):
            seen.append(float(shared.tensors["weight"][0]))
            return Result((1.0,), 1, Copy({}), (shared.tensors["weight"],))

    state, plan = number_state(), Plan(4, lambda step: 0.1)
    state.optimizer = torch.optim.SGD([{"params": [state.model.weight], "factor": 1.0}], 0.1, momentum=0.5)
    state.model.weight.data.fill_(1)
    crew = Crew([Valley()] * 2, [0, 1, 0, 1])
    run(state, Server(crew, plan, 8, predict=True), plan)
    assert seen == pytest.approx([1, 1, 0.8, 0.6])
    handed = [float(shared.tensors["weight"][0]) for _, shared in crew.tasks.values()]
    assert handed == pytest.approx([0.44])
    assert state.model.weight.item() == pytest.approx(0.595 - 0.1 * (0.6 + 0.5 * 1.55))


@pytest.mark.parametrize(("pieces", "average_every"), [(1, 0), (2, 0), (1, 3)])
def test_what_workers_have_is_given_up_when_training_is_to_stop(tmp_path, pieces, average_every):
    """Here the signal arrives while the third step, or the second round, waits for workers that never answer."""

    class Stopping(Crew):
        def wait(self, stop):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGTERM)
                return None
            return super().wait(stop)

        left = 3 if average_every else 2 * pieces + pieces - 1

    class Steady:
        def __call__(self, task, shared):
            return Result((1.0,), 1, shared if task.alone else Copy({}), (np.ones(1, np.float32),))

    state, plan, stop = number_state(), Plan(100, lambda step: 1.0, eval_every=100), threading.Event()
    crew = Stopping([Steady()] * 2, itertools.cycle([0, 1]))
    server = Server(crew, plan, 8, average_every, pieces=pieces, stop=stop)
    with RunLog(tmp_path, 100) as log, pytest.raises(Stopped):
        train(state, server, tmp_path, log, plan, stop=stop)
    steps = 3 if average_every else 2
    saved = number_state()
    saved.turns = Turns()
    saved.restore(tmp_path / "last.ckpt")
    assert (saved.step, saved.model.weight.item()) == (steps, 0 if average_every else -steps)
    numbers = saved.turns.state()
    learned = set(range(numbers["following"])) - set(numbers["left"])
    assert len(learned) == (2 * 3 if average_every else 2 * pieces)  # and all others are handed out again


class Plain(nn.Module):
    """One convolution; without batch norm a step of parts is that of the joined images."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image):
        return self.conv(image.float() / 255)


def plain_state():
    torch.manual_seed(1)
    groups = [{"params": list((model := Plain()).parameters()), "factor": 1.0}]
    return Training(model, torch.optim.SGD(groups, 0.1, momentum=0.9))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_a_step_of_parts_is_that_of_their_joined_images(order):
    """Each valid pixel counts alike, though the images have very different shares of them."""
    plan, whole, parts = Plan(1, lambda step: 0.2, clip_norm=1.0), plain_state(), plain_state()
    (expected,) = run(
        whole, in_this_process(training_batches(Noise(), keep, Share.of(4, 4), 1), Objective(), plan), plan
    )
    batch = batches_by_number(Noise(), keep, Share.of(1, 1), 1)
    workers = [Worker(plain_state(), lambda turn: [batch(turn)], Objective(), plan) for _ in range(4)]
    server = Server(Crew(workers, order), plan, 0, predict=True, pieces=4)
    (done,) = run(parts, server, plan)
    for name, value in parts.model.state_dict().items():
        torch.testing.assert_close(value, whole.model.state_dict()[name], rtol=1e-5, atol=1e-7)
    assert done.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (done.images, server.figures.gradients, server.figures.staleness_max) == (4, 4, 0)


def test_parts_that_are_too_old_are_dropped_and_their_images_used_again():
    """Two workers, two parts to a step, on turns 0, 1, 2, ...

    Worker 0 answers with turns 0 and 2, the first step, and with 4, which worker 1's turn 1 makes the second, one step
    late. Worker 1 alone makes the third of turns 3 and 7. Worker 0's turn 5 is now two steps late: it is dropped, and
    comes next after turn 6, which is the fourth step with worker 1's turn 8.
    """
    state, plan = number_state(), Plan(4, lambda step: 1.0)
    crew = Crew([Arithmetic()] * 2, [0, 0, 0, 1, 1, 1, 0, 1, 0])
    server = Server(crew, plan, max_staleness=1, pieces=2)
    done = run(state, server, plan)
    assert [task.turns[0] for _, task in crew.given] == [0, 1, 2, 4, 5, 3, 7, 8, 6, 9]
    assert [each.figures["staleness"] for each in done] == [0, 0.5, 0, 0]
    assert (server.figures.dropped, server.figures.staleness_max, server.figures.gradients) == (1, 1, 8)
    assert state.turns.state() == {"following": 11, "left": [5, 9, 10], "pieces": 2}
    assert state.model.weight.item() == pytest.approx(-sum(10.0**turn for turn in (0, 2, 4, 1, 3, 7, 8, 6)) / 2)


def test_parts_are_computed_where_the_weights_will_be_when_a_step_uses_them():
    """Of two workers' parts, those handed out after the first part of a step are for the step after it."""
    seen = []

    class Slope:
        def __call__(self, task, shared):
            seen.append(float(shared.tensors["weight"][0]))
            return Result((1.0,), 1, Copy({}), (np.ones(1, np.float32),))

    state, plan = number_state(), Plan(3, lambda step: 1.0)
    run(state, Server(Crew([Slope()] * 2, [0, 1] * 3), plan, 8, predict=True, pieces=2), plan)
    assert state.model.weight.item() == -3
    assert seen == [0, 0, 0, -1, -2, -2]  # the fifth was handed out while the weights were -1


@pytest.mark.parametrize(
    ("micro", "workers", "pieces"),
    [(1, 1, 1), (1, 4, 1), (8, 1, 1), (8, 2, 2), (8, 3, 4), (4, 4, 4), (4, 64, 4), (12, 5, 6), (7, 2, 7), (2, 3, 2)],
)
def test_parts_of_a_step(micro, workers, pieces):
    assert pieces_of(micro, workers) == pieces


@pytest.mark.parametrize("alone", [False, True])
def test_the_next_images_are_loaded_meanwhile(alone):
    """While a worker computes, or before it is asked for them: their loading has been waited for, and in order."""
    batch, loaded, caller = batches_by_number(Noise(), keep, Share.of(2, 2), 1), [], threading.get_ident()
    started = {turn: threading.Event() for turn in range(6)}

    def load(turn):
        assert threading.get_ident() != caller
        loaded.append(turn)
        started[turn].set()
        return [batch(turn)]

    found = Worker(new_state(), load, OBJECTIVE, PLAN)
    shared = copy_of(new_state(), with_optimizer=True)
    found(Task(0, (1, 0) if alone else (1,), alone, ahead=3), shared)
    assert started[3].wait(60)  # nobody has asked for it
    found(Task(0, (3,), alone, ahead=5), shared)
    assert started[5].wait(60)
    found(Task(0, (4,), alone), shared)  # it was given something else after all
    assert loaded == ([1, 0, 3, 5, 4] if alone else [1, 3, 5, 4])


@pytest.mark.parametrize("average_every", [0, 2])
def test_every_image_is_learned_from_once_whoever_is_lost(average_every):
    """Any order of answers and losses, with all workers gone in the middle, as when the server itself is lost."""
    draw = random.Random(average_every)
    learned = Counter()

    class Noting(Turns):
        def finish(self, numbers):
            super().finish(numbers)
            learned.update(numbers)

    def order():
        while True:
            yield draw.choice([0, 1, 2, 3, -1, -2, -3, -4])

    class Nothing:
        def __call__(self, task, shared):
            return Result((1.0,), 1, *([shared] if task.alone else [Copy({}), (None,)]))

    def train_on(state, turns, steps):
        state.turns, plan = turns, Plan(steps, lambda step: 1.0)
        server = Server(Crew([Nothing()] * 4, order()), plan, max_staleness=3, average_every=average_every)
        run(state, server, plan)
        return server.figures

    state = number_state()
    first = train_on(state, Noting(), 60)
    left = state.turns.state()
    second = train_on(state, Noting(**left), 120)
    assert first.lost > 5
    assert second.lost > 5
    assert (first.dropped > 0) == (average_every == 0)
    assert set(learned.values()) == {1}
    left = state.turns.state()
    assert set(learned) | set(left["left"]) == set(range(left["following"]))
    assert len(learned) == 120 if not average_every else len(learned) > 120


def test_workers_that_average_have_the_mean_of_what_each_reaches_alone():
    """Weights, running statistics and momenta, after a round of two steps by three workers."""
    plan = dataclasses.replace(PLAN, steps=2)
    state = new_state()
    done = run(state, Server(Crew([worker() for _ in range(3)], [2, 0, 1]), plan, 0, average_every=2), plan)
    assert [(each.steps, each.figures["averaged workers"], each.images) for each in done] == [(2, 3, 24)]
    batch, alone = batches_by_number(Noise(), keep, SHARE, 1), []
    for turns in ((0, 1), (2, 3), (4, 5)):
        alone.append(new_state())
        batches = (batch(2 * turn + piece) for turn in turns for piece in (0, 1))
        run(alone[-1], in_this_process(batches, OBJECTIVE, plan), plan)
    for name, value in state.model.state_dict().items():
        mean = torch.stack([each.model.state_dict()[name].double() for each in alone]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
    momenta = [each.optimizer.state_dict()["state"][0]["momentum_buffer"] for each in (state, *alone)]
    torch.testing.assert_close(momenta[0], torch.stack(momenta[1:]).mean(0))


def test_a_loss_that_is_not_finite_leaves_the_weights():
    class Broken:
        def __call__(self, task, shared):
            seven = np.full(1, 7, np.float32)
            return Result((float("nan"),), 1, Copy({"weight": seven} if task.alone else {}), (seven,))

    for average_every in (0, 1):
        state = number_state()
        done = Server(Crew([Broken()], [0]), Plan(1, lambda step: 1.0), 0, average_every)(state)
        assert np.isnan(done.loss)
        assert state.model.weight.item() == 0


def test_a_state_keeps_which_images_are_left(tmp_path):
    state = number_state()
    state.turns = Turns()
    taken = [state.turns.take() for _ in range(4)]
    state.turns.finish([taken[1]])
    state.turns.give_back([taken[3]])
    state.save(tmp_path / "last.ckpt")
    other = number_state()
    other.turns = Turns()
    other.restore(tmp_path / "last.ckpt")
    other.turns.divide(2)  # of an older version, which knew whole steps only
    assert [other.turns.take() for _ in range(8)] == [0, 1, 4, 5, 6, 7, 8, 9]
    assert Turns(**other.turns.state()).state() == {"following": 10, "left": [0, 1, *range(4, 10)], "pieces": 2}
    halves = Turns(10, [0, 9], 2)
    assert halves.divide(4) == 4  # each becomes two quarters
    assert [halves.take() for _ in range(5)] == [0, 1, 18, 19, 20]
    kept = Turns(20, [3, 8], 4)
    assert (kept.divide(2), kept.divide(6), kept.divide(1)) == (4, 4, 4)  # a quarter is no whole number of others
    assert kept.state() == {"following": 20, "left": [3, 8], "pieces": 4}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cyclic": True, "steps": 1000}, "train.cyclic=true: cannot be combined with train.asynchronous"),
        ({"sharding": "fsdp2"}, "set train.sharding=none"),
        ({"batch_norm": "synchronised"}, "set train.batch_norm=frozen"),
        ({"asynchronous": AsynchronousConfig(2, max_staleness=-1)}, "max_staleness of at least 0; got 1, 2, 0 and -1"),
        ({"asynchronous": AsynchronousConfig(2, cores=0)}, "expected cores of at least 1"),
        *(
            ({"asynchronous": AsynchronousConfig(2, address)}, rf'HOST:PORT, such as .*, got "{address}"')
            for address in ("node1", ":6379", "node1:port", "http://node1:6379")
        ),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    given = {"asynchronous": AsynchronousConfig(2), **settings}
    with pytest.raises(UserError, match=words):
        check_settings(RunConfig(train=TrainConfig(**given)))


def test_without_ray_and_among_the_processes_of_torchrun(monkeypatch):
    config = RunConfig(train=TrainConfig(asynchronous=AsynchronousConfig(2)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Ray; install it with: pip install degrid\[ray\]"):
        check_settings(config)
    monkeypatch.setattr("degrid.verbs.run_settings.rank_and_count", lambda: (0, 2))
    with pytest.raises(UserError, match="start it without torchrun or --devices"):
        check_settings(config)


def test_ray_that_does_not_start(monkeypatch):
    """What Ray raises after 30 seconds is an `Exception` and nothing else; faults of other types are not hidden."""
    late, errors, started = Exception("The current node timed out during startup."), [], []

    def init(**arguments):
        if errors:
            raise errors.pop(0)
        started.append(arguments["address"])

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    errors += [late] * (STARTS - 1)
    _connect(AsynchronousConfig(2), 0, 1.0)
    assert started == ["local"]
    errors += [late] * STARTS
    with pytest.raises(UserError, match=r"could not start Ray on this machine .*: The current node timed out"):
        _connect(AsynchronousConfig(2), 0, 1.0)
    errors += [KeyError("a fault")]
    with pytest.raises(KeyError):
        _connect(AsynchronousConfig(2), 0, 1.0)
    assert (started, errors) == (["local"], [])


@pytest.mark.parametrize(
    ("average_every", "words"),
    [
        (0, "of 8 images on cpu by 2 workers, not waiting"),
        (4, "of 8 images on cpu by each of 2 workers, averaged every 4"),
    ],
)
def test_what_a_step_is(average_every, words):
    """Workers that average take steps of as many images each."""
    settings = TrainConfig(asynchronous=AsynchronousConfig(2, average_every=average_every))
    state, data = SimpleNamespace(model=nn.Linear(1, 1), step=0), SimpleNamespace(train=Noise(), val=None)
    share = SimpleNamespace(total=8)
    work = SimpleNamespace(
        config=RunConfig(), data=data, state=state, settings=settings, share=share, device=torch.device("cpu")
    )
    assert words in _greeting(work)


@pytest.mark.parametrize("address", ["", "auto", "node1:6379", "10.0.0.1:1", "[::1]:6379", "ray://node1:10001"])
def test_addresses_of_ray(address):
    check_settings(RunConfig(train=TrainConfig(asynchronous=AsynchronousConfig(2, address))))


def test_processes_without_a_gpu_of_their_own(monkeypatch):
    """Said before they start, and so once."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    done = CliRunner().invoke(app, ["train", "camvid", "--devices", "3", "--device", "cuda"])
    assert "process 2 of this machine, counted from 0, finds no GPU of its own, there are 2" in str(done.exception)


def test_options_of_the_command():
    shown = CliRunner().invoke(
        app, ["train", *["camvid", "--async", "--address", "node1:6379", "--max-staleness", "3", "--show"]]
    )
    assert json.loads(shown.output)["train"]["asynchronous"] == {
        "workers": 2,
        "address": "node1:6379",
        "cores": 1,
        "max_staleness": 3,
        "predict": True,
        "average_every": 0,
    }
    alone = CliRunner().invoke(app, ["train", "camvid", "--workers", "3"])
    assert str(alone.exception).endswith("add --async")
