"""Shapes in text files as datasets: COCO's JSON, YOLO, labelme, VIA, Supervisely and Label Studio."""

import base64
import io
import json
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image
from test_benchmark_files import cli

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.dataset import open_layout
from degrid.data.formats.shapes.polygon import is_upright_rectangle
from degrid.types import IGNORE_INDEX, UserError

HEIGHT, WIDTH = 6, 8
# A car of 3 x 4 pixels, and a sign of 2 x 2 of which half hides the car.
TRUTH = np.zeros((HEIGHT, WIDTH), np.uint8)
TRUTH[1:4, 1:5] = 1
TRUTH[2:4, 4:6] = 2
CAR = [1, 1, 5, 1, 5, 4, 1, 4]
SIGN = [4, 2, 6, 2, 6, 4, 4, 4]
NAMES = ("background", "car", "sign")
_OBJECT = ("background", "object")


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
    assert notes_of(train)[0].startswith("the data name no splits: 2 of 6 images, chosen by their names")
    assert check_data(tmp_path).ok
    check(tmp_path / "annotations" / "instances_default.json")
    prepared(tmp_path, tmp_path / "drawn")
    check(tmp_path, kind="COCO polygons")  # the masks beside it change nothing


@pytest.mark.parametrize("text", ["images", "categories", "annotations"])
def test_ids_that_are_texts_on_one_side(tmp_path, text):
    """Tables that went through pandas or JavaScript write 1 as "1"."""
    coco(tmp_path / "a.json", ["0.png", "1.png"], ((10, "car"), (2, "sign")), ((10, [CAR]), (2, [SIGN])))
    content = json.loads((tmp_path / "a.json").read_text())
    for row in content[text]:
        row.update({key: str(row[key]) for key in ("id", "image_id", "category_id") if key in row})
    put_json(tmp_path / "a.json", content)
    for name in ("0.png", "1.png"):
        put_image(tmp_path / name)
    swapped = np.array([0, 2, 1], np.uint8)[TRUTH]  # in the order of the numbers, 2 before 10
    check(tmp_path, truth=swapped, names=("background", "sign", "car"))


def test_val_without_labels_is_not_replaced_by_a_part_of_train(tmp_path):
    names = [f"{k}.png" for k in range(5)]
    coco(tmp_path / "train" / "a.json", names)
    for name in names:
        put_image(tmp_path / "train" / name)
    assert check_data(tmp_path).ok
    put_image(tmp_path / "val" / "7.png")
    with pytest.raises(UserError, match=r"val holds 1 image that no label belongs to, such as 7.png"):
        open_dataset(tmp_path)
    put_image(tmp_path / "val" / "8.png")
    coco(tmp_path / "val" / "a.json", ["7.png", "8.png"], shapes=())  # which lists them without an annotation
    assert 'all of val is "background" and no other class' in check_data(tmp_path).problems[0]
    with pytest.raises(UserError, match=r"\[one-class\]"):
        open_dataset(tmp_path, accept=())
    assert check_data(tmp_path, accept=["one-class"]).ok


def test_yolos_val_without_a_text(tmp_path):
    for split in ("train", "val"):
        yolo(tmp_path, [f"images/{split}/{k}.png" for k in range(3)])
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [car, sign]\n")
    assert check_data(tmp_path).ok
    shutil.rmtree(tmp_path / "labels" / "val")
    with pytest.raises(UserError, match="none of 3 images of val has a text file in labels or beside it"):
        open_dataset(tmp_path)


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


def test_a_category_0_without_objects_in_a_file_of_other_languages(tmp_path):
    """The beginning, in which Roboflow would name itself, ends within a letter of three bytes."""
    for shift in range(3):
        file = tmp_path / "a.json"
        categories = ((0, "thing"), (1, "car"), (2, "sign"))
        coco(file, ["0.png"], categories, info={"description": "x" * shift + "路" * 2000})
        file.write_bytes(json.dumps(json.loads(file.read_text()), ensure_ascii=False).encode())
        put_image(tmp_path / "0.png")
        assert open_dataset(tmp_path).labels.names == ("background", "thing", "car", "sign")


def test_polygons_of_segments_ai(tmp_path):
    """Its export of vector labels to COCO's form writes pairs under points, and no segmentation."""
    put_image(tmp_path / "0.png")
    coco(tmp_path / "a.json", ["0.png"])
    content = json.loads((tmp_path / "a.json").read_text())
    for row in content["annotations"]:
        (flat,) = row.pop("segmentation")
        row["points"] = [flat[place : place + 2] for place in range(0, len(flat), 2)]
    put_json(tmp_path / "a.json", content)
    check(tmp_path, kind="COCO polygons")
    for around in (lambda pairs: pairs, lambda pairs: [pairs]):  # under COCO's own word
        for row in content["annotations"]:
            row["segmentation"] = around(row["points"])
        put_json(tmp_path / "a.json", content)
        check(tmp_path)
    release = {"name": "v1", "dataset": {"task_type": "vector", "labelsets": [], "samples": []}}
    put_json(tmp_path / "a.json", release)
    with pytest.raises(UserError, match=r"a.json is a release of Segments.ai .*export_format='coco-instance'"):
        open_dataset(tmp_path)


def test_an_image_that_is_listed_twice_is_told(tmp_path):
    """label-studio-sdk's BRUSH_TO_COCO lists an image for each of its annotations."""
    coco(tmp_path / "a.json", ["a.png", "b.png", "a.png"])
    for name in "ab":
        put_image(tmp_path / f"{name}.png")
    with pytest.raises(
        UserError, match=r"a\.json lists 1 image under several ids, a\.png under 2, as if several people"
    ):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="under several ids"):
        check_data(tmp_path)


def test_categories_of_one_name_are_one_class_and_it_is_said(tmp_path):
    put_image(tmp_path / "0.png")
    coco(tmp_path / "a.json", ["0.png"], ((1, "car"), (2, "sign"), (7, "car")), [(1, [CAR]), (2, [SIGN]), (7, [CAR])])
    said = 'a.json calls several categories "car" (ids 1, 7): they are one class; if they are not, give each a name of '
    assert any(note.startswith(said) for note in notes_of(check(tmp_path)))


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


def test_roboflows_category_0_where_only_the_name_of_the_file_says_so(tmp_path):
    for split in ("train", "valid"):
        categories = ((0, "parts-x7"), (1, "car"), (2, "sign"))
        coco(tmp_path / split / "_annotations.coco.json", ["a.png"], categories)
        put_image(tmp_path / split / "a.png")
    check(tmp_path, "val")


def test_images_that_lvis_names_by_their_addresses(tmp_path):
    coco(tmp_path / "lvis_v1_train.json", ["a.png"])
    content = json.loads((tmp_path / "lvis_v1_train.json").read_text())
    for row in content["images"]:
        row["coco_url"] = f"http://images.cocodataset.org/train2017/{row.pop('file_name')}"
    put_json(tmp_path / "lvis_v1_train.json", content)
    put_image(tmp_path / "train2017" / "a.png")
    put_image(tmp_path / "others" / "a.png")
    assert check(tmp_path).sources[0].image == tmp_path / "train2017" / "a.png"


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
    message = r'calls 4 of 4 annotations crowds \(iscrowd 1\), .*write "crowd: instance" in .*dataset\.yaml if they are'
    for words in (("check", tmp_path), ("prepare", "polygons", tmp_path)):
        code, output = cli("data", *words)
        assert code == 2
        assert 'write "crowd: instance" in' in output
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path, accept=())
    void = np.where(TRUTH, IGNORE_INDEX, 0)
    check(tmp_path, truth=void)
    open_dataset(tmp_path, accept=["many-crowds", "one-class"])
    put_text(tmp_path / "dataset.yaml", "crowd: instance\n")
    check(tmp_path)
    put_text(tmp_path / "dataset.yaml", "crowd: void\n")
    check(tmp_path, truth=void)
    prepared(tmp_path, tmp_path / "drawn", truth=void)
    put_text(tmp_path / "dataset.yaml", "crowd: maybe\n")
    with pytest.raises(UserError, match="expected instance or void, got 'maybe'"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").unlink()
    elsewhere = tmp_path.parent / f"{tmp_path.name}.yaml"
    put_text(elsewhere, f"path: {tmp_path.name}\ncrowd: instance\n")
    check(elsewhere)


def test_crowds_are_of_cocos_annotations_only(tmp_path):
    put_image(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(TRUTH).save(tmp_path / "masks" / "a.png")
    put_text(tmp_path / "dataset.yaml", "crowd: void\n")
    with pytest.raises(UserError, match=r"was read as folder, which has none: leave out crowd"):
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
    assert "1 image has no annotation: background all over" in notes
    assert "1 annotation has only a box: void, except where an object is drawn" in notes
    assert "1 annotation belongs to no image of their file: left out" in notes


def test_boxes_are_no_segmentation(tmp_path):
    coco(tmp_path / "a.json", ["a.png"], shapes=((1, []),), bbox=[1, 1, 4, 3])
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.json holds 1 boxes and no polygon .*: boxes cannot train a segmentation"):
        open_dataset(tmp_path)


def test_damaged_coco_files(tmp_path):
    coco(tmp_path / "a.json", ["a.png"], ((1, "car"),))
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.json has 1 annotation with category_id 2, which its categories do not"):
        open_dataset(tmp_path)
    coco(tmp_path / "a.json", ["a.png"], ((1, "car"),), category_id=None)
    with pytest.raises(UserError, match=r"a\.json has 2 annotations with category_id None, which its categories"):
        open_dataset(tmp_path)
    coco(tmp_path / "a.json", ["a.png"], shapes=((1, [[1, 2, 3, 4, 5, "x"]]),))
    with pytest.raises(UserError, match=r"a\.json: the shapes of a cannot be drawn: .*annotation 10 is neither"):
        open_dataset(tmp_path)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"1 of 1 images in the split .* are missing"):
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


# ---- YOLO ---------------------------------------------------------------------------------------------------


def fractions(polygon):
    return " ".join(str(value / (HEIGHT if odd % 2 else WIDTH)) for odd, value in enumerate(polygon))


YOLO_TEXT = f"1 {fractions(SIGN)}\n0 {fractions(CAR)}\n"


def yolo(root, images, text=YOLO_TEXT):
    for name in images:
        put_image(root / name)
        put_text((root / name.replace("images", "labels")).with_suffix(".txt"), text)


def test_roboflows_yaml(tmp_path):
    """Its paths begin with "../", although the folders are beside the file; and it has a key of its own."""
    yolo(tmp_path, ["train/images/a.png", "train/images/b.png", "valid/images/c.png"])
    put_text(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['car', 'sign']\n"
        "roboflow:\n  workspace: me\n",
    )
    check(tmp_path, kind="YOLO polygons")
    check(tmp_path / "data.yaml", "val")
    prepared(tmp_path, tmp_path / "drawn")
    assert check_data(tmp_path).ok


def test_yolo_with_lists_and_a_path_of_another_machine(tmp_path):
    """CVAT: path ./ and lists of images; Kaggle: an absolute path that is not here. An image without text is empty."""
    yolo(tmp_path, ["images/train/a.png", "images/train/c.png", "images/val/b.png"])
    put_text(tmp_path / "train.txt", "images/train/a.png\n./images/train/c.png\n")
    put_text(
        tmp_path / "data.yaml",
        "path: ./\ntrain: train.txt\nval: /kaggle/input/signs/images/val\nnames:\n  0: car\n  1: sign\n",
    )
    assert [sample.name for sample in check(tmp_path)] == ["images/train/a", "images/train/c"]
    check(tmp_path, "val")
    (tmp_path / "labels" / "train" / "c.txt").unlink()
    put_text(tmp_path / "labels" / "train" / "a.txt", "")
    train = open_dataset(tmp_path)
    assert not train[0].label.any()
    assert not train[1].label.any()
    assert "1 image has no text file: background all over" in notes_of(train)


def test_yolo_with_commas(tmp_path):
    yolo(tmp_path, ["images/a.png", "images/b.png"], YOLO_TEXT.replace(" ", ", "))
    check(tmp_path, names=("background", "class 0", "class 1"), kind="YOLO polygons")


@pytest.mark.parametrize("folder", ["images/", ""])
def test_yolo_beside_the_images(tmp_path, folder):
    """Darwin's lie beside images/, with the names of the classes once for each split; others beside each image."""
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        put_image(tmp_path / split / f"{folder}{name}.png")
        put_text(tmp_path / split / f"{name}.txt", YOLO_TEXT)
        put_text(tmp_path / split / "darknet.labels", "car\nsign\n")
    assert len(check(tmp_path, kind="YOLO polygons")) == 2
    check(tmp_path, "val")
    assert check_data(tmp_path).ok
    put_text(tmp_path / "val" / "darknet.labels", "sign\ncar\n")
    with pytest.raises(
        UserError, match=r"train/darknet.labels and .*val/darknet.labels number their classes differently \(car, sign; "
    ):
        open_dataset(tmp_path)
    put_text(tmp_path / "classes.txt", "car\nsign\n")
    check(tmp_path)


def test_texts_beside_images_that_are_no_yolo(tmp_path):
    for name in ("a", "b"):
        put_image(tmp_path / f"{name}.png")
        put_text(tmp_path / f"{name}.txt", "a photograph of a road\n")
    with pytest.raises(UserError, match="no images with masks found"):
        open_dataset(tmp_path)
    for name in ("a", "b"):
        put_text(tmp_path / f"{name}.txt", YOLO_TEXT)
        Image.fromarray(TRUTH).save(tmp_path / f"{name}_mask.png")
    assert open_layout(tmp_path).kind == "side by side"  # masks win


def test_yolo_without_a_yaml(tmp_path):
    yolo(tmp_path, ["images/a.png", "images/b.png"])
    check(tmp_path, names=("background", "class 0", "class 1"))
    put_text(tmp_path / "data.yaml", "names: [car, sign]\nnc: 2\n")  # supervision: no splits
    check(tmp_path)
    (tmp_path / "data.yaml").unlink()
    put_text(tmp_path / "darknet.labels", "car\nsign\n")  # Darwin; it has no background
    check(tmp_path)
    (tmp_path / "darknet.labels").rename(tmp_path / "classes.txt")  # Label Studio
    check(tmp_path)
    put_text(tmp_path / "classes.csv", "id,name,r,g,b\n0,sign,0,0,0\n1,car,9,9,9\n")  # one's own, without background
    check(tmp_path, truth=np.array([IGNORE_INDEX, 1, 0], np.uint8)[TRUTH], names=("sign", "car"))


def test_coordinates_in_another_unit_are_refused(tmp_path):
    """COCO's in fractions would all be in the first pixel, YOLO's in pixels far beyond the image."""
    put_image(tmp_path / "coco" / "a.png")
    fractions = [[value / (HEIGHT if index % 2 else WIDTH) for index, value in enumerate(CAR)]]
    coco(tmp_path / "coco" / "x.json", ["a.png"], shapes=((1, fractions),))
    with pytest.raises(UserError, match=r"corners of its polygons lie between 0 and 1, .* COCO counts pixels"):
        open_dataset(tmp_path / "coco")
    coco(tmp_path / "coco" / "x.json", ["a.png"], shapes=((1, fractions), (1, [CAR]), (2, [SIGN])))
    truth = TRUTH.copy()
    truth[0, 0] = 1
    check(tmp_path / "coco", truth=truth)
    root = tmp_path / "yolo"
    yolo(root, ["images/a.png", "images/b.png"])
    put_text(root / "labels" / "b.txt", "0 " + " ".join(map(str, CAR)) + "\n")
    (problem,) = check_data(root).problems
    assert "b.txt, line 1: a coordinate of 5; YOLO counts in fractions" in problem


@pytest.mark.parametrize(
    ("beside", "nc", "message"),
    [
        ("sign\ncar\n", 2, 'data.yaml calls class 0 "car", and classes.txt beside it "sign"; keep the one'),
        ("car\nsign\n", 3, "nc says 3 classes, but 2 are named"),
    ],
)
def test_yolo_that_contradicts_itself(tmp_path, beside, nc, message):
    put_image(tmp_path / "images" / "train" / "a.png")
    put_text(tmp_path / "labels" / "train" / "a.txt", "0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    put_text(tmp_path / "classes.txt", beside)
    for splits in ("train: images/train\n", ""):
        put_text(tmp_path / "data.yaml", f"{splits}names: [car, sign]\nnc: {nc}\n")
        with pytest.raises(UserError, match=message):
            open_dataset(tmp_path)


def test_class_numbers_that_numpy_wrote(tmp_path):
    text = f"1.0 {fractions(SIGN)}\n0.000e+00 {fractions(CAR)}\n"
    yolo(tmp_path, [f"images/train/{name}.png" for name in "ab"], text)
    yolo(tmp_path, ["images/val/c.png"], text)
    put_text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [car, sign]\n")
    check(tmp_path, kind="YOLO polygons")


def test_yolos_texts_that_are_all_empty_are_told(tmp_path):
    yolo(tmp_path, ["images/train/a.png", "images/val/b.png"], "\n")
    put_text(tmp_path / "data.yaml", "train: images/train\nval: images/val\nnames: [car, sign]\n")
    with pytest.raises(UserError, match=r"2 text files of YOLO, a\.txt and others, and all of them are empty"):
        open_dataset(tmp_path)


def test_yolo_boxes(tmp_path):
    box = f"1 {5 / WIDTH} {3 / HEIGHT} {2 / WIDTH} {2 / HEIGHT}\n"  # middle and size
    yolo(tmp_path, ["images/a.png"], box)
    with pytest.raises(UserError, match="holds YOLO labels with boxes only .*: boxes cannot train a segmentation"):
        open_dataset(tmp_path)
    put_text(tmp_path / "labels" / "a.txt", f"0 {fractions(CAR)}\n{box}")
    put_text(tmp_path / "obj.names", "car\nsign\n")
    dataset = open_dataset(tmp_path)
    assert dataset[0].label.tolist() == crowd_below().tolist()
    assert any("some lines are boxes" in note for note in notes_of(dataset))
    put_text(tmp_path / "labels" / "a.txt", f"7 {fractions(CAR)}\n")
    with pytest.raises(UserError, match=r"a\.txt, line 1: class 7 is not among the 2 classes"):
        open_dataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("numbers", "is_box"),
    [
        (CAR, True),
        ([*CAR, 1, 1], True),  # closed
        (CAR[2:] + CAR[:2], True),
        (CAR[::-1], True),  # the other way round, and x and y exchanged
        ([1, 1, 5, 4, 5, 1, 1, 4], False),  # crosses itself
        ([1, 1, 5, 1, 5, 4, 1.5, 4], False),
        ([1, 1, 3, 1, 5, 1, 5, 4, 1, 4], False),
        ([1, 1, 5, 1, 1, 1, 5, 1], False),
        ([1, 1, 5, 1, 5, 4], False),
        ([], False),
    ],
)
def test_upright_rectangles(numbers, is_box):
    assert is_upright_rectangle(numbers) == is_box


@pytest.mark.parametrize(("boxes", "others", "said"), [(10, 9, True), (10, 10, False), (9, 0, False), (10, 0, True)])
def test_outlines_that_are_boxes_are_said(tmp_path, boxes, others, said):
    """Some programs write four corners where they have only a box."""
    shapes = [CAR] * boxes + [[0, 0, 3, 0, 3, 3]] * others
    put_image(tmp_path / "coco" / "a.png")
    coco(tmp_path / "coco" / "train.json", ["a.png"], shapes=[(1, [shape]) for shape in shapes])
    yolo(tmp_path / "yolo", ["images/a.png"], "".join(f"0 {fractions(shape)}\n" for shape in shapes))
    for kind in ("coco", "yolo"):
        found = [note for note in open_layout(tmp_path / kind).notes if "upright rectangles" in note]
        assert [note.split(" are ")[0] for note in found] == [f"{boxes} of {boxes + others} outlines"] * said


# ---- labelme ------------------------------------------------------------------------------------------------


def pairs_of(polygon):
    return [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]


def labelme(file, shapes, **changed):
    rows = [
        {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}
        for name, points, kind, more in shapes
    ]
    put_json(
        file,
        {
            "version": "6.3.1",
            "flags": {},
            "shapes": rows,
            "imagePath": f"{file.stem}.png",
            "imageData": None,
            "imageHeight": HEIGHT,
            "imageWidth": WIDTH,
            **changed,
        },
    )


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_labelme(tmp_path):
    """A polygon and a mask; a rectangle; two parts of one group; and points, which have no area."""
    for name in "abc":
        put_image(tmp_path / f"{name}.png")
    sign = [[4, 2], [5, 3]]  # of masks, both corners belong
    mask = ("sign", sign, "mask", {"mask": png(np.full((2, 2), 255, np.uint8))})
    labelme(tmp_path / "a.json", [("car", pairs_of(CAR), "polygon", {}), mask])
    labelme(tmp_path / "b.json", [("car", [[5, 4], [1, 1]], "rectangle", {}), mask], imagePath="..\\old\\b.png")
    parts = [
        ("car", [[1, 1], [3, 4]], "rectangle", {"group_id": 1}),
        ("car", [[3, 1], [5, 4]], "rectangle", {"group_id": 1}),
    ]
    labelme(tmp_path / "c.json", [*parts, mask, ("car", [[0, 0]], "point", {})], imageHeight=None, imageWidth=None)
    put_image(tmp_path / "nobody_looked.png")
    train = check(tmp_path, kind="labelme")
    check(tmp_path, "val")
    assert "shapes without an area are left out: 1 of the kind point" in notes_of(train)
    prepared(tmp_path, tmp_path / "drawn")
    left_out = "1 image has no JSON file: left out, since nobody annotated them"
    assert left_out in notes_of(train)
    assert left_out in notes_of(open_dataset(tmp_path))


@pytest.mark.parametrize("size", [[40], {"x": 1}, "wide", float("inf")], ids=str)
def test_labelme_with_a_size_that_is_none(tmp_path, size):
    put_image(tmp_path / "a.png")
    labelme(tmp_path / "a.json", [("car", pairs_of(CAR), "polygon", {})], imageHeight=size)
    with pytest.raises(UserError, match=r"a\.json: expected labelme's shapes, .* and the image's path and size"):
        open_dataset(tmp_path)


def test_labelme_draws_later_shapes_over_earlier_ones(tmp_path):
    """Whatever their size and group: so does labelme 6.3.1's shapes_to_label."""
    put_image(tmp_path / "a.png")
    shapes = [
        ("car", [[0, 0], [3, 1]], "rectangle", {"group_id": 1}),
        ("sign", [[1, 0], [7, 0], [7, 1], [1, 1]], "polygon", {}),
        ("car", [[5, 0], [6, 1]], "rectangle", {"group_id": 1}),
    ]
    labelme(tmp_path / "a.json", shapes)
    assert open_dataset(tmp_path)[0].label[0].tolist() == [1, 2, 2, 2, 2, 1, 2, 0]
    labelme(tmp_path / "a.json", shapes[::-1])
    assert open_dataset(tmp_path)[0].label[0].tolist() == [1, 1, 1, 2, 2, 2, 2, 0]


def test_labelme_circles_and_splits(tmp_path):
    for split in ("train", "val"):
        put_image(tmp_path / split / "a.png")
        labelme(tmp_path / split / "a.json", [("car", [[3, 3], [3, 5.1]], "circle", {})])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    circle = ((x - 3) ** 2 + (y - 3) ** 2 <= 2.1**2).astype(np.uint8)
    check(tmp_path, "val", circle, ("background", "car"))


def test_labelme_whose_image_is_another_one_beside(tmp_path):
    """Files were renamed: which of the two images was annotated?"""
    for name in ("a.png", "b.png", "old/c.png"):
        put_image(tmp_path / name)
    labelme(tmp_path / "a.json", [("car", pairs_of(CAR), "polygon", {})], imagePath="b.png")
    with pytest.raises(
        UserError, match=r"a\.json says that its image is b\.png, but a\.png beside it has its own name"
    ):
        open_dataset(tmp_path)
    labelme(tmp_path / "a.json", [("car", pairs_of(CAR), "polygon", {})], imagePath="gone.png")
    assert open_dataset(tmp_path).sources[0].image == tmp_path / "a.png"
    (tmp_path / "a.json").rename(tmp_path / "x.json")
    labelme(tmp_path / "x.json", [("car", pairs_of(CAR), "polygon", {})], imagePath="old/c.png")
    assert open_dataset(tmp_path).sources[0].image == tmp_path / "old" / "c.png"


def test_rotated_rectangles_of_x_anylabeling(tmp_path):
    put_image(tmp_path / "a.png")
    shapes = [("car", pairs_of(CAR), "rotation", {"direction": 0.5}), ("sign", pairs_of(SIGN), "polygon", {})]
    labelme(tmp_path / "a.json", shapes)
    check(tmp_path)


def test_labelme_names_in_labels_txt(tmp_path):
    put_image(tmp_path / "a.png")
    labelme(tmp_path / "a.json", [("car", pairs_of(CAR), "polygon", {}), ("sign", pairs_of(SIGN), "polygon", {})])
    put_text(tmp_path / "labels.txt", "__ignore__\n_background_\nsign\ncar\n")
    check(tmp_path, truth=np.array([0, 2, 1], np.uint8)[TRUTH], names=("_background_", "sign", "car"))
    put_text(tmp_path / "labels.txt", "sign\n")
    check(tmp_path, truth=np.array([0, 2, 1], np.uint8)[TRUTH], names=("background", "sign", "car"))


def test_labelme_rectangles_only(tmp_path):
    put_image(tmp_path / "a.png")
    labelme(tmp_path / "a.json", [("car", [[1, 1], [3, 4]], "rectangle", {})])
    with pytest.raises(
        UserError, match="the shapes are 1 of the kind rectangle, and no outlines: boxes, points and lines cannot train"
    ):
        open_dataset(tmp_path)
    labelme(tmp_path / "a.json", [("car", [[1, 1], [3, 4]], "mask", {"mask": "AAAA"})])
    with pytest.raises(UserError, match=r"a\.json: the shapes of a cannot be drawn: .*a mask that is no PNG"):
        open_dataset(tmp_path)[0]


# ---- VIA ----------------------------------------------------------------------------------------------------


def via_region(polygon, **attributes):
    points = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
    return {"shape_attributes": points, "region_attributes": attributes}


def via(images):
    return {
        f"{name}123": {"filename": name, "size": 123, "regions": regions, "file_attributes": {}}
        for name, regions in images.items()
    }


def test_via(tmp_path):
    """Version 2, with a list of regions, in a project; version 1, with a table of them."""
    regions = [via_region(CAR, type="car", colour="red"), via_region(SIGN, type="sign")]
    put_json(
        tmp_path / "train" / "via_project.json", {"_via_settings": {}, "_via_img_metadata": via({"a.png": regions})}
    )
    put_json(tmp_path / "val" / "via_region_data.json", via({"b.png": dict(enumerate(regions)), "c.png": {}}))
    put_image(tmp_path / "train" / "a.png")
    for name in "bc":
        put_image(tmp_path / "val" / f"{name}.png")
    check(tmp_path, kind="VIA")
    val = open_dataset(tmp_path, "val")
    assert val[0].label.tolist() == TRUTH.tolist()
    assert not val[1].label.any()
    assert "1 image has no region: background all over" in notes_of(val)
    prepared(tmp_path, tmp_path / "drawn")


def test_via_attributes(tmp_path):
    """None: one class. Check boxes: the ticked one. A region without a class is void. Of several, it must be said."""
    put_image(tmp_path / "a.png")
    file = tmp_path / "via.json"
    put_json(file, via({"a.png": [via_region(CAR), via_region(SIGN)]}))
    check(tmp_path, truth=(TRUTH > 0).astype(np.uint8), names=("background", "object"))
    put_json(file, via({"a.png": [via_region(CAR, kind={"car": True}), via_region(SIGN)]}))
    check(tmp_path, truth=np.where(TRUTH == 2, IGNORE_INDEX, TRUTH), names=("background", "car"))
    put_json(file, via({"a.png": [via_region(CAR, kind="car", age="new"), via_region(SIGN, kind="sign")]}))
    with pytest.raises(UserError, match="the regions have the attributes kind, age; call the one"):
        open_dataset(tmp_path)


def test_via_shapes(tmp_path):
    put_image(tmp_path / "a.png")
    ellipse = {"name": "ellipse", "cx": 3, "cy": 3, "rx": 2.6, "ry": 1.1, "theta": np.pi / 2}  # upright
    shapes = [ellipse, {"name": "rect", "x": 6, "y": 0, "width": 2, "height": 1}, {"name": "point", "cx": 1, "cy": 1}]
    put_json(tmp_path / "via.json", via({"a.png": [{"shape_attributes": s, "region_attributes": {}} for s in shapes]}))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    drawn = (((y - 3) / 2.6) ** 2 + ((x - 3) / 1.1) ** 2 <= 1).astype(np.uint8)
    drawn[0, 6:] = 1
    dataset = check(tmp_path, truth=drawn, names=("background", "object"))
    assert "shapes without an area are left out: 1 of the kind point" in notes_of(dataset)
    put_json(tmp_path / "via.json", via({"a.png": [{"shape_attributes": shapes[1], "region_attributes": {}}]}))
    with pytest.raises(
        UserError, match="the shapes are 1 of the kind rect, and no outlines: boxes, points and lines cannot train"
    ):
        open_dataset(tmp_path)


def test_via_lines_are_areas_where_they_end_at_their_beginning(tmp_path):
    put_image(tmp_path / "a.png")
    closed, opened = (via_region(shape) for shape in ([*CAR, *CAR[:2]], SIGN))
    for region in (closed, opened):
        region["shape_attributes"]["name"] = "polyline"
    put_json(tmp_path / "via.json", via({"a.png": [closed, opened]}))
    dataset = check(tmp_path, truth=np.where(np.isin(TRUTH, (1, 2)), 1, 0) * (np.arange(WIDTH) < 5), names=_OBJECT)
    assert "shapes without an area are left out: 1 of the kind open polyline" in notes_of(dataset)
    put_json(tmp_path / "via.json", via({"a.png": [opened]}))
    with pytest.raises(UserError, match="the shapes are 1 of the kind open polyline, and no outlines"):
        open_dataset(tmp_path)


# ---- Supervisely --------------------------------------------------------------------------------------------


def test_supervisely_polygons_with_holes(tmp_path):
    put_json(
        tmp_path / "meta.json",
        {"classes": [{"title": "car", "color": "#FF0000"}, {"title": "sign", "color": "#00FF00"}]},
    )
    outer, hole = pairs_of([1, 1, 7, 1, 7, 5, 1, 5]), pairs_of([2, 2, 4, 2, 4, 4, 2, 4])
    objects = [
        {"classTitle": "car", "geometryType": "polygon", "points": {"exterior": outer, "interior": [hole]}},
        {"classTitle": "sign", "geometryType": "rectangle", "points": {"exterior": [[6, 4], [7, 5]], "interior": []}},
        {"classTitle": "sign", "geometryType": "line", "points": {"exterior": [[0, 0], [8, 6]], "interior": []}},
    ]
    for split in ("train", "val"):
        put_image(tmp_path / split / "img" / "a.png")
        size = {"height": HEIGHT, "width": WIDTH}
        put_json(tmp_path / split / "ann" / "a.png.json", {"size": size, "objects": objects})
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    drawn[1:5, 1:7] = 1
    drawn[2:4, 2:4] = 0
    drawn[4:6, 6:8] = 2
    check(tmp_path, truth=drawn, kind="Supervisely")
    prepared(tmp_path, tmp_path / "drawn", truth=drawn)


# ---- Label Studio -------------------------------------------------------------------------------------------


def brush(mask):
    """The code of an RGBA image whose alpha is the mask: words of 8 bits, lengths of 3, 4, 8 and 16."""
    values = np.repeat(np.where(mask, 255, 0).ravel(), 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    done = 0
    while done < len(values):
        count = next((k for k in range(done, len(values)) if values[k] != values[done]), len(values)) - done
        if done == 0 and count > 4:  # some one by one, as the encoder does where values change
            bits += "0" + "00" + f"{3:03b}" + "".join(f"{value:08b}" for value in values[:4])
            count = 4
        else:
            bits += "1" + "11" + f"{count - 1:016b}" + f"{values[done]:08b}"
        done += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[k : k + 8], 2) for k in range(0, len(bits), 8)]


def percent(polygon):
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in pairs_of(polygon)]


def result(kind, value, name):
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    return {"type": f"{kind}labels", **size, "value": {**value, f"{kind}labels": [name]}}


def test_label_studio(tmp_path):
    """Polygons and a brush; the last annotation counts; images that nobody looked at are left out."""
    polygon = result("polygon", {"points": percent(CAR), "closed": True}, "car")
    strokes = result("brush", {"format": "rle", "rle": brush(TRUTH == 2)}, "sign")
    box = {"x": 100 * 4 / WIDTH, "y": 100 * 2 / HEIGHT, "width": 100 * 2 / WIDTH, "height": 100 * 2 / HEIGHT}
    turned = {**box, "x": 100 * 6 / WIDTH, "rotation": 90}  # by a quarter, around its first corner: the same square
    results = [
        [strokes, polygon],
        [polygon, result("rectangle", box, "sign")],
        [polygon, result("rectangle", turned, "sign")],
    ]
    tasks = [
        {
            "id": k,
            "data": {"image": f"/data/upload/1/0a1b2c3d-{k}.png"},
            "annotations": [
                {"id": 1, "result": []},
                {"id": 2, "result": drawn},
                {"id": 3, "was_cancelled": True, "result": []},
            ],
        }
        for k, drawn in enumerate(results)
    ]
    tasks.append({"id": 9, "data": {"image": "/data/upload/1/0a1b2c3d-9.png"}, "annotations": []})
    for k in range(3):
        put_image(tmp_path / f"0a1b2c3d-{k}.png")
    put_json(tmp_path / "project-1.json", tasks)
    train, val = check(tmp_path, kind="Label Studio JSON"), check(tmp_path, "val")
    assert len(train) + len(val) == 3
    assert "1 image has no annotation yet: left out" in notes_of(train)
    prepared(tmp_path, tmp_path / "drawn")


def test_label_studio_json_min_and_ellipses(tmp_path):
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 50, "rotation": 0, "ellipselabels": ["car"]}
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    put_image(tmp_path / "a.png")
    put_json(tmp_path / "min.json", [{"id": 1, "image": "/data/upload/a.png", "label": [{**ellipse, **size}]}])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    check(tmp_path, truth=(((x - 4) / 2) ** 2 + ((y - 3) / 3) ** 2 <= 1).astype(np.uint8), names=("background", "car"))


@pytest.mark.parametrize("order", [1, -1])
def test_label_studio_json_min_of_several_annotators(tmp_path, order):
    """A row for each annotation, the newest of which label-studio-sdk writes first."""
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    rows = [
        {
            "id": 1,
            "image": "a.png",
            "annotation_id": number,
            "tag": [{**size, "format": "rle", "rle": brush(mask)} | name],
        }
        for number, mask, name in (
            (7, TRUTH == 2, {"brushlabels": ["car"]}),
            (9, TRUTH == 1, {"brushlabels": ["car"]}),
        )
    ]
    put_json(tmp_path / "min.json", [*rows[::order], {**rows[0], "id": 2, "image": "b.png", "annotation_id": 8}])
    for name in "ab":
        put_image(tmp_path / f"{name}.png")
    labels = {s.name: s.label for split in ("train", "val") for s in open_dataset(tmp_path, split)}
    assert labels["a"].tolist() == (TRUTH == 1).astype(int).tolist()
    assert labels["b"].tolist() == (TRUTH == 2).astype(int).tolist()
    assert "1 task has several annotations: the last of each counts" in check_data(tmp_path).notes


def test_label_studio_before_1_0_and_turned_images(tmp_path):
    """Annotations were called completions; the corners of what was drawn on a turned image are those of that image."""
    put_image(tmp_path / "a.png")
    shapes = [result("polygon", {"points": percent(polygon)}, name) for polygon, name in ((CAR, "car"), (SIGN, "sign"))]
    task = {"id": 1, "data": {"image": "a.png"}}
    put_json(tmp_path / "a.json", [{**task, "completions": [{"id": 1, "result": shapes}]}])
    check(tmp_path, kind="Label Studio JSON")
    shapes[1]["image_rotation"] = 90
    put_json(tmp_path / "a.json", [{**task, "annotations": [{"id": 1, "result": shapes}]}])
    with pytest.raises(UserError, match=r"a shape that was drawn on a turned image \(image_rotation\)"):
        open_dataset(tmp_path)


def test_label_studio_faults(tmp_path):
    put_image(tmp_path / "a.png")
    box = result("rectangle", {"x": 0, "y": 0, "width": 10, "height": 10}, "car")
    file = tmp_path / "a.json"
    put_json(file, [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": [box]}]}])
    with pytest.raises(
        UserError, match="the shapes are 1 of the kind rectangle, and no outlines: boxes, points and lines cannot train"
    ):
        open_dataset(tmp_path)
    code = brush(TRUTH == 1)
    for bad, message in ((code[:-4], "cut short"), (code[:3], "cut short"), (brush(TRUTH[:2] == 1), "expected 192")):
        strokes = result("brush", {"format": "rle", "rle": bad}, "car")
        put_json(file, [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"id": 1, "result": [strokes]}]}])
        with pytest.raises(UserError, match=rf"a\.json: the shapes of a cannot be drawn: .*{message}"):
            open_dataset(tmp_path)[0]
