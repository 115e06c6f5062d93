"""Parts of training from outside the package, each one class or function, used through the command line."""

import importlib
import json
import sys

import pytest
import torch
from test_run import TINY, cli, options

import degrid
from degrid.engine.training.log import read_metrics
from degrid.engine.training.losses import CrossEntropy, HardPixels, make_losses
from degrid.engine.training.optimizers import make_optimizer, parameter_groups, schedule
from degrid.types import UserError

PARTS = '''
import torch

from degrid.engine.training.losses import Loss
from degrid.engine.training.trackers import Tracker

MADE, HEARD = [], []


class SignDescent(torch.optim.Optimizer):
    """Steps of a fixed size: the sign of the gradient."""

    def __init__(self, groups, lr, momentum, scale=1.0):
        super().__init__(groups, {"lr": lr})
        self.scale = scale
        MADE.append((momentum, scale))

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter -= self.scale * group["lr"] * parameter.grad.sign()


def halving(lr, steps, every=1):
    """The rate halves after each `every` steps."""
    return lambda step: lr / 2 ** (step // every)


def five():
    return 5


class Linear(Loss):
    """Minus the logit of the true class, times a factor: the mean over valid pixels."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def total(self, logits, label, class_weights):
        valid = label != 255
        chosen = logits.gather(1, label.where(valid, 0)[:, None])[:, 0]
        return self.factor * (-chosen)[valid].sum()

    def weight(self, label, class_weights):
        return (label != 255).sum().float()


class Diary(Tracker):
    def __init__(self, run):
        self.run_id = "page 1"
        HEARD.append(("begins", run.name, run.run_id))

    def scalars(self, step, values):
        HEARD.append((step, sorted(values)))

    def close(self, failed=False):
        HEARD.append(("ends", failed))


def tversky(logits, label, alpha=0.5):
    """1 - Tversky index over all classes, with alpha for false positives."""
    valid = label != 255
    scores = logits.softmax(1).movedim(1, -1)[valid]
    truth = torch.nn.functional.one_hot(label[valid], logits.shape[1])
    hits = (scores * truth).sum()
    return 1 - hits / (hits + alpha * (scores * (1 - truth)).sum() + (1 - alpha) * ((1 - scores) * truth).sum())
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The module above, beside the data, as a user has it."""
    (tmp_path / "own_parts.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("own_parts")
    del sys.modules["own_parts"]


def trained(out, *settings):
    chosen = [*TINY, "train.steps=2", "train.eval_every=2", "optim.lr=0.01", *settings]
    code, output = cli("train", "--data", "synthetic:4", *options(chosen), "-q", "-o", out)
    assert code == 0, output
    return [record for record in read_metrics(out) if "loss" in record]


@pytest.mark.slow
def test_an_optimiser(parts, tmp_path):
    trained(tmp_path / "run", "optim.name=own_parts:SignDescent", "optim.options.scale=0.5", "optim.momentum=0.7")
    assert parts.MADE == [(0.7, 0.5)]
    still = trained(tmp_path / "still", "optim.name=own_parts:SignDescent", "optim.options.scale=0")
    assert len(still) == 2
    moved, kept = (degrid.load(tmp_path / name).state_dict() for name in ("run", "still"))
    assert not torch.equal(moved["head.classifier.weight"], kept["head.classifier.weight"])


def test_an_optimiser_of_pytorch_by_its_name(tmp_path):
    trained(tmp_path / "run", "optim.name=torch.optim:RMSprop", "optim.options.alpha=0.9")
    groups = parameter_groups(torch.nn.Conv2d(3, 2, 1), 0.1)
    made = make_optimizer("torch.optim:RMSprop", groups, 0.1, 0.8, {"alpha": 0.9})
    assert (made.defaults["alpha"], made.defaults["momentum"]) == (0.9, 0.8)
    with pytest.raises(UserError, match=r'optimiser "sgd" has no option "nestrov"\. Did you mean "nesterov"'):
        make_optimizer("sgd", groups, 0.1, 0.8, {"nestrov": True})
    with pytest.raises(UserError, match=r"expected a torch.optim.Optimizer, got list"):
        make_optimizer("builtins:list", groups, 0.1, 0.8)


@pytest.mark.slow
def test_a_schedule(parts, tmp_path):
    found = trained(tmp_path / "run", "optim.schedule=own_parts:halving")
    assert [record["lr"] for record in found] == [0.01, 0.005]
    found = trained(tmp_path / "slow", "optim.schedule=own_parts:halving", "optim.schedule_options.every=2")
    assert [record["lr"] for record in found] == [0.01, 0.01]
    with pytest.raises(UserError, match="expected a function from the step to its learning rate, got 5"):
        schedule("own_parts:five", 0.1, 5)


def test_a_loss(parts, tmp_path):
    one = trained(tmp_path / "one", "train.loss=own_parts:Linear")
    two = trained(tmp_path / "two", "train.loss=own_parts:Linear", "train.loss_options.factor=2")
    assert two[0]["loss"] == pytest.approx(2 * one[0]["loss"], rel=1e-5)
    both = trained(tmp_path / "both", "train.loss=cross_entropy+own_parts:tversky", "train.loss_options.alpha=0.3")
    told = json.loads((tmp_path / "both" / "run.json").read_text())["config"]["train"]
    assert told["loss_options"] == {"alpha": 0.3}
    assert both[0]["loss"] > 0


def test_every_loss_gets_the_settings_that_apply_to_it(parts):
    own, hard = make_losses("torch.nn:CrossEntropyLoss+ohem", label_smoothing=0.1, options={"ignore_index": 255})
    assert (own.function.label_smoothing, own.function.ignore_index) == (0.1, 255)
    assert hard == HardPixels(0.25, 0.1)
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    label[0, 0] = 255
    theirs = own.total(logits, label, None)
    ours = CrossEntropy(0.1)
    assert float(theirs) == pytest.approx(float(ours.total(logits, label, None) / ours.weight(label, None)), rel=1e-5)
    [tversky] = make_losses("own_parts:tversky", options={"alpha": 0.3})
    assert float(tversky.total(logits, label, None)) == pytest.approx(float(parts.tversky(logits, label, 0.3)))
    with pytest.raises(UserError, match='"train.loss_options": the loss "own_parts:tversky" has no option "beta"'):
        make_losses("own_parts:tversky", options={"beta": 0.3})


def test_a_tracker(parts, tmp_path):
    trained(tmp_path / "run", "train.trackers=own_parts:Diary")
    assert parts.HEARD[0] == ("begins", "run", None)
    assert parts.HEARD[1] == (1, ["train/learning rate", "train/loss"])
    assert parts.HEARD[2][0] == 2
    assert "val/mIoU" in parts.HEARD[2][1]
    assert parts.HEARD[-1] == ("ends", False)
    assert cli("train", "--resume", tmp_path / "run", "-q")[0] == 0
    assert ("begins", "run", "page 1") in parts.HEARD
    code, output = cli("train", "--data", "synthetic:4", *options([*TINY, "train.trackers=own_parts:Linear"]))
    assert code == 2
    assert 'tracker "own_parts:Linear": expected a subclass of degrid.engine.training.trackers.Tracker' in output
