"""degrid.compare: the same comparison as `degrid compare`, from Python."""

import dataclasses
import json

import pytest
import torch
from test_verbs_predict import cli

import degrid
from degrid.cli.compare import print_comparison
from degrid.data.synthetic import SyntheticScenes
from degrid.types import Progress, UserError
from degrid.verbs.compare import interval


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        torch.manual_seed(seed)
        degrid.save(degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8), folder / f"{seed}")
    return [folder / f"{seed}" for seed in range(3)]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--draws", "50", "--seed", "3"], {"draws": 50, "seed": 3}),
        pytest.param(
            ["--flip", "--precision", "bfloat16"],
            {"options": degrid.InferenceOptions(flip=True), "precision": "bfloat16"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_verb_finds_what_the_command_finds(models, tmp_path, words, settings):
    out = tmp_path / "compare.json"
    done = cli("compare", *models, "--data", "synthetic:3", "--device", "cpu", "-o", out, *words)
    assert done.exit_code == 0, done.output
    seen = []
    found = degrid.compare(models, "synthetic:3", device="cpu", progress=seen.append, **settings)
    assert json.loads(json.dumps(found.to_dict())) == json.loads(out.read_text())
    assert found.verdict in done.output.splitlines()
    assert f"computed in {found.precisions[0]}; every image whole\n" in done.output
    assert seen == [Progress("comparing", count, 9) for count in range(1, 10)]
    assert (len(found.scores), len(found.differences)) == (3, 2)


def test_it_is_exact_unless_told_otherwise(models):
    found = degrid.compare(models[:2], "synthetic:2", device="cpu", draws=5)
    assert found.precisions == ("float32", "float32")
    assert found.to_dict()["models"][1]["precision"] == "float32"


def test_networks_and_a_dataset_give_what_their_paths_give(models):
    dataset = degrid.open_dataset("synthetic:2", "val")
    networks = [degrid.load(model) for model in models[:2]]
    found = degrid.compare(networks, dataset, device="cpu", draws=5)
    expected = degrid.compare(models[:2], "synthetic:2", device="cpu", draws=5)
    assert (found.scores, found.differences) == (expected.scores, expected.differences)
    assert (found.models, found.data) == (("Segmenter", "Segmenter"), "SyntheticScenes")


def test_the_verdict_names_the_best_and_its_lead(models, capsys):
    found = degrid.compare([models[0], models[0]], "synthetic:2", device="cpu", draws=5)
    assert found.verdict == f"best of 2 on 2 images: {models[0]}, mIoU {100 * found.scores[0].miou:.2f} %"
    pair = degrid.compare(models[:2], "synthetic:2", device="cpu", draws=5)
    if pair.scores[1].miou < pair.scores[0].miou:
        pair = degrid.compare(models[1::-1], "synthetic:2", device="cpu", draws=5)
    difference = pair.differences[0]
    lead = f"{100 * difference.difference:+.2f} {interval(difference)}"
    assert pair.verdict.endswith(f", {lead} to {pair.models[0]}")
    tiny = dataclasses.replace(difference, difference=-1e-9, low=-1e-9, high=0.0123)
    assert interval(tiny) == "[+0.00, +1.23]"
    draw = dataclasses.replace(found, differences=(tiny,))
    print_comparison(draw)
    assert "-0.00" not in capsys.readouterr().out


def test_mistakes(models):
    with pytest.raises(UserError, match="two models or more"):
        degrid.compare(models[:1], "synthetic:2")
    for one in (models[0], str(models[0]), degrid.load(models[0])):
        with pytest.raises(UserError, match="two models or more, got 1"):
            degrid.compare(one, "synthetic:2")
    with pytest.raises(UserError, match="do not predict the same classes"):
        degrid.compare([models[0], degrid.deeplabv3("timm:test_resnet", 4, channels=8)], "synthetic:2")


def test_any_iterable_of_models(models):
    found = degrid.compare((model for model in models[:2]), "synthetic:1", device="cpu", draws=2)
    assert found.models == tuple(str(model) for model in models[:2])
    assert "on 1 image: " in found.verdict
