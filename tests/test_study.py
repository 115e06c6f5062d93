"""Studies: what is computed over the seeds, and whole ones of tiny trainings."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

import degrid
from degrid import StudyProtocol, StudyResult, UserError
from degrid.cli import app
from degrid.data import open_dataset
from degrid.engine.evaluation.seeds import bootstrap_interval, corrected, smallest_difference
from degrid.files import write_json
from degrid.networks import build_model
from degrid.types import LabelSpace
from degrid.verbs.run_settings import check_settings
from degrid.verbs.study import _read, _Work
from degrid.verbs.study_results import RunScores

STUDIES = Path(__file__).parents[1] / "studies"
TINY = {
    "train.steps": 4,
    "train.eval_every": 4,
    "train.batch_size": 2,
    "train.class_weights": "none",
    "data.crop": [64, 64],
    "train.device": "cpu",
}
CELLS = {"regular": {}, "tent": {"model.smoothing.operator": "tent"}}


def protocol(**changes):
    """The fields of a small study."""
    fields = {"cells": CELLS, "recipe": "synthetic", "data": "synthetic:2", "settings": TINY, "seeds": [0, 1]}
    return StudyProtocol(**{"name": "tiny", **fields, **changes})


# ---- statistics -----------------------------------------------------------------------------------------------


def test_holms_correction_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 below the one before, 0.5 * 1.
    assert corrected([0.02, 0.5, 0.01, 0.03]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert corrected([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert corrected([]) == []


@pytest.mark.parametrize("pairs", [3, 5, 10, 40])
@pytest.mark.parametrize("comparisons", [1, 6])
def test_the_smallest_difference_has_the_power_of_the_noncentral_t(pairs, comparisons):
    found = smallest_difference(2.0, pairs, comparisons)
    critical = stats.t.isf(0.05 / comparisons / 2, pairs - 1)
    shift = found / 2.0 * np.sqrt(pairs)
    power = stats.nct.sf(critical, pairs - 1, shift)  # of the other side there is next to nothing
    assert power == pytest.approx(0.8, abs=1e-4)


def test_the_smallest_difference_needs_pairs():
    with pytest.raises(UserError, match="two pairs or more, got 1"):
        smallest_difference(1.0, 1)


def test_the_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(0.3, 1, 200)
    low, high = bootstrap_interval(values.tolist())
    reach = 1.96 * values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.02)


def run_scores(cell, seed, miou, seconds=1.0, variant=""):
    cost = {"parameters": 1000, "step_seconds": seconds, "steps": 4, "peak_memory_mib": 100, "train_seconds": 9}
    noise = [{"kind": "noise", "severity": each, "miou": each / 5} for each in (1, 3)]
    scores = {"miou": miou, "boundary_iou": miou / 2, "corrupted": noise}
    return RunScores(variant, cell, seed, scores, cost, {"before": 0.5, "after": 0.25})


def test_differences_are_paired_by_seed():
    first, second = [0.50, 0.60, 0.55, 0.70], [0.52, 0.61, 0.58, 0.71]
    runs = [run_scores("a", seed, miou) for seed, miou in enumerate(first)]
    runs += [run_scores("b", seed, miou, 1.5) for seed, miou in reversed(list(enumerate(second)))]
    runs += [run_scores("c", 9, 0.9)]  # has no seed in common
    result = StudyResult("s", "", ("a", "b", "c"), tuple(runs), {"c/seed_1": "too hot"}, "today")
    (effect,) = result.effects()
    truth = stats.ttest_rel(second, first)
    interval = truth.confidence_interval()
    assert effect.pairs == 4
    assert effect.difference == pytest.approx(0.0175)
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
    assert effect.p == pytest.approx(truth.pvalue)
    spread = np.std(np.subtract(second, first), ddof=1)
    assert effect.detectable == pytest.approx(smallest_difference(spread, 4))
    text = result.markdown()
    assert "| b | 4 | 60.50 | 7.94 | 30.25 | 40.00 | - | 1.50x | 100 | 1,000 | 0.500 -> 0.250 |" in text
    assert "| b | 4 | +1.75 |" in text
    assert "c/seed_1: too hot" in text
    assert result.effects("shift_agreement") == []
    assert result.effects("corrupted_miou")[0].difference == 0


def test_the_time_of_a_step_is_compared_within_each_seed():
    seconds = {"a": (1.0, 1.0, 4.0, 4.0), "b": (1.2, 1.3, 4.4)}  # two machines, and the slow one lacks a run of b
    runs = [run_scores(cell, seed, 0.5, each) for cell, all_of in seconds.items() for seed, each in enumerate(all_of)]
    text = StudyResult("s", "", ("a", "b"), tuple(runs), {}, "today").markdown()
    assert "| b | 3 | 50.00 | 0.00 | 25.00 | 40.00 | - | 1.20x |" in text


def test_ps_are_corrected_over_all_variants():
    values = {"a": (0.5, 0.6, 0.7), "b": (0.52, 0.63, 0.71)}
    runs = [
        run_scores(cell, seed, miou, variant=variant)
        for variant in "xy"
        for cell, mious in values.items()
        for seed, miou in enumerate(mious)
    ]
    found = StudyResult("s", "", ("a", "b"), tuple(runs), {}, "today").effects("boundary_iou")
    assert [each.variant for each in found] == ["x", "y"]
    assert [each.p_corrected for each in found] == pytest.approx([2 * each.p for each in found])
    assert found[0].difference == pytest.approx(0.01)


# ---- protocols ------------------------------------------------------------------------------------------------


def test_runs_go_seed_by_seed():
    runs = list(protocol(variants={"x": {}, "y": {}}).runs())
    assert runs[:4] == [("x", "regular", 0), ("x", "tent", 0), ("y", "regular", 0), ("y", "tent", 0)]
    assert len(runs) == 8


def test_a_run_has_the_settings_of_all_its_variant_and_its_cell():
    config = protocol(variants={"x": {"train.steps": 7}}).config("x", "tent", 5, "cpu")
    assert (config.train.steps, config.train.seed, config.model.smoothing.operator) == (7, 5, "tent")
    assert (config.name, config.data.path) == ("x_tent", "synthetic:2")


def raised(error):
    raise error


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cells": {"regular": {}}}, "a study compares two cells or more over two seeds or more; tiny has 1 cell"),
        ({"seeds": (0,)}, "and 1 seed"),
        ({"seeds": (0, 0)}, "seeds are different whole numbers from 0, got 0, 0"),
        ({"cells": {"a/b": {}, "c": {}}}, 'a cell or variant is the name of a folder, without "/"'),
        ({"cells": {**CELLS, "x": {"model.smothing.operator": "tent"}}}, 'unknown setting "model.smothing'),
        ({"cells": {**CELLS, "x": {"model.smoothing.operator": "tend"}}}, 'unknown smoothing operator "tend"'),
        ({"split": "dev"}, "dev"),
        ({"recipe": "deeplabv3_voc12"}, 'single stages, but after .* comes "deeplabv3_voc12_stage2"'),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        degrid.study(protocol(**fields), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_file_that_is_no_protocol(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.yaml"):
        degrid.study(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match="expected the fields of a study"):
        degrid.study(tmp_path / "list.yaml")
    (tmp_path / "typo.yaml").write_text("cels: {a: {}, b: {}}")
    with pytest.raises(UserError, match='unknown setting "cels"'):
        degrid.study(tmp_path / "typo.yaml")


def test_a_look_at_nothing(tmp_path):
    with pytest.raises(UserError, match=r"holds no study; expected study\.json in it"):
        degrid.study(protocol(), tmp_path, look=True)


def test_a_study_goes_on_from_what_came_of_its_runs(tmp_path, monkeypatch):
    """Files of outcomes are enough: only missing runs are made, failed ones when asked for."""
    made, names = [], open_dataset("synthetic:2", "test").labels.names

    def make(work, run, place, device):
        made.append(run)
        scores = {"miou": 0.5 + run[2] / 10, "boundary_iou": 0.2, "num_images": 2, "class_names": names}
        cost = {"parameters": 1, "step_seconds": 1.0, "steps": 4, "peak_memory_mib": 1, "train_seconds": 1}
        write_json(work.outcome(*run), {"error": "hot"} if run[1:] == ("tent", 1) else {"scores": scores, "cost": cost})

    monkeypatch.setattr("degrid.verbs.study._Work._train_and_score", make)
    found = degrid.study(protocol(), tmp_path)
    assert (len(found.runs), found.failures) == (3, {"tent/seed_1": "hot"})
    (tmp_path / "regular/seed_1.json").unlink()
    made.clear()
    degrid.study(protocol(), tmp_path)
    assert made == [("", "regular", 1)]
    made.clear()
    refused = UserError("no checkpoint")
    with monkeypatch.context() as gone:  # the weights, say: what is left to be made is refused as at first
        gone.setattr("degrid.verbs.study._check", lambda config, split: raised(refused))
        degrid.study(protocol(), tmp_path)
        with pytest.raises(UserError, match="no checkpoint"):
            degrid.study(protocol(), tmp_path, retry=True)
    assert made == []
    degrid.study(protocol(), tmp_path, retry=True)
    assert made == [("", "tent", 1)]
    with pytest.raises(UserError, match=r"synthetic:5 has .* test images .* were scored on 2 of"):
        degrid.study(protocol(), tmp_path, data="synthetic:5")
    (tmp_path / "tent/seed_0.json").write_text("{")
    with pytest.raises(UserError, match=r"outcome of a run .*tent/seed_0\.json is not valid JSON"):
        degrid.study(protocol(), tmp_path, look=True)


@pytest.mark.parametrize("why", ["could not write x/last.ckpt: the disk is full; ...", "cannot make the folder x: ..."])
def test_a_full_disk_stops_a_study_and_is_no_outcome(tmp_path, monkeypatch, why):
    """All runs that follow would fail, and stay so."""
    monkeypatch.setattr("degrid.verbs.study._Work._command", lambda work, words, place: (2, f"a\ndegrid: {why}\n", 0))
    with pytest.raises(UserError, match=f"{re.escape(why)}; the study goes on from here by the same command"):
        degrid.study(protocol(), tmp_path)
    assert not list(tmp_path.glob("*/seed_*.json"))


def test_a_run_that_another_program_had_is_made_once_that_program_has_stopped(tmp_path, monkeypatch):
    work = _Work(protocol(), tmp_path, True, None, None)
    (tmp_path / "regular").mkdir()
    theirs = FileLock(tmp_path / "regular" / ".seed_0.lock", thread_local=False)
    made = []

    def make(self, run, place, device):
        made.append(run)
        write_json(self.outcome(*run), {"error": "none was trained"})
        theirs.release()

    monkeypatch.setattr(_Work, "_train_and_score", make)
    theirs.acquire()
    work.run_all(["cpu"], retry=False)
    assert made == [("", "tent", 0), ("", "regular", 1), ("", "tent", 1), ("", "regular", 0)]
    theirs.acquire()
    made.clear()
    work.run_all(["cpu"], retry=True)  # what fails again is not made for ever
    assert made == [("", "tent", 0), ("", "regular", 1), ("", "tent", 1)]


# ---- whole studies --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_from_file_to_tables_with_a_run_that_fails(tmp_path):
    file = tmp_path / "tiny.yaml"
    cells = {"regular": None, "tent": CELLS["tent"], "hot": {"optim.lr": 1e30}}
    fields = {"question": "Does it run?", "recipe": "synthetic", "data": "synthetic:2", "settings": TINY}
    fields |= {"cells": cells, "seeds": 2, "shift": 2, "corruptions": "noise:2"}
    fields["settings"] = {**TINY, "train.fixed_crops": 3}
    file.write_text(yaml.safe_dump(fields, sort_keys=False))
    out = tmp_path / "out"
    said = CliRunner().invoke(app, ["study", str(file), "-o", str(out), "--devices", "cpu,cpu"])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines()[-1] == f"4 runs done, 2 failed; results: {out / 'results.md'}"
    results = json.loads((out / "results.json").read_text())
    assert list(results["failures"]) == ["hot/seed_0", "hot/seed_1"]
    assert all("loss" in why for why in results["failures"].values())
    for run in results["runs"]:
        model = degrid.evaluate(out / run["cell"] / f"seed_{run['seed']}", "synthetic:2", "test", device="cpu")
        assert run["scores"]["miou"] == pytest.approx(model.miou, abs=1e-12)
        assert 100 < run["cost"]["peak_memory_mib"] < 10_000
        assert run["cost"]["step_seconds"] > 0
        assert run["gridding"].keys() == {"before", "after"}
        assert [each["shift"] for each in run["scores"]["shifts"]] == [1, 2]
        assert [(each["kind"], each["severity"]) for each in run["scores"]["corrupted"]] == [("noise", 2)]
    assert [each["cell"] for each in results["comparisons"] if each["measure"] == "miou"] == ["tent"]
    assert not list((out / "features").iterdir())  # all cells of every seed are done
    settings = json.loads((out / "tent/seed_0/run.json").read_text())["config"]["train"]
    assert settings["features"] == str(out / "features/seed_0")
    assert (out / "accuracy_cost.png").stat().st_size > 5000
    # Started again there is nothing to do; another protocol is refused.
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/seed_?.json")}
    assert len(made) == 6
    degrid.study(file, out, devices=["cpu"])
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*/seed_?.json")}
    # Elsewhere, with nothing but what came of the runs, the missing one is made, and comes out the same.
    for folder in out.glob("*/seed_?/"):
        shutil.rmtree(folder)
    (out / "tent/seed_1.json").unlink()
    again = degrid.study(file, out, devices=["cpu"])
    assert [path.name for path in out.glob("*/seed_?/")] == ["seed_1"]
    assert [run.scores["miou"] for run in again.runs] == [run["scores"]["miou"] for run in results["runs"]]
    assert again.failures == results["failures"]
    assert again.of("", "tent")[1].made["versions"]["torch"] == torch.__version__
    file.write_text(file.read_text().replace("seeds: 2", "seeds: 3"))
    with pytest.raises(UserError, match=r"differs in: seeds; a changed protocol is another study"):
        degrid.study(file, out)


@pytest.mark.slow
def test_a_stopped_study_goes_on_within_the_run(tmp_path, monkeypatch):
    """Stopped in mid-run it ends with code 130; its first run then equals that of an undisturbed study."""
    settings = {**TINY, "train.steps": 15, "train.eval_every": 15, "train.save_every": 3}
    fields = {"recipe": "synthetic", "data": "synthetic:2", "settings": settings, "cells": CELLS, "seeds": 2}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    command = [sys.executable, "-m", "degrid", "study", "s.yaml", "-o", "stopped", "--devices", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "stopped/regular/seed_0/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert re.search("stopped and saved; continue with: the same command", errors)
    assert not (tmp_path / "stopped/regular/seed_0.json").exists()
    steps = metrics.read_text().count("\n")
    assert steps < 15
    monkeypatch.chdir(tmp_path)
    found = degrid.study("s.yaml", "stopped", devices=["cpu"])
    assert (len(found.runs), found.failures) == (4, {})
    degrid.train("synthetic", data="synthetic:2", settings={**settings, "train.seed": 0}, out="whole")
    whole = degrid.evaluate("whole", "synthetic:2", "test", device="cpu")
    assert found.of("", "regular")[0].scores["miou"] == whole.miou


def test_a_file_that_is_like_another(tmp_path):
    first = {"cells": CELLS, "settings": {"a": 1, "b": None}, "seeds": 3, "split": "val", "variants": {"x": None}}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"name": "own", **first}))
    (tmp_path / "second.yaml").write_text("like: first.yaml\nquestion: why?\nsettings: {b: 2, c: 3}\nseeds: [5, 6]")
    assert _read(tmp_path / "second.yaml") == StudyProtocol(
        "second", CELLS, "why?", settings={"a": 1, "b": 2, "c": 3}, variants={"x": {}}, seeds=(5, 6), split="val"
    )
    (tmp_path / "first.yaml").write_text("like: second.yaml")
    with pytest.raises(UserError, match='"like" leads from file to file in a circle'):
        _read(tmp_path / "second.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_cell_of_our_studies_can_be_built(file, monkeypatch):
    """Their weights and images are not ours to give: random weights, and built-in scenes."""
    read = _read(file)
    assert read.question
    for variant, cell, seed in read.runs():
        if seed == read.seeds[0]:
            config = read.config(variant, cell, seed)
            check_settings(config)
            config = dataclasses.replace(config.model, pretrained=False)
            build_model(config, LabelSpace.of_size(2))


def test_the_nuclei_of_an_image_become_one_mask(tmp_path):
    for name in "abcd":
        for kind, mode in (("images", "RGBA"), ("masks", "L")):
            (tmp_path / "stage1_train" / name / kind).mkdir(parents=True)
            Image.new(mode, (720, 360), 0).save(tmp_path / "stage1_train" / name / kind / f"{name}.png")
    for number, (top, left) in enumerate(((0, 0), (100, 500))):
        mask = np.zeros((360, 720), np.uint8)
        mask[top : top + 20, left : left + 40] = 255
        Image.fromarray(mask).save(tmp_path / "stage1_train" / "a" / "masks" / f"{number}.png")
    subprocess.run([sys.executable, STUDIES / "nuclei.py", "stage1_train", "nuclei"], cwd=tmp_path, check=True)
    for split, names in (("train", ["a"]), ("test", ["c"])):
        assert [source.name for source in open_dataset(tmp_path / "nuclei", split).sources] == names
    expected = np.zeros((180, 360), np.uint8)
    expected[:10, :20] = expected[50:60, 250:270] = 1
    assert np.array_equal(np.asarray(Image.open(tmp_path / "nuclei" / "labels" / "a.png")), expected)
