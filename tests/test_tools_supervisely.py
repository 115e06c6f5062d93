"""Supervisely's projects as its library writes them: bitmaps in JSON, and the masks of "Export as masks"."""

import base64
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.data.formats.tools.supervisely import bitmap_pixels
from degrid.types import UserError

TRUTH = np.array([[0, 0, 1, 1, 0], [0, 2, 2, 1, 0], [0, 2, 0, 0, 0], [0, 2, 2, 0, 0]], np.uint8)
NAMES = ("background", "crack", "old pothole")
COLORS = ((0, 0, 0), (250, 50, 83), (0, 128, 0))
# What Bitmap.data_2_base64 of supervisely 6.74.51 writes for these pixels.
PIXELS = np.array([[0, 1, 1, 1, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 1, 0]], bool)
WRITTEN = (
    "eJzrDPBz5+WS4mJgYOD19HAJAtKsQMzCyAwka/6mgyi2AJ8QVyD9////pTfn3wWyGEuC/IIZHJ7dSANyBDxdHEMq5iSvSNh14ENzJhsD1wemu3p66QpA"
    "OQZPVz+XdU4JTQD47xyH"
)


def packed(white, mode="P"):
    """base64 of a zlib-packed PNG, as the library writes (P) and as older ones did (RGBA)."""
    image = Image.fromarray(white.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    if mode == "RGBA":
        image = Image.fromarray(
            np.dstack([np.zeros((*white.shape, 3), np.uint8), np.where(white, 255, 0)]).astype(np.uint8)
        )
    stream = io.BytesIO()
    image.save(stream, format="PNG", **({"transparency": 0} if mode == "P" else {}))
    data = stream.getvalue()
    return base64.b64encode(data if mode == "bare" else zlib.compress(data)).decode()


def bitmap(white, name, mode="P", origin=None):
    """An object with the smallest box around it, as the tool cuts it."""
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    cut = white[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    origin = [int(columns[0]), int(rows[0])] if origin is None else origin
    return {"classTitle": name, "geometryType": "bitmap", "bitmap": {"origin": origin, "data": packed(cut, mode)}}


def put(root, dataset, name, objects):
    for folder in ("img", "ann"):
        (root / dataset / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*TRUTH.shape, 3), np.uint8)).save(root / dataset / "img" / name)
    size = {"height": TRUTH.shape[0], "width": TRUTH.shape[1]}
    text = json.dumps({"description": "", "size": size, "tags": [], "objects": objects})
    (root / dataset / "ann" / f"{name}.json").write_text(text)


def put_meta(root, names=NAMES[1:], colors=COLORS[1:]):
    classes = [
        {"title": name, "shape": "bitmap", "color": "#{:02X}{:02X}{:02X}".format(*color)}
        for name, color in zip(names, colors, strict=True)
    ]
    (root / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))


@pytest.fixture
def root(tmp_path):
    for dataset, names in (("train", ("a.jpg", "a.png")), ("val", ("b.jpg",))):
        for name in names:
            put(tmp_path, dataset, name, [bitmap(k == TRUTH, NAMES[k]) for k in (1, 2)])
    put_meta(tmp_path)
    return tmp_path


def check(root, truth=TRUTH, names=NAMES, colors=COLORS, said="meta.json"):
    for split in ("train", "val"):
        dataset = open_dataset(root, split)
        assert dataset.labels.names == names
        assert dataset.labels.colors == colors
        assert dataset.rule.said == said
        for sample in dataset:
            assert np.array_equal(sample.label.numpy(), truth)
    return open_dataset(root)


def test_a_bitmap_that_the_library_wrote():
    assert np.array_equal(bitmap_pixels(WRITTEN), PIXELS)


@pytest.mark.parametrize("mode", ["P", "RGBA", "bare"])
def test_every_packing(mode):
    assert np.array_equal(bitmap_pixels(packed(TRUTH == 2, mode)), TRUTH == 2)


def test_bitmaps(root):
    train = check(root)
    assert len({*train.sources, *open_dataset(root).sources}) == 2  # what was found out about sources is kept by them
    assert [source.name for source in train.sources] == ["train/a.jpg", "train/a.png"]
    assert notes_of(train) == ["pixels without an object are background"]


def test_one_dataset_of_a_project(root):
    dataset = open_dataset(root / "train")
    assert dataset.labels.names == NAMES
    assert [source.name for source in dataset.sources] == ["a.jpg", "a.png"]
    assert np.array_equal(dataset[0].label.numpy(), TRUTH)


def test_later_objects_lie_on_top_and_are_cut_at_the_border(root):
    everything = bitmap(np.ones((9, 9), bool), NAMES[2], origin=[-2, -3])
    for dataset, name in (("train", "a.jpg"), ("train", "a.png"), ("val", "b.jpg")):
        put(root, dataset, name, [everything, bitmap(TRUTH == 1, NAMES[1])])
    check(root, np.where(TRUTH == 1, 1, 2))
    outside = bitmap(np.ones((2, 2), bool), NAMES[2], origin=[-7, 1])
    for dataset, name in (("train", "a.jpg"), ("train", "a.png"), ("val", "b.jpg")):
        put(root, dataset, name, [bitmap(TRUTH == 1, NAMES[1]), outside])
    check(root, np.where(TRUTH == 1, 1, 0))


def test_datasets_that_are_no_splits_are_one_set(tmp_path):
    for k in range(10):
        put(tmp_path, f"ds{k % 2}", f"{k}.jpg", [bitmap(TRUTH == 1, "crack")])
    put_meta(tmp_path)
    names = [source.name for split in ("train", "val") for source in open_dataset(tmp_path, split).sources]
    assert sorted(names) == sorted(f"ds{k % 2}/{k}.jpg" for k in range(10))
    assert notes_of(open_dataset(tmp_path))[0].startswith("the data name no splits")


def test_a_background_of_their_own(root):
    # As Project.to_segmentation_task adds it: an object of the class "__bg__" for the rest.
    put_meta(root, (*NAMES[1:], "__bg__"), (*COLORS[1:], COLORS[0]))
    put(root, "val", "b.jpg", [bitmap(k == TRUTH, name) for k, name in enumerate(("__bg__", *NAMES[1:]))])
    truth = np.array([2, 0, 1], np.uint8)[TRUTH]
    check(root, truth, (*NAMES[1:], "__bg__"), (*COLORS[1:], COLORS[0]))


def test_the_users_table(root):
    (root / "classes.csv").write_text("id,name,r,g,b\n1,crack,1,1,1\n0,background,0,0,0\n2,old pothole,2,2,2\n")
    check(root, colors=tuple((k, k, k) for k in range(3)), said="classes.csv")
    (root / "classes.csv").write_text("id,name,r,g,b\n0,crack,1,1,1\n")
    with pytest.raises(UserError, match=r'classes.csv has no class "old pothole", which meta.json has'):
        open_dataset(root)


def put_machine(root, values, ids, rgb):
    (root / "obj_class_to_machine_color.json").write_text(json.dumps(values))
    for dataset, name in (("train", "a"), ("val", "b")):
        (root / dataset / "masks_machine").mkdir()
        mask = np.array(ids, np.uint8)[TRUTH]
        mask = np.repeat(mask[..., None], 3, 2) if rgb else mask
        Image.fromarray(mask).save(root / dataset / "masks_machine" / f"{name}.png")
    (root / "train" / "img" / "a.png").unlink()


@pytest.mark.parametrize("rgb", [True, False])
@pytest.mark.parametrize("values", [(1, 2), (100, 255)])
def test_export_as_masks(root, values, rgb):
    written = {name: [value] * 3 for name, value in zip(NAMES[1:], values, strict=True)}
    put_machine(root, written, (0, *values), rgb)
    check(root, said="obj_class_to_machine_color.json")
    (root / "meta.json").unlink()
    colors = ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    check(root, colors=colors, said="obj_class_to_machine_color.json")


def test_two_images_with_one_mask(root):
    put_machine(root, {"crack": 1, "old pothole": 2}, (0, 1, 2), False)
    check(root, said="obj_class_to_machine_color.json")
    put(root, "train", "a.png", [])
    with pytest.raises(
        UserError, match=r"a.png and a.jpg have one mask, a.png: .* take obj_class_to_machine_color.json"
    ):
        open_dataset(root)


def test_export_as_masks_in_colour(root):
    put_machine(root, {NAMES[1]: [9, 0, 0], NAMES[2]: [9, 9, 0]}, ((0, 0, 0), (9, 0, 0), (9, 9, 0)), False)
    check(root, said="obj_class_to_machine_color.json")


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"classTitle": "cat", "bitmap": {}}], 'has an object of the class "cat", which is not in meta.json'),
        (
            [{"classTitle": "crack", "geometryType": "polygon", "points": {}}],
            "expected the size and the objects",
        ),
        ([{"classTitle": "crack", "bitmap": {"origin": [0, 0], "data": "AAAA"}}], "expected the size and the objects"),
    ],
)
def test_files_that_cannot_be_used(root, objects, message):
    put(root, "train", "a.jpg", objects)
    with pytest.raises(UserError, match=rf"a\.jpg\.json.*{message}"):
        open_dataset(root)[0]
    (root / "meta.json").write_text('{"classes": ["crack"]}')
    with pytest.raises(UserError, match="expected classes, each with a title and a color"):
        open_dataset(root)
    (root / "obj_class_to_machine_color.json").write_text('{"a": [1, 2]}')
    (root / "meta.json").unlink()
    (root / "train" / "masks_machine").mkdir()
    with pytest.raises(UserError, match="expected a value or colour for each class"):
        open_dataset(root)
