"""Predictions as the files of annotation tools: read back by degrid, they give the same ids."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import degrid
from degrid.data import notes_of, open_dataset
from degrid.data.annotations import SHAPES, TOOLS, readable
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

COLORS = ((0, 0, 0), (128, 64, 128), (0, 128, 0), (70, 70, 70), (250, 170, 30))
NAMES = ("road", 'a "b" & <c>', "Bäume", "x,y", "background")
LABELS = {
    "without background": LabelSpace(NAMES[:4], COLORS[:4]),
    "background first": LabelSpace(("background", *NAMES[:4]), COLORS),
    "background last": LabelSpace(NAMES, COLORS),
    "names that mean something else": LabelSpace(("bg", " sky\x01", "Void", "_background_", ""), COLORS),
}


def written(folder, tool, labels, regions, images, confidence=None):
    """Write ids by the names of their images, which are beside; returns what is said."""
    made = TOOLS[tool](folder, labels, regions)
    for name, ids in images.items():
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", ids.shape[::-1]).save(file)
        made.add(name, file, ids, confidence)
    return made.finish()


def random_ids(rng, count):
    """Noise or patches of `count` classes, up to 29 x 29 pixels, some with pixels without data."""
    height, width = rng.integers(1, 30, 2)
    step = rng.integers(1, 6)
    ids = np.kron(rng.integers(0, count, (height, width)), np.ones((step, step), int))[:height, :width].astype(np.uint8)
    ids[0, 0] = count // 2  # a class that is drawn
    if rng.random() < 0.5:
        ids[-1, -1] = ids[height // 2, : width // 2] = IGNORE_INDEX
    return ids


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_written_is_read_back(tool, shapes, tmp_path):
    rng = np.random.default_rng(len(tool) + len(shapes))
    for kind, labels in LABELS.items():
        images = {f"sub {number}/é{number}": random_ids(rng, len(labels)) for number in range(6)}
        folder = tmp_path / kind
        written(folder, tool, labels, degrid.Regions(shapes), images)
        read = {}
        for split in ("train", "val"):
            dataset = open_dataset(folder, split)
            assert dataset.labels == readable(labels)[0]
            read.update({source.name: dataset[index].label for index, source in enumerate(dataset.sources)})
        assert sorted(read) == sorted(images)
        for name, ids in images.items():
            assert np.array_equal(read[name], ids), (kind, name)


def test_names_that_files_cannot_hold(tmp_path):
    labels = LABELS["names that mean something else"]
    names = ("bg", "sky", "Void (2)", "_background_ (3)", "class 4")
    assert readable(labels)[0].names == names
    said = written(tmp_path, "coco", labels, degrid.Regions(), {"a": IDS})
    others = "' sky\\x01' sky, 'Void' Void (2), '_background_' _background_ (3), '' class 4"
    assert said.endswith(f"classes.csv, where names that files cannot hold were changed: {others}")
    same = LabelSpace((" a", "a", "a\n", "a (2)", "\ud800"), COLORS)
    assert readable(same)[0].names == ("a (0)", "a", "a (2) (2)", "a (2)", "class 4")
    plain = LABELS["background last"]
    assert readable(plain) == (plain, {})


IDS = np.zeros((4, 6), np.uint8)
IDS[1:3, 1:4] = 1
IDS[2, 2] = 2
SURE = np.where(IDS == 1, 0.75, 0.5) + np.linspace(0, 1e-6, 24).reshape(4, 6)


def example(folder, tool, shapes="polygons", confidence=SURE):
    return written(folder, tool, LABELS["background first"], degrid.Regions(shapes), {"a": IDS}, confidence)


def test_coco_by_hand(tmp_path):
    said = example(tmp_path, "coco")
    assert said == f"1 image as polygons: {tmp_path}/annotations.json; classes: {tmp_path}/classes.csv"
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}]
    assert content["categories"][:3] == [{"id": k + 1, "name": n} for k, n in enumerate(("background", *NAMES[:2]))]
    outer, inner = content["annotations"]
    assert outer == {
        "id": 1,
        "image_id": 1,
        "category_id": 2,
        "segmentation": [[1, 1, 4, 1, 4, 3, 3, 3, 3, 2, 2, 2, 2, 3, 1, 3]],
        "area": 5,
        "bbox": [1, 1, 3, 2],
        "iscrowd": 0,
        "score": 0.75,
    }
    assert (inner["category_id"], inner["area"], inner["bbox"], inner["score"]) == (3, 1, [2, 2, 1, 1], 0.5)


def test_cvat_by_hand(tmp_path):
    example(tmp_path, "cvat", "masks")
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    label = root.findall("meta/task/labels/label")[1]
    assert [label.findtext(key) for key in ("name", "color", "attributes/attribute/name")] == [
        "road",
        "#804080",
        "confidence",
    ]
    image = root.find("image")
    assert image.attrib == {"id": "0", "name": "a.png", "width": "6", "height": "4"}
    mask = image.find("mask").attrib
    assert (mask["rle"], mask["left"], mask["top"], mask["width"], mask["height"]) == ("0, 4, 1, 1", "1", "1", "3", "2")
    assert image.findtext("mask/attribute") == "0.75"


def test_labelme_and_label_studio_by_hand(tmp_path):
    example(tmp_path / "l", "labelme")
    content = json.loads((tmp_path / "l" / "a.json").read_text())
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("a.png", 4, 6)
    shape = content["shapes"][0]
    assert (shape["label"], shape["description"]) == ("road", "confidence 0.75")
    assert (tmp_path / "l" / "labels.txt").read_text().splitlines()[:2] == ["background", "road"]
    said = example(tmp_path / "s", "labelstudio")
    assert "label_studio.json" in said
    (task,) = json.loads((tmp_path / "s" / "label_studio.json").read_text())
    assert task["data"] == {"image": "/data/local-files/?d=a.png"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == round((5 * 0.75 + 0.5) / 6, 4)
    first = prediction["result"][0]
    assert (first["type"], first["value"]["polygonlabels"], first["score"]) == ("polygonlabels", ["road"], 0.75)
    assert first["value"]["points"][0] == pytest.approx([100 / 6, 25])
    assert "no task has an annotation: the predictions are read" in notes_of(open_dataset(tmp_path / "s", "train"))
    view = ElementTree.parse(tmp_path / "s" / "label_studio.xml").getroot()
    assert view.find("PolygonLabels/Label").attrib == {"value": "background", "background": "#000000"}


def test_small_and_simplified_regions(tmp_path):
    ids = np.zeros((40, 60), np.uint8)
    y, x = np.mgrid[:40, :60]
    ids[(x - 30) ** 2 + (y - 20) ** 2 < 200] = 1
    ids[20, 30] = 2
    written(tmp_path, "coco", LABELS["background first"], degrid.Regions("polygons", 5, 1.0), {"a": ids})
    (row,) = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert len(row["segmentation"][0]) < 60  # 200 exactly
    assert row["area"] == pytest.approx(np.count_nonzero(ids), rel=0.05)
    assert "score" not in row


@pytest.fixture(scope="module")
def model():
    return degrid.deeplabv3("timm:test_resnet", 3, channels=8).eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(("a.png", "sub/b.png", "sub/a.jpg")):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50 + index, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_predictions_beside_their_images_are_a_dataset(model, photos):
    """The same ids as `predict` gives otherwise; and the mean confidence of each region."""
    files = degrid.ResultFiles("coco")
    found = degrid.predict(model, photos, photos, device="cpu", files=files)
    assert found.written.startswith("3 images as polygons: ")
    with pytest.raises(UserError, match="annotations.json exists, and may have been corrected by hand"):
        degrid.predict(model, photos, photos, device="cpu", files=files)
    expected = dict(degrid.predict_each(model, photos, device="cpu"))
    read = {}
    for split in ("train", "val"):
        dataset = open_dataset(photos, split)
        read.update({source.name: dataset[k].label for k, source in enumerate(dataset.sources)})
    assert {name: ids.tolist() for name, ids in read.items()} == {name: ids.tolist() for name, ids in expected.items()}
    content = json.loads((photos / "annotations.json").read_text())
    predictor = degrid.Predictor(model, device="cpu")
    prediction = predictor.predict(photos / "a.png")
    image = next(row["id"] for row in content["images"] if row["file_name"] == "a.png")
    rows = [row for row in content["annotations"] if row["image_id"] == image]
    mean = sum(row["score"] * row["area"] for row in rows) / prediction.ids.size
    assert mean == pytest.approx(predictor.confidence(prediction).mean(), abs=1e-4)


def test_labelme_names_images_elsewhere_and_windows_give_no_confidence(model, photos, tmp_path):
    options = degrid.InferenceOptions(window=(32, 32))
    files = degrid.ResultFiles("labelme", regions=degrid.Regions("masks"))
    found = degrid.predict(model, photos / "sub", tmp_path, device="cpu", options=options, files=files)
    assert found.written.startswith("2 images as masks; 2 of them without confidence, which windows")
    content = json.loads((tmp_path / "b.json").read_text())
    assert (tmp_path / content["imagePath"]).resolve() == (photos / "sub" / "b.png").resolve()
    assert not Path(content["imagePath"]).is_absolute()
    assert content["shapes"][0]["description"] == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: degrid.Regions("circles"), 'unknown shapes "circles". Known: polygons, masks'),
        (lambda: degrid.Regions(simplify=-1), "must be 0 or more pixels, got 0 and -1"),
        (
            lambda: degrid.ResultFiles("ids", regions=degrid.Regions()),
            "are for the files of annotation tools; add --format",
        ),
        (lambda: degrid.ResultFiles("cvat", overlay=True), "only what the benchmark or tool takes"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(make, message):
    with pytest.raises(UserError, match=message):
        make()
