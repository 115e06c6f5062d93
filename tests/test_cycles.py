"""Cyclic training: which step and which crops each update takes, and what log.txt tells of it."""

import itertools
import re

import pytest
import torch

from degrid import config, recipes
from degrid.analysis.curves import read_curves
from degrid.engine.training import loop
from degrid.engine.training.cycles import Cycles, TrainingScore
from degrid.engine.training.log import read_metrics
from degrid.types import IGNORE_INDEX, Scores, UserError
from degrid.verbs import run as runs
from degrid.verbs import run_start

# A network and schedule that take a second.
TINY = [
    "model.encoder=timm:test_resnet",  # timm's smallest residual network: 0.5 M parameters, all that a ResNet has
    "model.pretrained=false",
    "model.channels=16",
    "data.crop=48,48",
    "train.batch_size=2",
    "train.steps=6",
    "train.eval_every=3",
    "train.precision=float32",
    "optim.warmup=0",
]


def tiny(*settings):
    return config.override(recipes.load("synthetic"), [*TINY, "optim.lr=0.01", *settings])


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    """The built-in data with 8 training and 2 validation scenes: these tests are not about scores."""
    from degrid.data import SyntheticScenes

    monkeypatch.setattr(
        run_start,
        "open_dataset",
        lambda path, split, labels=None, **how: SyntheticScenes(split, 2 if split == "val" else 8, (64, 64)),
    )


def scores_like(miou):
    return Scores(miou, miou, miou, miou, None, ("a",), (miou,), (miou,), None, (1,), 1, 1, ((1,),))


def test_meant_cycles_go_straight_through():
    cycles = Cycles(3)
    assert cycles.total(6) == 6
    assert [cycles.step(update) for update in range(6)] == [0, 1, 2, 3, 4, 5]
    assert [cycles.cycle(update) for update in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [cycles.begins(update) for update in range(6)] == [True, False, False, True, False, False]


def test_cycles_of_the_original_code():
    """Steps i*n to (i+1)*n, both included: 10 cycles of 2000 steps are 20,010 updates."""
    cycles = Cycles(3, repeat=True)
    assert cycles.total(6) == 8
    assert [cycles.step(update) for update in range(8)] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert [cycles.cycle(update) for update in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert Cycles(2000, repeat=True).total(20_000) == 20_010


@pytest.mark.parametrize("start", range(9))
def test_crops_of_the_original_code_repeat_in_every_cycle(start):
    cycles = Cycles(3, repeat=True)
    taken = list(itertools.islice(cycles.batches(itertools.count, start, accumulate=2), 24))
    assert taken == ([0, 1, 2, 3, 4, 5, 6, 7] * 5)[2 * start % 8 :][:24]


@pytest.mark.parametrize("start", [0, 2, 5])
def test_crops_of_meant_cycles_go_on(start):
    taken = itertools.islice(Cycles(3).batches(itertools.count, start, accumulate=2), 12)
    assert list(taken) == list(range(2 * start, 2 * start + 12))


def test_training_score_is_counted_from_the_start_of_a_cycle():
    score = TrainingScore(2, Cycles(2), "half_pixel")
    label = torch.tensor([[[0, 0], [1, IGNORE_INDEX]]])
    zeros = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)  # logits that say class 0 everywhere
    score.restart(0)
    score.count(zeros, label)
    assert score.miou == pytest.approx((2 / 3 + 0) / 2)
    score.restart(1)  # not the start of a cycle
    score.count(zeros.flip(1), label)  # class 1 everywhere
    assert score.miou == pytest.approx((2 / 5 + 1 / 4) / 2)
    score.restart(2)
    score.count(zeros.flip(1), label)
    assert score.miou == pytest.approx((0 + 1 / 3) / 2)


def test_log_has_the_lines_of_the_original(tmp_path):
    runs.run(tiny("train.cyclic=true", "compat=true"), tmp_path / "run")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    told = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    steps = [line for line in told if re.fullmatch(r"\d+, \d+\.\d{3}, \d\.\d{3}", line)]
    assert [int(line.split(",")[0]) for line in steps] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert [line for line in told if line.startswith("Iteration")] == ["Iteration: 0", "Iteration: 1"]
    assert told[0] == "Iteration: 0"
    assert told[5] == "The checkpoint has been created."
    assert sum(bool(re.fullmatch(r"class \d: (\d\.\d{3}|nan)", line)) for line in told) == 18
    assert sum(bool(re.fullmatch(r"(Pixel Accuracy|mIoU): \d\.\d{3}", line)) for line in told) == 4

    records = read_metrics(tmp_path / "run")
    curves = read_curves(tmp_path / "run" / "log.txt")
    assert curves.format == "eth"
    assert curves.loss == pytest.approx([r["loss"] for r in records if "loss" in r], abs=6e-4)
    assert [found.miou for found in curves.validations] == pytest.approx(
        [r["val"]["miou"] for r in records if "val" in r], abs=6e-4
    )
    rates = [r["lr"] for r in records if "loss" in r]
    assert rates == pytest.approx([0.01 * (1 - step / 6) ** 0.9 for step in (0, 1, 2, 3, 3, 4, 5, 6)])


def test_a_run_goes_on_after_any_kept_iteration(tmp_path):
    chosen = tiny("train.cyclic=true", "train.keep_checkpoints=true", "train.steps=9")
    runs.run(chosen, tmp_path / "run")
    before = [r for r in read_metrics(tmp_path / "run") if "loss" in r]
    runs.run(chosen, tmp_path / "run", resume=True, start_iteration=1)
    after = [r for r in read_metrics(tmp_path / "run") if "loss" in r]
    assert [r["loss"] for r in after] == [r["loss"] for r in before]
    assert len(after) == 9
    with pytest.raises(UserError, match=r"iteration 7 was not kept.*kept iterations: 1, 2, 3"):
        runs.run(chosen, tmp_path / "run", resume=True, start_iteration=7)


@pytest.mark.slow
def test_the_training_score_goes_on_where_a_cycle_was_interrupted(tmp_path, monkeypatch):
    chosen = tiny("train.cyclic=true", "train.save_every=1", "train.steps=3")
    runs.run(chosen, tmp_path / "straight")
    step, done = loop.train_step, []

    def interrupted(*args, **settings):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return step(*args, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runs.run(chosen, tmp_path / "run")
    runs.run(chosen, tmp_path / "run", resume=True)
    expected, found = (
        [record["train_miou"] for record in read_metrics(tmp_path / name) if "train_miou" in record]
        for name in ("straight", "run")
    )
    assert len(found) == 3
    assert found == expected


def test_patience_counts_cycles(tmp_path, monkeypatch):
    """Five cycles of three steps, each with one more update; the second and the third one are no better."""
    found = iter([0.3, 0.2, 0.3])
    monkeypatch.setattr(runs, "_validation", lambda *_: lambda network, step: scores_like(next(found)))
    runs.run(tiny("train.cyclic=true", "compat=true", "train.steps=15", "train.patience=2"), tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "val" in r] == [4, 8, 12]
    assert "stopped after step 12: 2 validations in a row were not better" in (tmp_path / "run/log.txt").read_text()


def test_epochs_count_passes_over_the_images(tmp_path):
    """8 images in steps of 2 * 2: 1.5 epochs are 3 steps, with a validation after every 2."""
    runs.run(tiny("train.epochs=1.5", "train.accumulate=2"), tmp_path / "run")
    records = read_metrics(tmp_path / "run")
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3]
    assert [r["step"] for r in records if "val" in r] == [2, 3]
    rates = [r["lr"] for r in records if "loss" in r]
    assert rates == pytest.approx([0.01 * (1 - step / 3) ** 0.9 for step in range(3)])


@pytest.mark.parametrize("setting", ["train.eval_every=4", "train.epochs=2"])
def test_cycles_that_do_not_fit_are_refused(tmp_path, setting):
    with pytest.raises(UserError, match=r'"train.cyclic": a cycle is train.eval_every steps'):
        runs.run(tiny("train.cyclic=true", setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_tags_of_the_original_and_the_graph(tmp_path, drawn):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs.run(tiny("train.cyclic=true", "train.steps=3"), tmp_path / "run")
    parts = {part: EventAccumulator(str(tmp_path / "run" / "log" / part)).Reload() for part in ("train", "val")}
    assert parts["train"].Tags()["scalars"] == ["loss", "learning rate", "mIoU"]
    names = [f"IoU class {name}" for name in run_start.open_dataset("", "val").labels.names]
    seen = parts["val"].Tags()["scalars"]
    assert seen[:3] == ["mIoU", "pixel accuracy", "mean accuracy"]
    assert set(seen[3:]) <= set(names)
    assert len(seen) > 3
    nodes = {node.name.split("/")[-1] for node in parts["train"].Graph().node}
    assert len(nodes) > 20
    panels = parts["val"].Images(parts["val"].Tags()["images"][0])
    assert (panels[0].height, panels[0].width) == (64, 192)  # input | truth | prediction


def test_weight_decay_on_everything():
    from degrid.engine.training.optimizers import parameter_groups

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    assert {group["weight_decay"] for group in parameter_groups(model, 0.1)} == {0.1, 0.0}
    assert {group["weight_decay"] for group in parameter_groups(model, 0.1, decay_all=True)} == {0.1}
