"""List files as PaddleSeg, PaddleX and others write them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.data.formats.pair_lists import read_list
from degrid.types import UserError

MASK = np.array([[0, 1, 2, 255]], np.uint8)


def put(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";", " | "])
@pytest.mark.parametrize("ending", ["", "_list"])
def test_paddle_lists(tmp_path, separator, ending):
    for name in ("weed (0)", "weed (1)", "c"):
        put(tmp_path / "JPEGImages" / f"{name}.jpg", np.zeros((1, 4, 3), np.uint8))
        put(tmp_path / "Annotations" / f"{name}.png", MASK)
    for split, names in (("train", ("weed (0)", "weed (1)")), ("val", ("c",))):
        lines = [f"JPEGImages/{name}.jpg{separator}Annotations/{name}.png\n" for name in names]
        (tmp_path / f"{split}{ending}.txt").write_text("".join(lines))
    (tmp_path / "labels.txt").write_text("background\nweed\nold crop\n")
    for place in (tmp_path, tmp_path / f"train{ending}.txt"):
        train, val = open_dataset(place), open_dataset(place, "val")
        assert [source.name for source in train.sources] == ["JPEGImages/weed (0)", "JPEGImages/weed (1)"]
        assert [source.name for source in val.sources] == ["JPEGImages/c"]
        assert train.labels.names == ("background", "weed", "old crop")
        assert np.array_equal(train[1].label.numpy(), MASK)


@pytest.mark.parametrize("lines", ["0: sky\n1: old crop\n", "sky\nold crop\n", "__ignore__\nsky\nold crop\n"])
def test_labels_with_and_without_numbers(tmp_path, lines):
    put(tmp_path / "images" / "a.png", np.zeros((1, 2, 3), np.uint8))
    put(tmp_path / "masks" / "a.png", np.array([[1, 0]], np.uint8))
    (tmp_path / "labels.txt").write_text(lines)
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("sky", "old crop")
    assert dataset.rule.said == "labels.txt"
    assert dataset[0].label.tolist() == [[1, 0]]


def test_labels_that_are_a_list_of_masks(tmp_path):
    for folder, values in (("images", np.zeros((1, 2, 3), np.uint8)), ("masks", np.array([[1, 0]], np.uint8))):
        for name in ("a", "b"):
            put(tmp_path / folder / f"{name}.png", values)
    (tmp_path / "labels.txt").write_text("masks/a.png\nmasks/b.png\n")
    assert open_dataset(tmp_path).labels.names == ("class 0", "class 1")


NAME = st.text("ab(1) -_ä", min_size=1, max_size=8).map(str.strip).filter(bool)


@settings(max_examples=60)
@given(
    NAME,
    NAME,
    st.sampled_from([" ", "\t", ",", ";", "|", "  "]),
    st.sampled_from(["", "/"]),
    st.sampled_from(["", '"']),
)
def test_any_two_names_and_separator(tmp_path_factory, image, mask, separator, slash, quote):
    root = tmp_path_factory.mktemp("list")
    image, mask = f"images/{image}.jpg", f"masks of/{mask}.png"
    line = f"{quote}{slash}{image}{quote}{separator}{quote}{slash}{mask}{quote}\n"
    (root / "train.txt").write_text(line, encoding="utf-8")
    (pair,) = read_list(root / "train.txt", root)
    assert (pair.image, pair.mask) == (root / image, root / mask)
    (root / "train.txt").write_text(f"{slash}{image}\n", encoding="utf-8")
    (pair,) = read_list(root / "train.txt", root)
    assert (pair.image, pair.mask) == (root / image, None)


@pytest.mark.parametrize("line", ["/a.jpg /b", "a.jpg b.png c.png", "a.jpg 3"])
def test_lines_that_are_no_pair(tmp_path, line):
    (tmp_path / "train.txt").write_text(f"/x.jpg /y.png\n{line}\n")
    with pytest.raises(UserError, match=f'line 2: expected "/image /mask", got "{line}"'):
        read_list(tmp_path / "train.txt", tmp_path)


def test_paths_of_windows(tmp_path):
    (tmp_path / "train.txt").write_text("JPEGImages\\a b.jpg Annotations\\a b.png\n")
    (pair,) = read_list(tmp_path / "train.txt", tmp_path)
    assert (pair.image, pair.mask) == (tmp_path / "JPEGImages/a b.jpg", tmp_path / "Annotations/a b.png")


def test_paths_of_another_computer(tmp_path):
    """Images and masks are found by the ends of their paths; without any, the message says what the paths are."""
    lines = ["/home/bob/set/img/a.png /mnt/labels/seg/a.png\n", "/home/bob/set/img/b.png /mnt/labels/seg/b.png\n"]
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "val.txt").write_text("C:\\data\\img\\c.png,C:\\data\\seg\\c.png\n")
    with pytest.raises(UserError, match=r"if its paths are another computer's \(/home/bob/set/img/..\), give the root"):
        open_dataset(tmp_path / "train.txt")
    for name in "abc":
        put(tmp_path / "img" / f"{name}.png", np.zeros((1, 4, 3), np.uint8))
        put(tmp_path / "seg" / f"{name}.png", MASK)
    for split, count, start in (("train", 2, '"home/bob/set/" and "mnt/labels/"'), ("val", 1, '"C:/data/"')):
        dataset = open_dataset(tmp_path, split)
        assert len(dataset) == count
        assert np.array_equal(dataset[count - 1].label.numpy(), MASK)
        said = f"{split}.txt: paths begin with {start}, which is not here; what follows is read from {tmp_path}"
        assert said in notes_of(dataset)
    assert len(open_dataset(tmp_path / "train.txt", root=tmp_path)) == 2


def test_names_with_folders_of_another_computer(tmp_path):
    for name in ("a", "sub/b"):
        put(tmp_path / "images" / f"{name}.png", np.zeros((1, 4, 3), np.uint8))
        put(tmp_path / "masks" / f"{name}.png", MASK)
    (tmp_path / "train.txt").write_text("/home/bob/images/a.png\n")
    (tmp_path / "val.txt").write_text("D:\\images\\sub\\b.png\n")
    dataset = open_dataset(tmp_path, "val")
    assert [source.name for source in dataset.sources] == ["sub/b"]
    said = "the lists hold paths that are not here, such as /home/bob/images/a.png: images are found by the ends"
    assert said in notes_of(dataset)


def test_numbers_with_gaps_are_numbered_anew(tmp_path):
    put(tmp_path / "images" / "a.png", np.zeros((1, 4, 3), np.uint8))
    put(tmp_path / "masks" / "a.png", np.array([[0, 2, 5, 255]], np.uint8))
    (tmp_path / "labels.txt").write_text("0: background\n2: weed\n5: crop\n")
    dataset = open_dataset(tmp_path)
    assert "labels.txt: the ids 0, 2, 5 become 0 to 2" in notes_of(dataset)
    assert dataset[0].label.tolist() == [[0, 1, 2, 255]]


def test_class_name_to_id_of_paddlex(tmp_path):
    """As PaddleX 3.7.2 writes it when it converts labelme's files."""
    put(tmp_path / "images" / "a.png", np.zeros((1, 4, 3), np.uint8))
    put(tmp_path / "annotations" / "a.png", MASK)
    (tmp_path / "class_name.txt").write_text("weed\ncrop\n")
    (tmp_path / "class_name_to_id.txt").write_text("255: __ignore__\n0: _background_\n1: weed\n2: crop\n")
    (tmp_path / "train.txt").write_text("images/a.png annotations/a.png\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("_background_", "weed", "crop")
    assert dataset[0].label.tolist() == MASK.tolist()
    assert not any("0, 1, 2" in note for note in notes_of(dataset))


@pytest.mark.parametrize("name", ["class_names.txt", "labels.txt"])
def test_what_is_ignored_has_a_number_of_its_own_unless_it_is_first(tmp_path, name):
    """PaddleSeg's labelme2seg.py numbers it as it comes."""
    put(tmp_path / "images" / "a.png", np.zeros((1, 4, 3), np.uint8))
    put(tmp_path / "annotations" / "a.png", np.array([[0, 1, 2, 3]], np.uint8))
    (tmp_path / name).write_text("_background_\nweed\n__ignore__\ncrop\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("_background_", "weed", "crop")
    assert dataset[0].label.tolist() == [[0, 1, 255, 2]]


def objects(root, kind):
    """Ten photographs f0 to f9 whose objects are in labelme's files or in one of COCO's."""
    corners = [[0, 0], [4, 0], [4, 4]]
    for k in range(10):
        put(root / "images" / f"f{k}.png", np.full((6, 8, 3), 20 * k, np.uint8))
    if kind == "COCO":
        rows = [
            {"id": k, "image_id": k, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": 0}
            for k in range(10)
        ]
        images = [{"id": k, "file_name": f"f{k}.png", "width": 8, "height": 6} for k in range(10)]
        content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "crack"}]}
        (root / "annotations.json").write_text(json.dumps(content))
        return
    (root / "annotations").mkdir()
    for k in range(10):
        shape = {"label": "crack", "points": corners, "shape_type": "polygon"}
        content = {"imagePath": f"../images/f{k}.png", "shapes": [shape], "imageHeight": 6, "imageWidth": 8}
        (root / "annotations" / f"f{k}.json").write_text(json.dumps({**content, "imageData": None, "version": "5"}))


@pytest.mark.parametrize("kind", ["COCO", "labelme"])
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("{}.txt", "f{}"),
        ("{}.txt", "images/f{}.png"),
        ("{}_list.txt", "f{}.png"),
        ("{}_anno_list.txt", "annotations/f{}.json"),
    ],
)
def test_lists_beside_a_tools_files(tmp_path, kind, file, line):
    """What PaddleX's conversion reads, and others write."""
    objects(tmp_path, kind)
    for split, chosen in (("train", range(3, 10)), ("val", range(2))):
        (tmp_path / file.format(split)).write_text("\n".join(line.format(k) for k in chosen))
    if kind == "COCO" and "json" in line:  # names of files that are not there
        with pytest.raises(UserError, match=r"split at random, though train_anno_list.txt, val_anno_list.txt"):
            open_dataset(tmp_path, accept=())
        return
    found = {split: [source.name for source in open_dataset(tmp_path, split).sources] for split in ("train", "val")}
    assert found == {"train": [f"images/f{k}" for k in range(3, 10)], "val": ["images/f0", "images/f1"]}
    notes = notes_of(open_dataset(tmp_path))
    assert "the splits are those that lists or tables in the folder name" in notes
    assert "1 image is in none of the lists" in notes
    assert not any("kept for validation" in note for note in notes)


def test_other_splits_beside_a_tools_files(tmp_path):
    objects(tmp_path, "COCO")
    (tmp_path / "splits.yaml").write_text("train: [f1]\n")
    with pytest.raises(UserError, match="split at random, though splits.yaml seems to name the splits"):
        open_dataset(tmp_path, accept=())
    (tmp_path / "splits.yaml").unlink()
    (tmp_path / "folds.csv").write_text("image,fold\n" + "".join(f"f{k}.png,{k % 5}\n" for k in range(10)))
    assert [source.name for source in open_dataset(tmp_path, "val").sources] == ["images/f0", "images/f5"]


@pytest.mark.parametrize("written", ["{split}/f{k}.png", "f{k}.png"])
@pytest.mark.parametrize("place", ["images/{split}/f{k}.png", "{split}/f{k}.png", "images/{split}_f{k}.png"])
def test_one_file_for_images_in_folders_called_as_splits(tmp_path, place, written):
    """The objects of all images stand in one of COCO's files, and the folders, or the names, tell the splits."""
    objects(tmp_path, "COCO")
    content = json.loads((tmp_path / "annotations.json").read_text())
    for k in range(10):
        split = "val" if k in (2, 5) else "train"
        file = tmp_path / place.format(split=split, k=k)
        file.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"f{k}.png").rename(file)
        content["images"][k]["file_name"] = file.name if "_" in file.name else written.format(split=split, k=k)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    names = [Path(source.name).name[-2:] for source in open_dataset(tmp_path, "val").sources]
    assert names == ["f2", "f5"]
    assert len(open_dataset(tmp_path, "train")) == 8
    assert "the splits are those that the folders or the names of the images say" in notes_of(open_dataset(tmp_path))
