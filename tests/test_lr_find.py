"""The search for a learning rate: what it suggests, what it writes, where it ends, and that it changes nothing."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.verbs.lr_find import suggested

TINY = {
    "model.encoder": "timm:test_resnet",
    "model.pretrained": False,
    "model.channels": 8,
    "model.output_stride": 32,
    "data.crop": (32, 32),
    "train.batch_size": 2,
    "train.precision": "float32",
}


def test_the_steepest_fall_is_suggested():
    exponents = np.linspace(-6, 0, 61)
    rates = (10**exponents).tolist()
    loss = 3 - np.tanh(exponents + 3) + np.where(exponents > -1, 8 * (exponents + 1), 0)  # steepest at 1e-3
    assert suggested(rates, loss.tolist()) == pytest.approx(1e-3)
    assert suggested(rates, [2.0] * 61) is None
    assert suggested(rates, np.linspace(2, 5, 61).tolist()) is None
    assert suggested(rates, (2 - 0.04 * np.linspace(0, 1, 61)).tolist()) is None  # by a fiftieth only


def test_the_numbers_are_those_of_training_and_nothing_is_changed(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    seen = []
    found = degrid.find_learning_rate(
        data="synthetic:4",
        settings=TINY,
        out=tmp_path / "rates",
        lowest=1e-5,
        highest=1e-2,
        steps=10,
        progress=seen.append,
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert found.rates == pytest.approx(np.geomspace(1e-5, 1e-2, 10))
    assert (seen[-1].done, seen[-1].total) == (10, 10)
    assert not found.diverged
    # The first step of a run has the same weights, images and loss.
    constant = {"train.steps": 1, "data.val": "", "optim.power": 0.0, "optim.warmup": 0}
    degrid.train(data="synthetic:4", settings={**TINY, **constant}, out=tmp_path / "run")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert record["loss"] == found.losses[0]
    assert sorted(file.name for file in (tmp_path / "rates").iterdir()) == ["lr_find.csv", "lr_find.png"]
    rows = list(csv.DictReader((tmp_path / "rates" / "lr_find.csv").read_text().splitlines()))
    assert [float(row["loss"]) for row in rows] == pytest.approx(list(found.losses), rel=1e-5)
    assert [float(row["average_loss"]) for row in rows] == pytest.approx(list(found.average), rel=1e-5)
    with Image.open(found.files[0]) as picture:
        assert picture.size == (1080, 600)


def test_it_ends_where_the_loss_explodes_and_the_command_says_where_the_results_are(tmp_path):
    words = [
        part for key, value in TINY.items() for part in ("--set", f"{key}={value}".replace("(", "").replace(")", ""))
    ]
    words += ["--lowest", "1", "--highest", "1e6", "--steps", "12", "-o", str(tmp_path), "--set", "optim.name=sgd"]
    done = CliRunner().invoke(app, ["lr-find", "--data", "synthetic:4", *words])
    assert done.exit_code == 0, done.output
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("no suggestion: the loss hardly fell; more --steps (steps=...) make it clearer; see ")
    assert last.endswith(f"see {tmp_path / 'lr_find.png'} and {tmp_path / 'lr_find.csv'}")
    assert len((tmp_path / "lr_find.csv").read_text().splitlines()) < 12


@pytest.mark.parametrize("wrong", [{"lowest": 0.0}, {"lowest": 2.0}, {"steps": 9}, {"highest": float("inf")}])
def test_mistakes(wrong, tmp_path):
    with pytest.raises(degrid.UserError, match="expected 0 < lowest < highest and at least 10 steps"):
        degrid.find_learning_rate(data="synthetic:4", out=tmp_path / "rates", **wrong)
    assert not (tmp_path / "rates").exists()
