"""Each loss against an independent literal version; void, micro-batches, training with it, its settings."""

import itertools
import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from degrid import config
from degrid.cli import app
from degrid.data import SyntheticScenes
from degrid.data.inspection.counting import class_counts
from degrid.engine.training.loop import Plan, Training, _step_at_once, train_step
from degrid.engine.training.losses import (
    BatchMean,
    CrossEntropy,
    Focal,
    GeneralisedCrossEntropy,
    HardPixels,
    SymmetricCrossEntropy,
    dice,
    loss_names,
    lovasz_softmax,
    make_losses,
    uses_class_weights,
)
from degrid.engine.training.objective import Objective, given_class_weights, median_frequency_weights
from degrid.types import IGNORE_INDEX, Batch, UserError
from degrid.verbs.run_settings import check_settings

ALL = ["cross_entropy", "ohem", "focal", "dice", "lovasz", "cross_entropy+dice", "cross_entropy+lovasz"]
ALL += ["generalised_cross_entropy", "symmetric_cross_entropy", "0.3*cross_entropy+2*dice"]
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def example(seed=0, images=2, dtype=torch.float32):
    torch.manual_seed(seed)
    logits = 2 * torch.randn(images, 3, 4, 5, dtype=dtype)
    label = torch.randint(0, 3, (images, 4, 5))
    label[0, 0, :3] = IGNORE_INDEX
    return logits, label


def mean(losses, batches, class_weights=None):
    """What a step computes of micro-batches."""
    objective = Objective(losses, class_weights=class_weights)
    total = sum(objective.totals([logits], label) for logits, label in batches)
    weight = sum(objective.weights([(4, 5)], label) for _, label in batches)
    return (total / weight.clamp(min=1e-12)).sum()


def pixels(logits, label):
    """Lists of each valid pixel's probabilities and class."""
    scores = logits.softmax(1)
    places = itertools.product(*map(range, label.shape))
    return [(scores[n, :, y, x].tolist(), int(label[n, y, x])) for n, y, x in places if label[n, y, x] != IGNORE_INDEX]


# ---- sums ---------------------------------------------------------------------------------------------------


def test_factors_scale_values_and_gradients():
    logits, label = example()
    logits.requires_grad_()
    both = mean(make_losses("0.25 * cross_entropy + 3*dice"), [(logits, label)], WEIGHTS)
    parts = [mean(make_losses(name), [(logits, label)], WEIGHTS) for name in ("cross_entropy", "dice")]
    torch.testing.assert_close(both, 0.25 * parts[0] + 3 * parts[1])
    found, wanted = (torch.autograd.grad(each, logits)[0] for each in (both, 0.25 * parts[0] + 3 * parts[1]))
    torch.testing.assert_close(found, wanted)
    assert make_losses("1*cross_entropy") == make_losses("cross_entropy")
    assert loss_names("0.25 * cross_entropy + 3*dice") == ("0.25 * cross_entropy", "3*dice")
    assert uses_class_weights(make_losses("2*dice+0.5*focal"))
    assert not uses_class_weights(make_losses("2*dice+0.5*lovasz"))


@pytest.mark.parametrize("factor", ["-1", "x", "", "nan", "inf"])
def test_factors_that_are_none(factor):
    with pytest.raises(UserError, match=r'"train.loss": expected a factor of 0 or more before the \*'):
        make_losses(f"cross_entropy+{factor}*dice")


# ---- pixel losses of labels with mistakes -------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (GeneralisedCrossEntropy(), lambda p: (1 - p**0.7) / 0.7),
        (GeneralisedCrossEntropy(q=1), lambda p: 1 - p),
        (SymmetricCrossEntropy(), lambda p: -0.1 * math.log(p) + 4 * (1 - p)),
        (SymmetricCrossEntropy(alpha=2, beta=0.5, floor=6), lambda p: -2 * math.log(p) + 3 * (1 - p)),
    ],
)
def test_robust_losses_pixel_by_pixel(loss, value, class_weights):
    logits, label = example()
    weights = [1.0] * 3 if class_weights is None else class_weights.tolist()
    found = pixels(logits, label)
    wanted = sum(weights[true] * value(p[true]) for p, true in found) / sum(weights[true] for _, true in found)
    assert mean((loss,), [(logits, label)], class_weights).item() == pytest.approx(wanted, rel=1e-5)


def test_a_wrong_label_pulls_less():
    """Of a pixel that is surely of class 0 but labelled 1, against one that is undecided."""
    sure, open_ = torch.tensor([8.0, 0.0]), torch.tensor([0.0, 0.0])
    pulls = {}
    for name in ("cross_entropy", "generalised_cross_entropy", "symmetric_cross_entropy"):
        grads = []
        for scores in (sure, open_):
            logits = scores.reshape(1, 2, 1, 1).clone().requires_grad_()
            (grad,) = torch.autograd.grad(mean_of_one(make_losses(name), logits), logits)
            grads.append(grad.abs().max().item())
        pulls[name] = grads[0] / grads[1]
    assert pulls["cross_entropy"] == pytest.approx(2, rel=1e-2)
    assert pulls["generalised_cross_entropy"] < 0.05
    assert pulls["symmetric_cross_entropy"] < 0.2


def mean_of_one(losses, logits):
    return Objective(losses).totals([logits], torch.ones(1, 1, 1, dtype=torch.long)).sum()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("generalised_cross_entropy", {"q": 0}, "expected a q above 0, at most 1, got 0"),
        ("symmetric_cross_entropy", {"beta": -1}, "expected alpha, beta and floor of 0 or more"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(UserError, match=message):
        make_losses(name, options=options)


# ---- pixel losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(smoothing, class_weights):
    logits, label = example()
    expected = F.cross_entropy(
        logits, label, class_weights, ignore_index=IGNORE_INDEX, label_smoothing=smoothing, reduction="mean"
    )
    assert float(mean((CrossEntropy(smoothing),), [(logits, label)], class_weights)) == pytest.approx(float(expected))


def test_label_smoothing_by_hand():
    logits, label = example()
    target = {True: 1 - 0.3 + 0.1, False: 0.1}
    each = [sum(-target[c == k] * math.log(p[k]) for k in range(3)) for p, c in pixels(logits, label)]
    assert float(mean((CrossEntropy(0.3),), [(logits, label)])) == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_by_hand(gamma, class_weights):
    logits, label = example()
    w = [1.0] * 3 if class_weights is None else class_weights.tolist()
    found = pixels(logits, label)
    expected = sum(-w[c] * (1 - p[c]) ** gamma * math.log(p[c]) for p, c in found) / sum(w[c] for _, c in found)
    assert float(mean((Focal(gamma),), [(logits, label)], class_weights)) == pytest.approx(expected, rel=1e-5)
    if gamma == 0:
        plain = mean((CrossEntropy(),), [(logits, label)], class_weights)
        assert float(plain) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_of_certain_pixels_is_finite(gamma):
    logits = torch.tensor([200.0, 0.0, -200.0]).reshape(1, 3, 1, 1).repeat(1, 1, 1, 3).requires_grad_()
    loss = Focal(gamma).total(logits, torch.tensor([[[0, 2, 255]]]), None)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(("share", "kept"), [(0.25, 10), (0.01, 1), (1.0, 37), (0.5, 19)])
def test_ohem_is_the_mean_of_the_largest(share, kept):
    logits, label = example()
    each = sorted((-math.log(p[c]) for p, c in pixels(logits, label)), reverse=True)
    assert len(each) == 37
    expected = sum(each[:kept]) / kept
    assert float(mean((HardPixels(share),), [(logits, label)])) == pytest.approx(expected, rel=1e-5)


def test_ohem_passes_gradient_to_the_kept_pixels_only():
    logits, label = example()
    logits.requires_grad_()
    mean((HardPixels(0.25),), [(logits, label)]).backward()
    assert int((logits.grad.abs().sum(1) > 0).sum()) == 10
    worst = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="none").flatten().topk(10).indices
    assert (logits.grad.abs().sum(1).flatten()[worst] > 0).all()


def test_ohem_with_class_weights_by_hand():
    logits, label = example()
    found = pixels(logits, label)
    w = WEIGHTS.tolist()
    each = sorted((-w[c] * math.log(p[c]) for p, c in found), reverse=True)
    expected = sum(each[:10]) / (10 * sum(w[c] for _, c in found) / len(found))
    assert float(mean((HardPixels(0.25),), [(logits, label)], WEIGHTS)) == pytest.approx(expected, rel=1e-5)
    whole, plain = (mean((loss,), [(logits, label)], WEIGHTS) for loss in (HardPixels(1.0), CrossEntropy()))
    assert float(whole) == pytest.approx(float(plain), rel=1e-6)


# ---- region losses ------------------------------------------------------------------------------------------


def test_dice_by_hand():
    # Classes 0 and 1 of three; probabilities of the four pixels, of which the last is void.
    scores = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.75, 0.125, 0.125], [0.1, 0.1, 0.8]])
    logits = scores.log().T.reshape(1, 3, 2, 2)
    label = torch.tensor([[[0, 1], [1, 255]]])
    # class 0: p y = 0.5, sum p = 1.5, sum y = 1; class 1: p y = 0.5 + 0.125, sum p = 0.875, sum y = 2; 2 is absent
    expected = ((1 - 2 * 0.5 / 2.5) + (1 - 2 * 0.625 / 2.875)) / 2
    assert float(dice(logits, label)) == pytest.approx(expected, rel=1e-6)


def test_dice_of_a_class_without_any_probability_is_finite():
    logits = torch.tensor([200.0, 0.0, -200.0]).reshape(1, 3, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    loss = dice(logits, torch.zeros(1, 2, 2, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.isfinite(logits.grad).all()


def hard(guess):
    """Logits whose softmax is 0 or 1."""
    return 1000 * F.one_hot(guess, 3).movedim(-1, 1).float()


@pytest.mark.parametrize("seed", range(5))
def test_lovasz_of_hard_predictions_is_the_jaccard_loss(seed):
    _, label = example(seed)
    guess = torch.randint(0, 3, label.shape)
    if seed == 0:
        label[label == 2] = 1  # an absent class is not counted, though it is predicted
    losses = []
    for c in label.unique().tolist():
        if c != IGNORE_INDEX:
            truth, found, valid = label == c, guess == c, label != IGNORE_INDEX
            losses.append(1 - int((truth & found).sum()) / int(((truth | found) & valid).sum()))
    assert float(lovasz_softmax(hard(guess), label)) == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def convex_closure(errors, truth):
    """Smallest mean Jaccard loss over distributions of sets of wrong pixels with these marginals.

    A linear programme, whose optimum is at one of its bases: all are tried.
    """
    sets = np.array(list(itertools.product([0, 1], repeat=len(errors))))
    cost = np.array([wrong.sum() / (truth | wrong).sum() for wrong in sets])
    rows, target = np.vstack([sets.T, np.ones(len(sets))]), np.append(errors, 1.0)
    choices = np.array(list(itertools.combinations(range(len(sets)), len(target))))
    bases = rows[:, choices].transpose(1, 0, 2)
    regular = np.abs(np.linalg.det(bases)) > 1e-9
    choices, bases = choices[regular], bases[regular]
    shares = np.linalg.solve(bases, np.broadcast_to(target[:, None], (len(bases), len(target), 1)))[..., 0]
    feasible = (shares > -1e-9).all(1)
    return (shares * cost[choices]).sum(1)[feasible].min()


@pytest.mark.parametrize("seed", range(6))
def test_lovasz_is_the_convex_closure_of_the_jaccard_loss(seed):
    torch.manual_seed(seed)
    logits, label = torch.randn(2, 3, 1, 2, dtype=torch.float64), torch.randint(0, 2, (2, 1, 2))
    found = pixels(logits, label)
    losses = []
    for c in label.unique().tolist():
        truth = np.array([int(true == c) for _, true in found])
        errors = np.array([1 - p[c] if true == c else p[c] for p, true in found])
        losses.append(convex_closure(errors, truth))
    assert float(lovasz_softmax(logits, label)) == pytest.approx(np.mean(losses), rel=1e-9)


def test_lovasz_keeps_its_digits_over_many_pixels():
    """One wrong pixel among N costs 1/N, which the difference of two numbers near 1 would give to a few per cent."""
    label = torch.zeros(1, 400, 500, dtype=torch.long)
    guess = label.clone()
    guess[0, 0, 1] = 1
    assert float(lovasz_softmax(hard(guess), label)) == pytest.approx(1 / 200_000, rel=1e-6)


# ---- all of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_gradients(name):
    logits, label = (each[..., :3] for each in example(1, images=1, dtype=torch.float64))
    label[0, 0, 2] = 0
    weights = WEIGHTS.double()

    def value(x):
        return sum(loss.total(x, label, weights) / loss.weight(label, weights) for loss in make_losses(name))

    assert torch.autograd.gradcheck(value, logits.requires_grad_())


@pytest.mark.parametrize("name", ALL)
def test_void_changes_nothing(name):
    losses = make_losses(name)
    logits, label = example()
    before = mean(losses, [(logits, label)])
    wide = F.pad(label, (0, 2), value=IGNORE_INDEX)
    objective = Objective(losses)
    wide_logits = torch.cat([logits, 9 * torch.randn(2, 3, 4, 2)], 3).requires_grad_()
    found = (objective.totals([wide_logits], wide) / objective.weights([(4, 7)], wide)).sum()
    assert float(found.detach()) == pytest.approx(float(before), rel=1e-6)
    found.backward()
    assert not wide_logits.grad.movedim(1, -1)[wide == IGNORE_INDEX].any()


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", ALL)
def test_only_void_gives_zero_and_no_gradient(name, class_weights):
    losses = make_losses(name)
    logits, label = example()
    logits.requires_grad_()
    void = torch.full_like(label, IGNORE_INDEX)
    loss = mean(losses, [(logits, void)], class_weights)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    whole = mean(losses, [example()], class_weights)
    beside = mean(losses, [(logits.detach(), void), example()], class_weights)
    assert float(beside) == pytest.approx(float(whole), rel=1e-6)
    for function in (dice, lovasz_softmax):
        assert float(function(logits.detach(), void)) == 0


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    "losses", [(CrossEntropy(0.1),), (Focal(),), (HardPixels(1.0),), (CrossEntropy(), Focal())], ids=str
)
def test_micro_batches_equal_one_batch(losses, class_weights):
    logits, label = example(images=3)
    parts = [(logits[:1], label[:1]), (logits[1:], label[1:])]
    whole = mean(losses, [(logits, label)], class_weights)
    assert float(mean(losses, parts, class_weights)) == pytest.approx(float(whole), rel=1e-6)


def test_micro_batches_of_the_others():
    """Hard pixels are chosen in each micro-batch; region losses are the mean over micro-batches."""
    parts = [example(1), example(2)]
    hardest = []
    for logits, label in parts:
        hardest += sorted((-math.log(p[c]) for p, c in pixels(logits, label)), reverse=True)[:10]
    assert float(mean((HardPixels(),), parts)) == pytest.approx(sum(hardest) / 20, rel=1e-5)
    for function in (dice, lovasz_softmax):
        expected = sum(float(function(*part)) for part in parts) / 2
        assert float(mean((BatchMean(function),), parts)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", ALL)
def test_a_step_waits_for_no_value(monkeypatch, name, class_weights):
    """Tensors on the meta device have no values: asking for one, or for a size that depends on some, is an error."""
    monkeypatch.setattr("degrid.engine.training.loop.autocast", lambda *given: nullcontext())  # there is none for it
    model = nn.Conv2d(3, 3, 1, device="meta")
    forward = model.forward
    model.forward = lambda image: forward(image.float())
    state = Training(model, torch.optim.SGD(model.parameters(), lr=0.1))
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.long), ())
    weights = None if class_weights is None else class_weights.to("meta")
    plan = Plan(1, lambda step: 0.1, precision="float32", clip_norm=1.0)
    losses = _step_at_once(state, [batch, batch], Objective(make_losses(name), class_weights=weights), plan)
    assert model.weight.grad.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        losses()


def test_a_loss_of_ones_own_is_waited_for():
    """Whether a pixel is valid has to be known before the function is called."""
    logits, label = example()
    with pytest.raises(RuntimeError, match="meta"):
        BatchMean(dice).total(logits.to("meta"), label.to("meta"), None)


@pytest.mark.parametrize("seed", range(3))
def test_ranking_absent_classes_changes_nothing(monkeypatch, seed):
    logits, label = example(seed)
    label[label == 1] = 0
    logits.requires_grad_()
    found = lovasz_softmax(logits, label)
    monkeypatch.setattr("degrid.engine.training.losses._to_rank", lambda label, logits: range(3))
    every = lovasz_softmax(logits, label)
    torch.testing.assert_close(every, found)
    torch.testing.assert_close(torch.autograd.grad(every, logits), torch.autograd.grad(found, logits))


@pytest.mark.parametrize("name", [*ALL, "focal+dice"])
def test_every_loss_trains(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    model.forward = lambda image: nn.Sequential.forward(model, image.float() / 255)
    state = Training(model, torch.optim.Adam(model.parameters(), lr=0.02))
    rng = np.random.default_rng(0)
    label = torch.from_numpy(rng.integers(0, 3, (4, 8, 8)))
    image = torch.stack([(label == c) * 120 + 60 for c in range(3)], 1).to(torch.uint8)
    label[:, 0] = IGNORE_INDEX
    micro = [Batch(image[:2], label[:2], ()), Batch(image[2:], label[2:], ())]
    losses = [train_step(state, micro, Objective(make_losses(name))) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    # Bounded, with every term's mean taken: the gradient of a sum would have made the first loss far larger.
    assert losses[0] < 3


def test_terms_of_a_sum_are_means_of_their_own():
    logits, label = example()
    found = mean(make_losses("cross_entropy + lovasz"), [(logits, label)])
    expected = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX) + lovasz_softmax(logits, label)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


# ---- settings -----------------------------------------------------------------------------------------------


def check(*assignments):
    check_settings(config.override(config.RunConfig(), [f"train.{assignment}" for assignment in assignments]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["loss=dise"], 'unknown loss "dise". Did you mean "dice"? Known: cross_entropy, ohem, focal, dice, lovasz, '),
        (["loss=cross_entropy+lovas"], 'unknown loss "lovas". Did you mean "lovasz"?'),
        (["loss=math:pi"], 'loss "math:pi": expected a function of logits and label, got float'),
        (["loss=torch.optim:RMSprop"], 'loss "torch.optim:RMSprop" needs params, which its options do not give'),
        (["label_smoothing=1"], 'setting "train.label_smoothing": expected 0 (off) or a share below 1, got 1.0'),
        (["loss=focal", "label_smoothing=0.1"], "acts on cross_entropy and ohem only"),
        (["focal_gamma=-1"], 'setting "train.focal_gamma": expected 0 or more'),
        (["ohem_share=0"], 'setting "train.ohem_share": expected a share above 0'),
        (["class_weights=1,x"], 'setting "train.class_weights": expected none, sqrt_median_frequency'),
        (["class_weights=1,-1"], "none below 0"),
        (["class_weights=0,0"], "one above"),
        (["class_weights=1,nan"], 'got "1,nan"'),
        (["loss=dice", "class_weights=1,2"], 'no effect on the loss "dice"'),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(UserError) as error:
        check(*settings)
    assert message in str(error.value)


def test_settings_that_can():
    for name in [*ALL, "focal+lovasz"]:
        check(f"loss={name}")
    check("loss=cross_entropy+dice", "label_smoothing=0.1", "class_weights=1,2")
    check("loss=dice", "class_weights=sqrt_median_frequency")
    assert given_class_weights("1, 2,0.5") == (1, 2, 0.5)
    assert given_class_weights("median_frequency") is None
    assert make_losses("ohem", ohem_share=0.1, label_smoothing=0.2) == (HardPixels(0.1, 0.2),)


OWN = """
import torch
from degrid.engine.training.losses import Loss

def brier(logits, label):
    valid = label != 255
    scores = logits.softmax(1).movedim(1, -1)[valid]
    return ((scores - torch.nn.functional.one_hot(label[valid], logits.shape[1])) ** 2).sum(1).mean()

class Module(torch.nn.Module):
    def forward(self, logits, label):
        return brier(logits, label)

class Counted(Loss):
    def total(self, logits, label, class_weights):
        return brier(logits, label) * 3

    def weight(self, label, class_weights):
        return torch.tensor(3.0)
"""


def test_ones_own_loss(tmp_path, monkeypatch):
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    logits, label = example()
    found = pixels(logits, label)
    expected = sum(sum((p[k] - (k == c)) ** 2 for k in range(3)) for p, c in found) / len(found)
    for name in ("brier", "Module", "Counted"):
        losses = make_losses(f"own_losses:{name}")
        assert float(mean(losses, [(logits, label)])) == pytest.approx(expected, rel=1e-5)
    assert len(make_losses("cross_entropy+own_losses:brier")) == 2


def cli(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit | UserError):
        raise result.exception
    return str(result.exception) if isinstance(result.exception, UserError) else result.output


def test_through_the_command_line(tmp_path):
    settings = ["model.encoder=timm:test_resnet", "model.pretrained=false", "model.channels=16", "data.crop=48,48"]
    settings += [
        "train.steps=2",
        "train.batch_size=2",
        "train.precision=float32",
        "data.val=",
        "train.loss=ohem+lovasz",
    ]
    words = [part for setting in settings for part in ("--set", setting)]
    folder = tmp_path / "run"
    scenes = SyntheticScenes("train", 3).labels.names
    weights = ",".join(str(1 + k) for k in range(len(scenes)))
    data = ("train", "--data", "synthetic:3", "-o", folder)
    wrong = cli(*data, *words, "--set", "train.class_weights=1,2")
    assert f"expected {len(scenes)} numbers, one per class ({scenes[0]}, " in wrong
    assert 'Did you mean "lovasz"' in cli(*data, *words, "--set", "train.loss=lovas")
    assert not folder.exists()  # both are refused before anything is written
    assert "model: " in cli(*data, *words, "--set", f"train.class_weights={weights}")
    told = json.loads((folder / "run.json").read_text())["config"]["train"]
    assert (told["loss"], told["class_weights"]) == ("ohem+lovasz", weights)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < record["loss"] < 20 for record in records)


# ---- counting -----------------------------------------------------------------------------------------------


def test_every_label_is_counted():
    scenes = SyntheticScenes("train", 4, (64, 80))
    seen = []
    counts = class_counts(scenes, lambda p: seen.append((p.done, p.total)))
    wanted = [[int((scenes[k].label == c).sum()) for c in (*range(len(scenes.labels)), 255)] for k in range(4)]
    assert counts.tolist() == wanted
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_data_stats():
    found = json.loads(cli("data", "stats", "synthetic:2", "--split", "val", "--json"))
    counts = class_counts(SyntheticScenes("val", found["num_images"]))
    *pixels, void = counts.sum(0).tolist()
    rows = found["classes"]
    assert [row["pixels"] for row in rows] == pixels
    assert [row["images"] for row in rows] == (counts > 0).sum(0).tolist()[:-1]
    assert found["void_pixels"] == void > 0
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for kind, power in (("median_frequency", 1.0), ("sqrt_median_frequency", 0.5)):
        weights = median_frequency_weights(torch.tensor(pixels), power)
        assert [row[kind] for row in rows] == pytest.approx(weights.tolist())
    lines = cli("data", "stats", "synthetic:2").splitlines()
    assert lines[0].startswith("synthetic:2, train: 2 images, ")
    assert lines[1].split() == ["class", "pixels", "share", "images", "sqrt_median_frequency", "median_frequency"]
    assert len(lines) == 2 + len(rows)
    assert "degrid data stats" in cli("data", "stats", "--help")
