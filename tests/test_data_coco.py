"""COCO: masks of instance annotations against hand-made ones, and a whole tree prepared, read and refused."""

import json
import sys

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from test_benchmark_files import cli

from degrid.data import check_data, open_dataset
from degrid.data.formats.benchmarks.voc import VOC
from degrid.data.prepare.coco import CocoImage, class_mask, prepare_coco, read_instances
from degrid.types import IGNORE_INDEX, UserError, voc_palette

# COCO's 80 categories, as in instances_val2017.json.
_NAMES = """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,,backpack,umbrella,,,handbag,tie,
suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,,
wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,
potted plant,bed,,dining table,,,toilet,,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"""
CATEGORIES = {raw: name for raw, name in enumerate(_NAMES.replace(",\n", ",").split(","), 1) if name}
PERSON, CAR, BANANA, TABLE = 1, 3, 52, 67
HEIGHT, WIDTH = 40, 50


def runs(region, crowd=False, packed=False, category=PERSON):
    """An annotation as a run-length code, in numbers as COCO's crowds have it, or packed."""
    flat = np.asarray(region, np.uint8).ravel(order="F")
    if packed:
        code = pycocotools.mask.encode(np.asfortranarray(region, np.uint8))
        code["counts"] = code["counts"].decode()
    else:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
        code = {"counts": np.diff([0, *edges, flat.size]).tolist(), "size": list(np.shape(region))}
    return {"id": 7, "category_id": category, "iscrowd": int(crowd), "segmentation": code, "area": 1.0}


def box(top, left, bottom, right, height=HEIGHT, width=WIDTH):
    region = np.zeros((height, width), bool)
    region[top:bottom, left:right] = True
    return region


def polygon(*corners, category=PERSON):
    numbers = [float(value) for corner in corners for value in corner]
    return {"id": 8, "category_id": category, "iscrowd": 0, "segmentation": [numbers], "area": 1.0}


def image(*annotations, height=HEIGHT, width=WIDTH):
    return CocoImage("a.jpg", height, width, list(annotations))


IDS = {PERSON: 15, CAR: 7, TABLE: 11}


# ---- masks --------------------------------------------------------------------------------------------------


def distances(corners, height, width):
    """Of every pixel's centre to the polygon: how far from its outline, and whether inside (even-odd rule)."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), bool)
    nearest = np.full((height, width), np.inf)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)))
    return nearest, inside


@pytest.mark.parametrize(
    "corners",
    [
        [(5, 5), (30, 5), (30, 25), (5, 25)],
        [(3.2, 35.7), (25, 2.1), (46.9, 33.3)],
        [(2, 2), (45, 4), (44, 36), (25, 12), (4, 37)],  # not convex
    ],
)
def test_polygons_are_filled(corners):
    mask = class_mask(image(polygon(*corners)), IDS)
    assert mask.dtype == np.uint8
    assert mask.shape == (HEIGHT, WIDTH)
    assert set(np.unique(mask)) == {0, 15}
    nearest, inside = distances(corners, HEIGHT, WIDTH)
    sure = nearest > 1  # how pixels upon the outline are rounded: see test_shapes.py
    assert np.array_equal((mask == 15)[sure], inside[sure])
    x, y = np.array(corners).T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    outline = np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()
    assert abs(np.count_nonzero(mask) - area) < outline


def test_the_parts_of_an_instance_are_one():
    parts = polygon((2, 2), (12, 2), (12, 12), (2, 12))
    parts["segmentation"] += polygon((8, 8), (20, 8), (20, 20), (8, 20))["segmentation"]
    mask = class_mask(image(parts), IDS)
    assert mask[10, 10] == mask[4, 4] == mask[16, 16] == 15  # where the parts overlap too
    assert mask[4, 16] == mask[16, 4] == 0


@pytest.mark.parametrize("packed", [False, True])
def test_run_lengths_are_exact(packed):
    region = np.random.default_rng(0).random((7, 5)) < 0.5
    for shape in (region, ~region):  # one of them begins with a pixel that is set
        mask = class_mask(image(runs(shape, packed=packed), height=7, width=5), IDS)
        assert np.array_equal(mask == 15, shape)


def test_the_smaller_of_two_is_seen():
    """Whatever the order: a person of 100 pixels at a table of 600, of which a car hides none of its own size."""
    table, person = runs(box(10, 10, 30, 40), category=TABLE), runs(box(5, 20, 15, 30))
    expected = np.where(box(5, 20, 15, 30), 15, np.where(box(10, 10, 30, 40), 11, 0))
    for order in ((table, person), (person, table)):
        assert class_mask(image(*order), IDS).tolist() == expected.tolist()
    # Of two of one size the later one.
    equals = runs(box(0, 0, 10, 10)), runs(box(0, 5, 10, 15), category=CAR)
    assert class_mask(image(*equals), IDS)[0, :16].tolist() == [15] * 5 + [7] * 10 + [0]
    assert class_mask(image(*equals[::-1]), IDS)[0, :16].tolist() == [15] * 10 + [7] * 5 + [0]


def test_crowds_are_void_below_everything():
    crowd, person = runs(box(0, 0, 2, 3), crowd=True), runs(box(0, 0, 20, 2))
    other = runs(box(0, 3, 2, 5), crowd=True, category=BANANA)
    mask = class_mask(image(person, crowd, other), IDS)
    # The crowd is the smaller one, and still below; a crowd of another class is background.
    assert mask[0, :6].tolist() == [15, 15, IGNORE_INDEX, 0, 0, 0]
    assert np.count_nonzero(mask == IGNORE_INDEX) == 2


def test_other_classes_and_lines_are_background():
    dots = [polygon((1, 1), (9, 9)), polygon((1, 1)), {**polygon(), "segmentation": []}]
    assert not class_mask(image(runs(box(0, 0, 9, 9), category=BANANA), *dots), IDS).any()
    assert not class_mask(image(), IDS).any()


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [3, 2, 1994], "size": [HEIGHT, WIDTH]},  # one pixel short: pycocotools would make up the rest
        {"counts": [3, 2, 1996], "size": [HEIGHT, WIDTH]},
        {"counts": [3, -2, 1999], "size": [HEIGHT, WIDTH]},
        {"counts": [3, 2, 1995], "size": [WIDTH, HEIGHT]},
        {"counts": ["a"], "size": [HEIGHT, WIDTH]},
        {"counts": "zzzz", "size": [HEIGHT, WIDTH]},
        {"counts": [2000]},
        [["a"] * 6],
        None,
        7,
    ],
)
def test_damaged_annotations(segmentation):
    bad = {"id": 31, "category_id": PERSON, "iscrowd": 0, "segmentation": segmentation}
    with pytest.raises(UserError, match=r"a\.jpg: annotation 31 is neither polygons nor a run-length code of 50x40"):
        class_mask(image(bad), IDS)


# ---- files --------------------------------------------------------------------------------------------------


def put(root, split, images):
    """An annotation file and its images: {name: annotations}. Names that begin with "lost" have no image."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True, exist_ok=True)
    rows, annotations = [], []
    for index, (name, found) in enumerate(images.items(), 100):
        rows.append({"id": index, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH, "license": 1})
        annotations += [{**row, "image_id": index, "bbox": [0, 0, 1, 1]} for row in found]
        if not name.startswith("lost"):
            pixels = np.random.default_rng(index + len(split)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.jpg")
    file = root / "annotations" / f"instances_{split}2017.json"
    file.parent.mkdir(exist_ok=True)
    categories = [{"id": raw, "name": name, "supercategory": "x"} for raw, name in CATEGORIES.items()]
    file.write_text(json.dumps({"images": rows, "annotations": annotations, "categories": categories}))
    return file


@pytest.fixture
def root(tmp_path):
    """In train: 1,001 and 1,000 pixels of classes; a crowd; a table that a banana hides in part of. In val: little."""
    just = box(0, 0, 20, WIDTH)
    more = just.copy()
    more[20, 0] = True
    put(
        tmp_path,
        "train",
        {
            "000000000002": [runs(more, category=CAR)],
            "000000000001": [runs(just), runs(box(30, 0, 40, 50), crowd=True)],
            "000000000003": [runs(box(0, 0, 40, 40), category=TABLE), runs(box(0, 0, 9, 9), category=BANANA)],
            "lost": [runs(more)],
            "000000000004": [],
        },
    )
    put(tmp_path, "val", {"000000000009": [runs(box(1, 1, 3, 3))], "000000000008": []})
    return tmp_path


def test_voc_classes_have_the_ids_that_torchvision_gives_them(root):
    instances = read_instances(root / "annotations" / "instances_val2017.json")
    assert len(instances.categories) == 80
    labels, ids = instances.classes("voc")
    assert labels == VOC
    # CAT_LIST in references/segmentation/coco_utils.py, in the order of VOC's classes from aeroplane on.
    expected = [5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]
    assert ids == {raw: train for train, raw in enumerate(expected, 1)}


def test_all_categories(root):
    labels, ids = read_instances(root / "annotations" / "instances_val2017.json").classes("all")
    assert labels.names == ("background", *CATEGORIES.values())
    assert labels.colors == voc_palette(81)
    assert (ids[1], ids[13], ids[90]) == (1, 12, 80)


def test_prepare_coco(root, monkeypatch):
    monkeypatch.setattr("degrid.data.prepare.coco._COUNTS", {"train": 118_287, "val": 2})
    steps = []
    report = prepare_coco(root, lambda p: steps.append((p.done, p.total)))
    assert steps == [*((k, 4) for k in range(1, 5)), (1, 2), (2, 2)]
    out, notes = root / "voc21", root / "annotations"
    assert report == [
        f"warning: {notes / 'instances_train2017.json'}: names 5 images, expected 118,287",
        f"warning: train: 1 of these are not in {root / 'train2017'}, lost.jpg among them",
        f"train: 2 masks made in {out / 'masks' / 'train2017'}, 0 already there",
        "train: 2 images have at most 1,000 pixels of the classes: left out",
        f"{out / 'train.txt'}: found 2 images",
        f"{notes / 'instances_val2017.json'}: names 2 images, expected 2",
        f"val: 2 masks made in {out / 'masks' / 'val2017'}, 0 already there",
        f"{out / 'val.txt'}: found 2 images",
        f"classes: {out / 'classes.csv'}",
        f"written to {out}: train.txt, val.txt, classes.csv; train on it: degrid train --data {out / 'train.txt'}",
    ]
    assert (out / "train.txt").read_text() == "".join(
        f"/train2017/{name}.jpg /voc21/masks/train2017/{name}.png\n" for name in ("000000000002", "000000000003")
    )
    for path in (root, out, out / "train.txt"):
        train, val = open_dataset(path), open_dataset(path, "val")
        assert train.labels == val.labels == VOC
        assert [len(train), len(val)] == [2, 2]
        assert np.bincount(train[0].label.numpy().ravel()).tolist() == [2000 - 1001, *[0] * 6, 1001]
        assert train[1].label.tolist() == np.where(box(0, 0, 40, 40), 11, 0).tolist()  # bananas are background
        assert val[0].label.tolist() == np.where(box(1, 1, 3, 3), 15, 0).tolist()
        assert not val[1].label.any()
    assert check_data(root).ok
    assert check_data(root).kind == "COCO"
    with Image.open(out / "masks" / "val2017" / "000000000009.png") as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[: 3 * 21] == [value for color in voc_palette(21) for value in color]


def test_what_is_there_stays_and_what_is_missing_is_made(root):
    prepare_coco(root)
    masks = root / "voc21" / "masks" / "train2017"
    kept = np.full((HEIGHT, WIDTH), 3, np.uint8)
    Image.fromarray(kept).save(masks / "000000000002.png")
    (masks / "000000000003.png").unlink()
    (root / "voc21" / "train.txt").unlink()
    report = prepare_coco(root)
    assert f"train: 1 mask made in {masks}, 1 already there" in report
    train = open_dataset(root)
    assert train[0].label.tolist() == kept.tolist()
    assert train[1].label.max() == 11


def test_a_stop_leaves_no_half_file_and_no_list(root):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_coco(root, stop)
    files = sorted(file.name for file in (root / "voc21").rglob("*") if file.is_file())
    assert files == ["000000000002.png"]
    assert any("1 mask made" in line and "1 already there" in line for line in prepare_coco(root))


def test_prepare_with_all_classes_by_the_command(root):
    assert cli("data", "prepare", "coco", root)[0] == 0
    code, output = cli("data", "prepare", "coco", root, "--classes", "all")
    assert code == 0, output
    assert f"degrid train --data {root / 'coco81' / 'train.txt'}" in output.splitlines()[-1]
    train = open_dataset(root / "coco81")
    assert (len(train.labels), train.labels.names[80]) == (81, "toothbrush")
    names = list(CATEGORIES.values())
    assert train[1].label[0, 0] == 1 + names.index("banana")
    assert train[1].label[20, 20] == 1 + names.index("dining table")
    with pytest.raises(UserError, match=f"give one of {root / 'voc21'} and {root / 'coco81'}"):
        open_dataset(root)


def test_images_may_lie_in_a_folder_images(root):
    (root / "images").mkdir()
    for name in ("train2017", "val2017"):
        (root / name).rename(root / "images" / name)
    prepare_coco(root)
    assert open_dataset(root)[0].name == "images/train2017/000000000002"


def test_one_split_alone(root):
    (root / "train2017").rename(root / "elsewhere")
    report = prepare_coco(root)
    assert report[0] == (f"warning: train.txt is not written: no folder {root / 'train2017'}; expected 118,287 images")
    assert report[-1].endswith("val.txt, classes.csv; not ready to train on: see the warnings")
    assert len(open_dataset(root, "val")) == 2
    with pytest.raises(UserError, match='has no split "train"; it has: val'):
        open_dataset(root)


# ---- mistakes -----------------------------------------------------------------------------------------------


def test_pycocotools_is_not_needed(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)  # as if it were not installed
    prepare_coco(root)
    assert open_dataset(root)[0].label.max() == 7


@pytest.mark.parametrize("command", ["check", "stats", "preview", "export"])
def test_annotations_alone_are_no_masks(root, command, tmp_path):
    words = ["-o", tmp_path / "x.tfrecord"] if command in ("preview", "export") else []
    code, output = cli("data", command, root, *words)
    assert code == 2
    assert output.endswith(f"training needs masks made from them: degrid data prepare coco {root}")


def test_own_categories_in_cocos_layout_are_drawn(tmp_path):
    """Which `degrid data prepare coco` refuses."""
    for split in ("train", "val"):
        place = tmp_path / f"{split}2017"
        place.mkdir()
        images = [{"id": k, "file_name": f"{split}{k}.png", "height": HEIGHT, "width": WIDTH} for k in range(3)]
        for k, row in enumerate(images):
            pixels = np.random.default_rng((k, len(split))).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(pixels).save(place / row["file_name"])
        marks = [dict(polygon((5, 5), (25, 5), (25, 25), (5, 25), category=4), id=k, image_id=k) for k in range(3)]
        content = {"images": images, "annotations": marks, "categories": [{"id": 4, "name": "crack"}]}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    assert check_data(tmp_path).problems == []
    for split in ("train", "val"):
        found = open_dataset(tmp_path, split)
        assert found.labels.names == ("background", "crack")
        assert found[0].label.tolist() == box(5, 5, 25, 25).astype(int).tolist()


def damage(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), r"holds no instance annotations of COCO .*KeyError\('annotations'\)"),
        (lambda c: c["annotations"][0].pop("image_id"), "holds no instance annotations of COCO"),
        (lambda c: c["annotations"][0].update(image_id=1), r"holds no instance annotations of COCO .*KeyError\(1\)"),
        (lambda c: c["images"][0].update(height="tall"), "is not valid JSON, or cut short|holds no instance"),
        (lambda c: c["annotations"][0].update(segmentation=[[None] * 6]), "holds no instance annotations of COCO"),
        (lambda c: c["annotations"][0].update(segmentation={"counts": [1], "size": [40, 50]}), "000000000002.jpg: ann"),
        (lambda c: c["categories"].pop(0), "has no category person; expected the 80 categories of COCO"),
    ],
)
def test_damaged_annotation_files(root, change, message):
    file = root / "annotations" / "instances_train2017.json"
    damage(file, change)
    with pytest.raises(UserError, match=f"instances_train2017.json.*({message})"):
        prepare_coco(root)
    assert not list(root.glob("voc21/*.txt"))


def test_a_file_cut_short_or_of_another_kind(root):
    file = root / "annotations" / "instances_val2017.json"
    text = file.read_text()
    for bad, message in ((text[:-9], "is not valid JSON, or cut short"), ("[1]", "holds no instance annotations")):
        file.write_text(bad)
        with pytest.raises(UserError, match=message):
            prepare_coco(root)
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file"):
        read_instances(root / "none.json")


def test_other_mistakes(root, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match=f"no COCO in {empty}; expected annotations/instances_train2017.json and"):
        prepare_coco(empty)
    with pytest.raises(UserError, match='unknown classes "stuff". Known: voc, all'):
        prepare_coco(root, classes="stuff")
    (root / "voc21").mkdir()
    (root / "voc21" / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"classes\.txt names classes other than those of the data"):
        prepare_coco(root)
    assert not (root / "voc21" / "masks").exists()
    damage(root / "annotations" / "instances_val2017.json", lambda c: c["categories"].pop())
    with pytest.raises(UserError, match=r"val2017\.json has other categories than instances_train2017\.json"):
        prepare_coco(root, classes="all")
