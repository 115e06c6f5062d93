"""The model that comes with degrid: its file and card agree, it gives the logits that it gave, and needs no name."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import degrid
from degrid.model_places import CARD, README, SHIPPED, shipped_folder
from degrid.types import UserError
from degrid.verbs.find_images import are_images
from degrid.verbs.model_card import readme

FOLDER = shipped_folder()


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / CARD).read_text(encoding="utf-8"))


def test_the_card_describes_this_file_within_eight_mebibytes(card):
    data = (FOLDER / "model.safetensors").read_bytes()
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert card["sha256"] == hashlib.sha256(data).hexdigest()
    assert card["bytes"] == len(data)
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8 * 2**20
    assert card["classes"] == [row["name"] for row in config["classes"]]
    assert config["model"]["encoder"] in card["network"]


def test_its_page_is_made_of_the_card(card):
    assert (FOLDER / README).read_text(encoding="utf-8") == readme(card)
    assert card["license"] == "cc-by-nc-4.0"
    assert {"## Limits", "## Data and licences"} <= set(card["about"].splitlines())


def test_scores_on_the_card_are_means_over_its_classes_and_reach_the_aim(card):
    for form, least in (("float32", 0.62), ("float16", 0.61)):
        scores = card["scores"]["forms"][form]
        assert list(scores["class_iou"]) == card["classes"]
        assert scores["miou"] == pytest.approx(np.mean(list(scores["class_iou"].values())), abs=1e-12)
        assert scores["miou"] >= least
    assert card["scores"]["images"] == 233


def test_it_gives_the_logits_that_it_gave():
    network = degrid.load(SHIPPED)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    image = torch.stack([2 * rows, 2 * columns - 1, (rows * columns) % 256])[None]
    with torch.no_grad():
        logits = network(image)[0]
    assert logits.shape == (11, 24, 32)
    assert all(value.dtype == torch.float32 for value in network.parameters())
    got = [float(logits[k, y, x]) for k, y, x in ((0, 1, 2), (1, 10, 15), (3, 22, 16), (5, 4, 30), (10, 12, 12))]
    assert got == pytest.approx([-4.787, -3.51207, -4.42435, -1.29542, -6.9834], abs=1e-3)


def test_photographs_need_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("street.png")
    alone = degrid.predict("street.png", out="alone")
    named = degrid.predict(SHIPPED, ["street.png"], "named")
    assert alone.images == named.images == 1
    assert "comes with degrid" in alone.model
    assert named.model == ""
    ids = [np.asarray(Image.open(Path(place, "street.png"))) for place in ("alone", "named")]
    assert np.array_equal(*ids)
    assert ids[0].shape == (48, 64)
    with pytest.raises(UserError, match="no images come after it"):
        degrid.predict(SHIPPED)
    Path("run").mkdir()
    Path("run/run.json").touch()
    for model in ("run", SHIPPED):
        with pytest.raises(
            UserError, match=f"{model} is a model, which comes first: degrid predict {model} street.png"
        ):
            degrid.predict("street.png", [model])


def test_what_is_taken_for_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/deep").mkdir(parents=True)
    Path("photos/deep/a.JPG").touch()
    Path("run/model").mkdir(parents=True)
    for name in ("run/model/config.json", "run/preview.png", "model.onnx"):
        Path(name).touch()
    images = ["a.png", "A.JPEG", "b.mp4", "photos", "photos/*.png", "rtsp://camera/live", Path("x/y.tif")]
    models = ["run", "run/model", "model.onnx", "nothing", SHIPPED, "hf:owner/name", "opencv=model.onnx"]
    assert [are_images(path) for path in images] == [True] * len(images)
    assert [are_images(path) for path in models] == [False] * len(models)


def test_a_folder_of_that_name_is_meant_before_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(SHIPPED).mkdir()
    with pytest.raises(UserError):
        degrid.load(SHIPPED)
