"""degrid.evaluate: the same scores and files as `degrid eval`, from Python."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_verbs_predict import cli, contents

import degrid
from degrid.data.synthetic import SyntheticScenes
from degrid.types import Progress, UserError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8), folder)
    return folder


WAYS = {
    "plain": ([], {}),
    "everything": (
        ["--trimap", "--calibration", "--worst", "2"],
        {"measures": degrid.Measures(calibration=True, trimap=True, worst=2)},
    ),
    "options": (
        ["--scales", "0.75,1", "--flip", "--fusion", "max"],
        {"options": degrid.InferenceOptions((0.75, 1.0), True, "max")},
    ),
    "robustness": (
        ["--corrupt", "noise:1", "--corrupt", "blur:2", "--shift", "2"],
        {"measures": degrid.Measures(corruptions=("noise:1", "blur:2"), shift=2)},
    ),
    "windows": (["--window", "96x96"], {"options": degrid.InferenceOptions(window=(96, 96))}),
    "multi-scale": (["--msc"], {"multi_scale": True}),
    "bfloat16": (["--precision", "bfloat16"], {"precision": "bfloat16"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_verb_finds_what_the_command_finds(model, tmp_path, way):
    words, settings = WAYS[way]
    out = tmp_path / "command" / "scores.json"
    done = cli("eval", model, "--data", "synthetic:3", "--device", "cpu", "-o", out, *words)
    assert done.exit_code == 0, done.output
    seen = []
    found = degrid.evaluate(str(model), "synthetic:3", device="cpu", progress=seen.append, **settings)
    assert json.loads(json.dumps(found.to_dict())) == json.loads(out.read_text())
    written = found.save(tmp_path / "verb" / "scores.json")
    assert contents(tmp_path / "verb") == contents(tmp_path / "command")
    for what, path in written.items():
        assert f"{what}: {path}".replace("/verb/", "/command/") in done.output.replace("\n", "")
    assert f"mIoU {100 * found.miou:.2f} %" in done.output
    assert f"computed in {found.precision}" in done.output
    images = 3 * (1 + len(found.corrupted))
    assert seen == [Progress("evaluating", count, images) for count in range(1, images + 1)]
    for point in found.corrupted:
        assert f"{point.kind}, severity {point.severity}: mIoU {100 * point.miou:.2f} %" in done.output
    for moved in found.shifts:
        assert f"{100 * moved.agreement:.2f} % of pixels agree" in done.output


def test_it_is_exact_unless_told_otherwise_and_says_so(model, tmp_path):
    done = cli("eval", model, "--data", "synthetic:2", "--device", "cpu", "-o", tmp_path / "s.json")
    assert "computed in float32; every image whole\n" in done.output
    record = json.loads((tmp_path / "s.json").read_text())
    assert (record["precision"], record["images_in_windows"]) == ("float32", 0)
    done = cli(
        "eval", model, "--data", "synthetic:2", "--device", "cpu", "--window", "96x96", "-o", tmp_path / "s.json"
    )
    assert "computed in float32; 2 of 2 images in windows of 96x96\n" in done.output
    record = json.loads((tmp_path / "s.json").read_text())
    assert (record["images_in_windows"], record["windows"]) == (2, [[96, 96]])


def test_what_was_decided_about_the_data_is_said(model, tmp_path):
    network = degrid.deeplabv3("timm:test_resnet", 2, channels=8)
    degrid.save(network, tmp_path / "two")
    for folder, pixels in (("images", np.zeros((33, 40, 3))), ("masks", np.zeros((33, 40)))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for index in range(3):
            pixels[: 9 + index] = 255
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / folder / f"{index}.png")
    dataset = degrid.open_dataset(tmp_path / "data", "val")
    found = degrid.evaluate(tmp_path / "two", tmp_path / "data", device="cpu")
    assert found.notes
    assert any("0 and 255" in note for note in found.notes)
    assert found.notes == degrid.evaluate(network, dataset, device="cpu").notes
    done = cli("eval", tmp_path / "two", "--data", tmp_path / "data", "--device", "cpu", "-o", tmp_path / "s.json")
    for note in found.notes:
        assert f"data: {note}\n" in done.output
    assert json.loads((tmp_path / "s.json").read_text())["notes"] == list(found.notes)


def test_a_network_and_a_dataset_give_the_same_scores_as_their_paths(model):
    network = degrid.load(model).train()
    images = []
    found = degrid.evaluate(
        network,
        degrid.open_dataset("synthetic:2", "val"),
        device="cpu",
        on_image=lambda index, sample, ids: images.append((index, sample.name, tuple(ids.shape))),
    )
    assert network.training
    from_path = degrid.evaluate(model, "synthetic:2", device="cpu")
    assert isinstance(found, degrid.Scores)
    for name in ("miou", "confusion", "boundary_iou", "options", "precision"):
        assert getattr(found, name) == getattr(from_path, name)
    assert (found.model, found.data) == ("Segmenter", "SyntheticScenes")
    assert (from_path.model, from_path.data) == (str(model), "synthetic:2")
    assert [index for index, *_ in images] == [0, 1]


def test_boundaries_can_be_left_out(model):
    found = degrid.evaluate(model, "synthetic:1", device="cpu", measures=degrid.Measures(boundary=False))
    assert found.boundary_iou is None
    assert (found.trimap, found.worst, found.ece) == (None, (), None)


def test_other_classes_are_refused(model):
    network = degrid.deeplabv3("timm:test_resnet", 4, channels=8)
    with pytest.raises(UserError, match="classes"):
        degrid.evaluate(network, "synthetic:1", device="cpu")
