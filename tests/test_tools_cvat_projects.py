"""Exports of projects of CVAT, whose subsets are called Train, Validation and Test, and whose images lie in folders."""

import json

import numpy as np
from PIL import Image
from test_tools_layers import CAR_PIXELS, datumaro, labelme, thing
from test_tools_polygons import CAR, SIGN, check, coco, put_image, put_text, yolo

from degrid.data import check_data, open_dataset


def test_subsets_of_datumaros_json(tmp_path):
    root = datumaro(tmp_path, {"Train": ["a"], "Validation": ["b"], "Test": ["c"]})
    for split in ("train", "val", "test"):
        assert len(check(root, split)) == 1


def test_subsets_in_yolos_yaml(tmp_path):
    names = [f"images/{split}/sub dir/{split}.png" for split in ("Train", "Validation")]
    yolo(tmp_path, names)
    for name, split in zip(names, ("Train", "Validation"), strict=True):
        put_text(tmp_path / f"{split}.txt", f"data/{name}\n")
    put_text(
        tmp_path / "data.yaml", "Train: Train.txt\nValidation: Validation.txt\npath: .\nnames: {0: car, 1: sign}\n"
    )
    for name, split in zip(names, ("train", "val"), strict=True):
        assert [sample.name for sample in check(tmp_path, split)] == [name.removesuffix(".png")]


def test_a_tasks_list_for_yolo_begins_with_data(tmp_path):
    """Nothing is called data there, and the list is the only one."""
    yolo(tmp_path, ["images/train/a.png", "images/train/b.png"])
    put_text(tmp_path / "train.txt", "data/images/train/a.png\ndata/images/train/b.png\n")
    put_text(tmp_path / "data.yaml", "names: {0: car, 1: sign}\npath: .\ntrain: train.txt\n")
    assert len(check(tmp_path, kind="YOLO polygons")) + len(check(tmp_path, "val")) == 2


def test_masks_of_labelme_beside_the_folder_of_the_image(tmp_path):
    text = labelme(tmp_path / "made", "dir a", "ab", [thing("car", mask="dir a/a_mask_1.png"), thing("sign", SIGN)])
    for split, name in (("Train", "a"), ("Validation", "b")):
        folder = tmp_path / "set" / split
        put_image(folder / f"dir a/{name}.png")
        put_text(folder / f"dir a/{name}.xml", (text / f"Annotations/dir a/{name}.xml").read_text())
        (folder / "Masks/dir a").mkdir(parents=True)
        Image.fromarray(CAR_PIXELS.astype(np.uint8) * 255).save(folder / "Masks/dir a/a_mask_1.png")
    for split in ("train", "val"):
        assert len(check(tmp_path / "set", split, kind="LabelMe XML")) == 1


def test_a_class_that_only_crowds_show_is_asked_for(tmp_path):
    """CVAT's masks from a brush are crowds: few among many polygons, but all that there is of their class."""
    file = tmp_path / "a.json"
    coco(file, [f"{k}.png" for k in range(3)], shapes=(*[(1, [CAR])] * 9, (2, [SIGN])))
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        row["iscrowd"] = int(row["category_id"] == 2)
    file.write_text(json.dumps(content))
    for k in range(3):
        put_image(tmp_path / f"{k}.png")
    (problem,) = check_data(tmp_path).problems
    assert "calls 3 of 30 annotations crowds (iscrowd 1), which are void, all of sign among them" in problem
    put_text(tmp_path / "dataset.yaml", "crowd: instance\n")
    assert check_data(tmp_path).ok
    assert (open_dataset(tmp_path)[0].label == 2).sum() == 4
