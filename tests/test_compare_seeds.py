"""Recipes compared over several seeds each."""

import json
import math

import numpy as np
import pytest
import torch
from test_verbs_predict import cli

import degrid
from degrid import UserError
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.evaluation.seeds import mean_scores, seed_difference, t_quantile, t_two_sided

SEEDS = {"a": (1, 2), "b": (2, 1)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Untrained networks in what looks like run folders: two recipes, two seeds; the second one in another order."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe, seeds in SEEDS.items():
        for seed in seeds:
            torch.manual_seed(seed + (10 if recipe == "b" else 0))
            place = folder / f"{recipe}{seed}"
            degrid.save(degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8), place / "model")
            (place / "run.json").write_text(json.dumps({"config": {"train": {"seed": seed}}}))
    return [[folder / f"{recipe}{seed}" for seed in seeds] for recipe, seeds in SEEDS.items()]


@pytest.fixture(scope="module")
def found(runs):
    return degrid.compare(runs, "synthetic:1", device="cpu")


@pytest.fixture(scope="module")
def mious(found):
    """By recipe and seed."""
    return {run.model[-2:]: run.scores.miou for recipe in found.runs for run in recipe}


def test_student_worked_out_by_hand():
    """Differences 1, 2 and 3 %: mean 2, standard error 1 / sqrt(3), two degrees of freedom (quantile 4.3027)."""
    found = seed_difference([0.50, 0.60, 0.40], [0.51, 0.62, 0.43], paired=True)
    assert found.difference == pytest.approx(0.02)
    assert (found.low, found.high) == pytest.approx(
        (0.02 - 0.0430265273 / math.sqrt(3), 0.02 + 0.0430265273 / math.sqrt(3))
    )
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t**2))  # the closed form for two degrees of freedom
    assert (found.over, found.paired) == ("seeds", True)


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats", reason="the reference")
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 12):
        a, b = rng.normal(0.5, 0.02, count), rng.normal(0.52, 0.05, count + 1)
        for expected, found in (
            (stats.ttest_ind(b, a, equal_var=False), seed_difference(a.tolist(), b.tolist(), paired=False)),
            (stats.ttest_rel(b[:-1], a), seed_difference(a.tolist(), b[:-1].tolist(), paired=True)),
        ):
            low, high = expected.confidence_interval(0.95)
            assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
            assert (found.low, found.high) == pytest.approx((low, high), rel=1e-6)
    for freedom in (1, 1.3, 2, 7.5, 200):
        assert t_quantile(0.05, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)
        assert t_two_sided(40.0, freedom) == pytest.approx(2 * stats.t.sf(40.0, freedom), rel=1e-6)


def test_p_is_never_0_and_runs_alike_have_no_spread():
    assert seed_difference([0.5] * 3, [0.5] * 3, paired=True).p == 1
    assert seed_difference([0.5] * 3, [0.6] * 3, paired=True).p == pytest.approx(2 / 8)
    alike = seed_difference([0.5] * 3, [0.6] * 3, paired=False)
    assert alike.p == pytest.approx(2 / 20)
    assert alike.low == alike.high == pytest.approx(0.1)
    tiny = seed_difference([0.5 + 1e-9 * k for k in range(8)], [0.6 - 1e-9 * k for k in range(8)], paired=True)
    assert 0 < tiny.p < 1e-40


@pytest.mark.parametrize(("a", "b", "paired"), [([0.5], [0.6, 0.7], False), ([0.5, 0.6], [0.6, 0.7, 0.8], True)])
def test_too_few_runs_are_refused(a, b, paired):
    with pytest.raises(UserError, match="at least two runs of each recipe"):
        seed_difference(a, b, paired)


def test_recipes_are_compared_seed_by_seed(runs, found, mious):
    assert mious["b2"] == degrid.evaluate(runs[1][0], "synthetic:1", device="cpu").miou
    expected = seed_difference([mious["a1"], mious["a2"]], [mious["b1"], mious["b2"]], paired=True)
    assert found.differences == (expected,)
    assert found.scores[1].miou == pytest.approx((mious["b1"] + mious["b2"]) / 2)
    assert found.models[0] == ",".join(map(str, runs[0]))
    assert [run.seed for run in found.runs[1]] == [2, 1]
    both = mean_scores([run.scores for run in found.runs[0]])
    for index, value in enumerate(both.class_iou):
        each = [run.scores.class_iou[index] for run in found.runs[0]]
        known = [iou for iou in each if iou is not None]
        assert value == (pytest.approx(np.mean(known)) if known else None)


def test_without_seeds_they_are_compared_without_pairs(runs, mious):
    networks = [[degrid.load(path / "model") for path in recipe] for recipe in runs]
    again = degrid.compare(networks, "synthetic:1", device="cpu")
    expected = seed_difference([mious["a1"], mious["a2"]], [mious["b2"], mious["b1"]], paired=False)
    assert again.differences == (expected,)
    assert again.differences[0].paired is False


def test_from_the_command_line(runs, found, tmp_path):
    words = [",".join(map(str, recipe)) for recipe in runs]
    done = cli("compare", *words, "--data", "synthetic:1", "--device", "cpu", "-o", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "c.json").read_text())
    assert record == json.loads(json.dumps(found.to_dict()))
    assert [run["seed"] for run in record["models"][1]["runs"]] == [2, 1]
    assert record["models"][1]["difference_to_first"]["over"] == "seeds"
    assert "not in pairs" not in done.output
    assert f"{100 * found.runs[1][0].scores.miou:.2f}" in done.output


def test_mistakes(runs):
    with pytest.raises(UserError, match="over the seeds; got 2, 1 runs"):
        degrid.compare([runs[0], runs[1][0]], "synthetic:1")
    with pytest.raises(UserError, match="a memory limit gives each network different windows"):
        degrid.compare(runs, "synthetic:1", options=degrid.InferenceOptions(memory=1 << 20))
