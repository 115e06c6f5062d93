"""Shapes in text files as datasets: COCO's JSON, YOLO, labelme, VIA, Supervisely and Label Studio."""

import json
import zlib

import numpy as np
import pytest
from PIL import Image
from test_benchmark_files import cli

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.dataset import open_layout
from degrid.types import IGNORE_INDEX, UserError

HEIGHT, WIDTH = 6, 8
# A car of 3 x 4 pixels, and a sign of 2 x 2 of which half hides the car.
TRUTH = np.zeros((HEIGHT, WIDTH), np.uint8)
TRUTH[1:4, 1:5] = 1
TRUTH[2:4, 4:6] = 2
CAR = [1, 1, 5, 1, 5, 4, 1, 4]
SIGN = [4, 2, 6, 2, 6, 4, 4, 4]
NAMES = ("background", "car", "sign")


def put_image(file, size=(WIDTH, HEIGHT)):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(file).encode())).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    Image.fromarray(pixels).save(file)


def put_json(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def put_text(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def check(path, split="train", truth=TRUTH, names=NAMES, kind=None):
    dataset = open_dataset(path, split)
    assert dataset.labels.names == names
    assert len(dataset)
    for sample in dataset:
        assert sample.label.tolist() == truth.tolist()
    if kind:
        assert open_layout(path).kind == kind
    return dataset


def prepared(path, out, split="train", truth=TRUTH, names=NAMES):
    """What `data prepare polygons` writes is what is drawn when read."""
    code, output = cli("data", "prepare", "polygons", path, "-o", out)
    assert code == 0, output
    assert f"degrid train --data {out / 'train.txt'}" in output.splitlines()[-1]
    check(out, split, truth, names)
    code, output = cli("data", "prepare", "polygons", path, "-o", out)
    assert ": 0 masks made in" in output


# ---- COCO's JSON --------------------------------------------------------------------------------------------


def coco(file, names, categories=((1, "car"), (2, "sign")), shapes=None, first=1, **changed):
    """An annotation file whose images have the two objects each. changed: of every annotation."""
    shapes = shapes if shapes is not None else ((1, [CAR]), (2, [SIGN]))
    images = [{"id": first + k, "file_name": name, "height": HEIGHT, "width": WIDTH} for k, name in enumerate(names)]
    rows = [
        {"id": 10 * image["id"] + k, "image_id": image["id"], "category_id": raw, "segmentation": shape, "iscrowd": 0}
        for image in images
        for k, (raw, shape) in enumerate(shapes)
    ]
    put_json(
        file,
        {
            "info": changed.pop("info", {}),
            "images": images,
            "annotations": [{**row, **changed} for row in rows],
            "categories": [{"id": raw, "name": name, "supercategory": "x"} for raw, name in categories],
        },
    )


def runs(region):
    flat = np.concatenate([[0], region.ravel(order="F").astype(int)])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    return {"size": list(region.shape), "counts": np.diff([0, *edges, region.size]).tolist()}


def test_one_json_is_divided(tmp_path):
    """CVAT: annotations/instances_default.json and images/default."""
    names = [f"{k}.png" for k in range(6)]
    coco(tmp_path / "annotations" / "instances_default.json", names)
    for name in names:
        put_image(tmp_path / "images" / "default" / name)
    train = check(tmp_path, kind="COCO polygons")
    assert len(train) + len(check(tmp_path, "val")) == 6
    assert 'the data have one list, "default"' in notes_of(train)[0]
    assert check_data(tmp_path).ok
    check(tmp_path / "annotations" / "instances_default.json")
    prepared(tmp_path, tmp_path / "drawn")
    check(tmp_path, kind="COCO polygons")  # the masks beside it change nothing


def test_a_json_per_split_folder(tmp_path):
    """Roboflow: category 0 is the project."""
    categories = ((0, "signs-and-cars"), (1, "car"), (2, "sign"))
    for split in ("train", "valid", "test"):
        names = [f"{split}_jpg.rf.{k}.png" for k in range(2)]
        file = tmp_path / split / "_annotations.coco.json"
        coco(file, names, categories, info={"description": "Exported from roboflow.com"})
        for name in names:
            put_image(tmp_path / split / name)
    for split in ("train", "val", "test"):
        dataset = check(tmp_path, split)
        assert len(dataset) == 2
    assert any('category 0, "signs-and-cars", is the name of the project' in note for note in notes_of(dataset))
    prepared(tmp_path, tmp_path / "elsewhere" / "masks", "val")


def test_a_category_0_of_other_tools_is_a_class(tmp_path):
    """Label Studio: ids from 0, and names of files as on its server."""
    shapes = ((0, [CAR]), (1, [SIGN]))
    coco(tmp_path / "result.json", [r"images\1\0a1b2c3d-a.png"], ((0, "car"), (1, "sign")), shapes, first=0)
    put_image(tmp_path / "images" / "1" / "0a1b2c3d-a.png")
    check(tmp_path)
    coco(tmp_path / "result.json", ["/data/upload/1/0a1b2c3d-a.png"], ((0, "car"), (1, "sign")), shapes, first=0)
    check(tmp_path)
    (tmp_path / "images" / "1" / "0a1b2c3d-a.png").rename(tmp_path / "a.png")  # as it was before the upload
    check(tmp_path)


def test_files_for_splits_and_classes_by_name(tmp_path):
    """The ids of one name may differ from file to file; images of one name in two folders keep apart."""
    coco(tmp_path / "train.json", ["train/a.png"])
    coco(tmp_path / "val.json", ["val/a.png"], ((7, "sign"), (9, "car")), ((9, [CAR]), (7, [SIGN])))
    put_image(tmp_path / "data" / "train" / "a.png")
    put_image(tmp_path / "data" / "val" / "a.png")
    assert check(tmp_path)[0].name == "data/train/a"
    assert check(tmp_path, "val")[0].name == "data/val/a"


def test_background_void_and_ones_own_table(tmp_path):
    categories = ((1, "_background_"), (2, "car"), (3, "Void"))
    coco(tmp_path / "a.json", ["a.png"], categories, ((2, [CAR]), (3, [SIGN])))
    put_image(tmp_path / "a.png")
    void = np.where(TRUTH == 2, IGNORE_INDEX, TRUTH)
    check(tmp_path, truth=void, names=("_background_", "car"))
    put_text(tmp_path / "classes.csv", "id,name,r,g,b\n0,car,9,9,9\n1,background,0,0,0\n")
    own = np.array([1, 0, IGNORE_INDEX], np.uint8)[TRUTH]
    check(tmp_path, truth=own, names=("car", "background"))
    put_text(tmp_path / "classes.csv", "id,name,r,g,b\n0,background,0,0,0\n")
    with pytest.raises(UserError, match=r'classes\.csv has no class "car", which a\.json has'):
        open_dataset(tmp_path)


def test_crowds(tmp_path):
    shapes = ((1, runs(TRUTH == 1)), (2, runs(TRUTH == 2)))
    coco(tmp_path / "instances_default.json", ["a.png", "b.png"], shapes=shapes, iscrowd=1)
    put_image(tmp_path / "a.png")
    put_image(tmp_path / "b.png")
    message = r"calls 4 of 4 annotations crowds \(iscrowd 1\), .*Write crowd: instance in .*dataset\.yaml if they are"
    for command in ("check", "stats"):
        code, output = cli("data", command, tmp_path)
        assert code == 2
        assert "Write crowd: instance in" in output
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)
    put_text(tmp_path / "dataset.yaml", "crowd: instance\n")
    check(tmp_path)
    put_text(tmp_path / "dataset.yaml", "crowd: void\n")
    assert open_dataset(tmp_path)[0].label.tolist() == np.where(TRUTH, IGNORE_INDEX, 0).tolist()
    put_text(tmp_path / "dataset.yaml", "crowd: maybe\n")
    with pytest.raises(UserError, match="expected instance or void, got maybe"):
        open_dataset(tmp_path)


def test_few_crowds_are_void(tmp_path):
    coco(tmp_path / "a.json", ["a.png", "b.png", "c.png"], shapes=((1, [CAR]), (2, [SIGN])))
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][1]["iscrowd"] = 1
    put_json(tmp_path / "a.json", content)
    for name in "abc":
        put_image(tmp_path / f"{name}.png")
    labels = {s.name: s.label for split in ("train", "val") for s in open_dataset(tmp_path, split)}
    assert labels["a"].tolist() == crowd_below().tolist()
    assert labels["b"].tolist() == TRUTH.tolist()


def crowd_below():
    """The sign as a crowd: void where the car is not."""
    label = np.where(TRUTH == 2, IGNORE_INDEX, TRUTH)
    label[1:4, 1:5] = 1
    return label


def test_what_is_not_drawn_is_noted(tmp_path):
    coco(tmp_path / "a.json", ["a.png", "b.png"])
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][1].update(segmentation=[], bbox=[4, 2, 2, 2])  # a box only
    content["annotations"][2:] = [{**content["annotations"][3], "image_id": 99}]
    put_json(tmp_path / "a.json", content)
    put_image(tmp_path / "a.png")
    put_image(tmp_path / "b.png")
    both = {s.name: s.label for split in ("train", "val") for s in open_dataset(tmp_path, split)}
    assert both["a"].tolist() == crowd_below().tolist()
    assert not both["b"].any()
    notes = notes_of(open_dataset(tmp_path))
    assert "1 images have no annotation: they are background all over" in notes
    assert "1 annotations have only a box: void, except where an object is drawn" in notes
    assert "1 annotations belong to no image of their file: left out" in notes


def test_boxes_are_no_segmentation(tmp_path):
    coco(tmp_path / "a.json", ["a.png"], shapes=((1, []),), bbox=[1, 1, 4, 3])
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.json holds 1 boxes and no polygon .*: boxes cannot train a segmentation"):
        open_dataset(tmp_path)


def test_damaged_coco_files(tmp_path):
    coco(tmp_path / "a.json", ["a.png"], ((1, "car"),))
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.json .*category_id 2, which is not among the categories"):
        open_dataset(tmp_path)
    coco(tmp_path / "a.json", ["a.png"], shapes=((1, [[1, 2, 3, 4, 5, "x"]]),))
    with pytest.raises(UserError, match=r"a\.json: the shapes of a cannot be drawn: .*annotation 10 is neither"):
        open_dataset(tmp_path)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"1 of 1 images in the split .* are not there"):
        open_dataset(tmp_path)
    assert not check_data(tmp_path).ok
    text = (tmp_path / "a.json").read_text()
    put_text(tmp_path / "a.json", text[:-3])
    with pytest.raises(UserError, match=r"a\.json is not valid JSON, cut short"):
        open_dataset(tmp_path)


def test_masks_beside_polygons_count(tmp_path):
    coco(tmp_path / "annotations.json", ["images/a.png"])
    put_image(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)).save(tmp_path / "masks" / "a.png")
    assert open_layout(tmp_path).kind == "folder"


def test_nothing_to_draw(tmp_path):
    put_image(tmp_path / "a.png")
    code, output = cli("data", "prepare", "polygons", tmp_path)
    assert code == 2
    assert f"no polygons found in {tmp_path}. Looked for:" in output
    code, output = cli("data", "prepare", "voc", tmp_path, "-o", tmp_path / "x")
    assert code == 2
    assert "only polygons can be written elsewhere" in output
