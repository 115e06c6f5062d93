"""Datasets of every layout and kind of mask, what is wrong with them, transforms and loader."""

import itertools
import re
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from degrid.data import (
    SyntheticScenes,
    TrainTransform,
    check_data,
    check_promises,
    collate,
    notes_of,
    open_dataset,
    training_batches,
    write_preview,
)
from degrid.data.formats.benchmarks.camvid import CAMVID
from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES
from degrid.data.formats.benchmarks.voc import VOC
from degrid.data.formats.pair_lists import read_list
from degrid.data.training import jitter_colors
from degrid.types import IGNORE_INDEX, LabelSpace, Sample, UserError

RNG = np.random.default_rng


def put_image(file, size=(6, 8), seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG(seed + zlib.crc32(file.name.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def put_mask(file, ids, mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(ids, np.uint8))
    if mode == "P":
        image = Image.fromarray(np.asarray(ids, np.uint8), mode=None)
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(file)


def ids(value=0, size=(6, 8)):
    """A mask of classes 0..2 with a void pixel; `value` makes masks differ."""
    mask = (np.arange(size[0] * size[1]).reshape(size) + value) % 3
    mask[0, 0] = IGNORE_INDEX
    return mask


def folder(root, names=("a", "b", "c", "d", "e", "f"), images="images", masks="masks", ending=".png", mask_ending=""):
    for k, name in enumerate(names):
        put_image(root / images / f"{name}{ending}")
        put_mask(root / masks / f"{name}{mask_ending}.png", ids(k))
    return root


# ---- layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "mask_ending"),
    [("images", "masks", ""), ("imgs", "labels", "_label"), ("JPEGImages", "annotations", "_mask")],
)
def test_folder_pairs_by_name(tmp_path, images, masks, mask_ending):
    names = ("a", "sub/b", "with space", "ümläut", "e", "f")
    folder(tmp_path, names, images, masks, mask_ending=mask_ending)
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    found = {sample.name: sample for dataset in (train, val) for sample in (dataset[i] for i in range(len(dataset)))}
    assert set(found) == set(names)
    for k, name in enumerate(names):
        assert torch.equal(found[name].label, torch.from_numpy(ids(k).astype(np.uint8)))
    assert train.labels == LabelSpace.of_size(3)
    check_promises(train)
    # The division depends on the names alone.
    assert [p.name for p in open_dataset(tmp_path, "val").sources] == [p.name for p in val.sources]


def test_split_folders_both_ways(tmp_path):
    for split in ("train", "val"):
        folder(tmp_path / "a", [f"{split}/x{k}" for k in range(2)])
        folder(tmp_path / "b" / split, [f"x{k}" for k in range(2)])
    for root in (tmp_path / "a", tmp_path / "b"):
        assert [len(open_dataset(root, split)) for split in ("train", "val")] == [2, 2]
    with pytest.raises(UserError, match='has no split "test"; it has: train, val'):
        open_dataset(tmp_path / "a", "test")


def test_split_files_and_class_table(tmp_path):
    folder(tmp_path)
    (tmp_path / "train.txt").write_text("a\r\nb\r\nc\r\n")  # as Windows writes them
    (tmp_path / "val.txt").write_text("d\ne")
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n1,road,0,0,9\n0,sky,1,2,3\n2,car,7,7,7\n")
    assert [p.name for p in open_dataset(tmp_path, "train").sources] == ["a", "b", "c"]
    val = open_dataset(tmp_path, "val")
    assert [p.name for p in val.sources] == ["d", "e"]
    assert val.labels == LabelSpace(("sky", "road", "car"), ((1, 2, 3), (0, 0, 9), (7, 7, 7)))
    (tmp_path / "classes.csv").write_text("id,name,r,g\n0,sky,1,2\n")
    with pytest.raises(UserError, match="expected the columns id,name,r,g,b"):
        open_dataset(tmp_path)
    (tmp_path / "classes.csv").write_text("id,name,r,g,b\n2,sky,1,2,3\n2,car,1,2,3\n")
    with pytest.raises(UserError, match='the id 2 belongs to both "sky" and "car"; give each its own'):
        open_dataset(tmp_path)


def test_a_list_that_is_not_called_as_a_split_is_for_dataset_yaml(tmp_path):
    folder(tmp_path)
    for name, listed in (("train", "abcd"), ("val", "ef"), ("train_half", "ac")):
        (tmp_path / f"{name}.txt").write_text("\n".join(listed))
    with pytest.raises(UserError, match=r"has no split .* name the list in a dataset\.yaml .*train: train_half\.txt"):
        open_dataset(tmp_path, "train_half")
    (tmp_path / "half.yaml").write_text("{path: ., train: train_half.txt, val: val.txt, classes: [x, y, z]}")
    half = open_dataset(tmp_path / "half.yaml", "train")
    assert [pair.name for pair in half.sources] == ["a", "c"]
    assert half.labels.names == ("x", "y", "z")
    (tmp_path / "classes.csv").write_text("id,name\n0,sky\n1,road\n2,car\n")
    assert open_dataset(tmp_path / "half.yaml", "train").labels.names == ("x", "y", "z")
    (tmp_path / "half.yaml").write_text("{path: ., train: train_half.txt, val: val.txt}")
    assert open_dataset(tmp_path / "half.yaml", "train").labels.names == ("sky", "road", "car")


def test_mask_beside_image(tmp_path):
    for k in range(5):
        put_image(tmp_path / f"cat{k}.jpg")
        put_mask(tmp_path / f"cat{k}_mask.png", ids(k))
    put_image(tmp_path / "cat0_segmentation.jpg")  # a name that only looks like a mask's, with no cat0_segmentation_..
    (tmp_path / "cat0_segmentation.jpg").unlink()
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert sorted(p.name for p in [*train.sources, *val.sources]) == [f"cat{k}" for k in range(5)]


def test_list_files_of_the_originals(tmp_path):
    folder(tmp_path / "data", ("a", "b", "c"), "JPEG", "Label", ".jpg")
    lists = tmp_path / "data" / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("/JPEG/a.jpg /Label/a.png\r\n/JPEG/b.jpg /Label/b.png")
    (lists / "val.txt").write_text("/JPEG/c.jpg /Label/c.png\n")
    train, val = open_dataset(lists / "train.txt", "train"), open_dataset(lists / "train.txt", "val")
    assert [p.name for p in train.sources] == ["JPEG/a", "JPEG/b"]
    assert torch.equal(val[0].label, torch.from_numpy(ids(2).astype(np.uint8)))
    assert len(open_dataset(lists, "train")) == 2
    (lists / "test.txt").write_text("/JPEG/a.jpg\n/JPEG/b.jpg /JPEG/b.jpg\n")
    assert [p.mask for p in read_list(lists / "test.txt")] == [None, None]
    with pytest.raises(UserError, match='2 of 2 images in the split "test" .* have no mask'):
        open_dataset(lists / "train.txt", "test")
    (lists / "train.txt").write_text("/JPEG/a.jpg /Label/a.png extra\n")
    with pytest.raises(UserError, match=r'train\.txt, line 1: expected "/image /mask"'):
        read_list(lists / "train.txt")
    (lists / "train.txt").write_text("/nowhere/a.jpg /Label/a.png\n")
    with pytest.raises(UserError, match=r"nowhere/a\.jpg is in none of the folders above the list"):
        read_list(lists / "train.txt")
    (lists / "train.txt").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_list(lists / "train.txt")


def test_voc(tmp_path):
    for name in ("2007_1", "2007_2", "2007_3"):
        put_image(tmp_path / "JPEGImages" / f"{name}.jpg")
    put_mask(tmp_path / "SegmentationClass" / "2007_1.png", ids(), "P")
    put_mask(tmp_path / "SegmentationClassAug" / "2007_2.png", ids(1))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_1\n")
    (lists / "trainaug.txt").write_text("2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_2\n")
    for root in (tmp_path, tmp_path.parent):
        if root is not tmp_path:
            (root / "VOC2012").symlink_to(tmp_path)
        aug = open_dataset(root, "trainaug")
        assert aug.labels == VOC
        assert [p.name for p in aug.sources] == ["2007_1", "2007_2"]
        assert torch.equal(aug[0].label, torch.from_numpy(ids().astype(np.uint8)))  # palette indices, not colours


@pytest.mark.parametrize("ending", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, ending):
    raw = np.array([[7, 8, 33, 0, 4, 26]], np.uint8) if ending == "labelIds" else np.array([[0, 1, 18, 255, 255, 13]])
    for split in ("train", "val"):
        put_image(tmp_path / "leftImg8bit" / split / "ulm" / "ulm_000_leftImg8bit.png", (1, 6), seed=len(split))
        put_mask(tmp_path / "gtFine" / split / "ulm" / f"ulm_000_gtFine_{ending}.png", raw)
    val = open_dataset(tmp_path, "val")
    assert val.labels == CITYSCAPES
    assert val.labels.names[13] == "car"
    assert val[0].label.tolist() == [[0, 1, 18, 255, 255, 13]]
    assert val[0].name == "val/ulm/ulm_000"
    assert check_data(tmp_path).ok


def test_segnet_camvid(tmp_path):
    for split in ("train", "val", "test"):
        put_image(tmp_path / "CamVid" / split / "0001.png")
        label = np.full((6, 8), 11 if split == "val" else 10)
        put_mask(tmp_path / "CamVid" / f"{split}annot" / "0001.png", label)
    assert open_dataset(tmp_path / "CamVid", "train").labels == CAMVID
    assert open_dataset(tmp_path / "CamVid", "val")[0].label.unique().tolist() == [IGNORE_INDEX]


def test_own_classes_in_segnets_folders(tmp_path):
    """Nothing says that they are CamVid's, so that 11 is a class as all others."""
    for split in ("train", "val"):
        put_image(tmp_path / split / "0001.png")
        put_mask(tmp_path / f"{split}annot" / "0001.png", np.arange(48).reshape(6, 8) // 4)
    dataset = open_dataset(tmp_path, "val")
    assert dataset.labels.names == tuple(f"class {k}" for k in range(12))
    assert dataset[0].label.tolist() == (np.arange(48).reshape(6, 8) // 4).tolist()
    put_image(tmp_path / "val" / "0016E5_07959.png")
    put_mask(tmp_path / "valannot" / "0016E5_07959.png", np.full((6, 8), 11))
    assert open_dataset(tmp_path, "val").labels == CAMVID


# ---- dataset.yaml -------------------------------------------------------------------------------------------


def describe_in(root, text):
    (root / "dataset.yaml").write_text(text)
    return root


def test_description_with_remapped_ids(tmp_path):
    folder(tmp_path)
    text = "train: images\nval: images\nmasks: masks\nclasses: [sky, rest]\nids: {0: 0, 1: 1, 2: void}\n"
    dataset = open_dataset(describe_in(tmp_path, text), "train")
    expected = np.where(ids() == 2, 255, ids())
    assert torch.equal(dataset[0].label, torch.from_numpy(expected.astype(np.uint8)))
    assert dataset.labels.names == ("sky", "rest")
    # A table of ids says everything: what is not in it is unknown.
    describe_in(tmp_path, text.replace(", 2: void", ""))
    with pytest.raises(UserError, match=r"has the ids 2; expected 0 to 1 or 255"):
        open_dataset(tmp_path)[0]


def test_description_with_colours(tmp_path):
    put_image(tmp_path / "images" / "train" / "a.png", (1, 3))
    mask = np.array([[[0, 0, 255], [10, 20, 30], [1, 1, 1]]], np.uint8)
    (tmp_path / "masks" / "train").mkdir(parents=True)
    Image.fromarray(mask).save(tmp_path / "masks" / "train" / "a.png")
    text = "train: images/train\nclasses:\n  0: {name: sky, color: [0, 0, 255]}\n  1: {name: x, color: [10, 20, 30]}\n"
    with pytest.raises(UserError, match=r"has the colours \(1, 1, 1\), which belong to no class"):
        open_dataset(describe_in(tmp_path, text))[0]
    dataset = open_dataset(describe_in(tmp_path, text + "void: [[1, 1, 1]]\n"))
    assert dataset[0].label.tolist() == [[0, 1, 255]]


def test_descriptions_of_other_toolkits(tmp_path):
    folder(tmp_path, [f"train/{n}" for n in "abc"] + ["val/d"])
    ultralytics = (
        "path: .\ntrain: images/train\nval: images/val\nmasks_dir: masks\nnames: {0: a, 1: b}\n"
        "label_mapping: {0: 0, 1: 1, 2: 255}\nnc: 2\n"
    )
    dataset = open_dataset(describe_in(tmp_path, ultralytics), "val")
    assert (len(dataset), dataset.labels.names) == (1, ("a", "b"))
    lightly = (
        "train: {images: images/train, masks: masks/train}\nval: {images: images/val, masks: masks/val}\n"
        "classes: {0: {name: a, labels: [0, 2]}, 1: b}\nignore_classes: [7]\n"
    )
    dataset = open_dataset(describe_in(tmp_path, lightly), "train")
    assert dataset[0].label[0].tolist() == [255, 1, 0, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tarin: images\n", 'unknown key "tarin". Did you mean "train"'),
        ("format: voc\n", 'unknown data format "voc". Did you mean "VOC"'),
        ("corwd: void\n", 'unknown key "corwd". Did you mean "crowd"'),
        ("[1, 2]", "expected keys such as"),
        ("train: [", "is not valid YAML"),
        ("train: nowhere\nmasks: masks\n", "nowhere is not a folder"),
        ("path: nowhere\n", "path .*nowhere is not a folder"),
        ("train: images\nmasks: masks\nclasses: {0: a, x: b}\n", "a table from ids, 0 to 255, to names"),
        ("train: images\nmasks: masks\nclasses: [a, a]\n", "named twice: a"),
        (
            "train: images\nmasks: masks\nclasses: [a]\nids: {5: 9}\n",
            "expected a raw id and a class 0 to 0 or void",
        ),
        ("train: images\nmasks: masks\nids: {5: 0}\n", "needs classes in the same file; without them give a list"),
        (
            "train: images\nmasks: masks\nclasses: [{name: a, colour: [1, 2, 3]}]\n",
            "expected name, and optionally color",
        ),
        (
            "train: images\nmasks: masks\nclasses: [{name: a, color: red}]\n",
            "a colour is three whole numbers",
        ),
        ("train: 3\nmasks: masks\n", "train must be a folder"),
    ],
)
def test_mistakes_in_a_description(tmp_path, text, message):
    folder(tmp_path)
    with pytest.raises(UserError, match=message):
        open_dataset(describe_in(tmp_path, text))


# ---- masks and images of every kind -------------------------------------------------------------------------


def one(tmp_path, save, names=None):
    """A folder of one image whose mask is written by `save(path)`."""
    put_image(tmp_path / "images" / "a.png", (2, 3))
    (tmp_path / "masks").mkdir()
    save(tmp_path / "masks" / "a.png")
    if names:
        rows = [f"{i},{name},{i},{i},{200 + i}" for i, name in enumerate(names)]
        (tmp_path / "classes.csv").write_text("\n".join(["id,name,r,g,b", *rows]))
    return open_dataset(tmp_path, "train")


RAW = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


@pytest.mark.parametrize(
    "convert",
    [
        lambda raw: Image.fromarray(raw),
        lambda raw: Image.fromarray(raw.astype(np.uint16)),
        lambda raw: Image.fromarray(np.dstack([raw, raw, raw])),
        lambda raw: Image.merge("LA", [Image.fromarray(raw), Image.fromarray(raw)]),
    ],
    ids=["8 bit", "16 bit", "grey saved as RGB", "with alpha"],
)
def test_id_masks(tmp_path, convert):
    names = ("a", "b", "c")
    dataset = one(tmp_path, lambda file: convert(RAW).save(file), names)
    assert torch.equal(dataset[0].label, torch.from_numpy(RAW))


def test_colour_masks_need_a_table(tmp_path):
    colors = np.array([[[0, 0, 200], [1, 1, 201], [0, 0, 200]], [[1, 1, 201]] * 3], np.uint8)
    assert one(tmp_path / "a", lambda f: Image.fromarray(colors).save(f), ("x", "y"))[0].label.tolist() == [
        [0, 1, 0],
        [1, 1, 1],
    ]
    with pytest.raises(UserError, match=r"is a colour picture and nothing says .* write .*classes\.csv"):
        one(tmp_path / "b", lambda f: Image.fromarray(colors).save(f))


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_black_and_white_masks(tmp_path, mode):
    white = np.array([[0, 255, 255], [0, 0, 0]], np.uint8)
    dataset = one(tmp_path, lambda f: Image.fromarray(white).convert(mode).save(f))
    assert dataset[0].label.tolist() == [[0, 1, 1], [0, 0, 0]]
    if mode != "1":  # one-bit masks hold 0 and 1 already
        assert dataset.labels.names == ("background", "foreground")
        assert "taken as background and foreground" in " ".join(notes_of(dataset))


def test_jpeg_masks_are_refused_with_a_hint(tmp_path):
    dataset = one(tmp_path, lambda f: Image.fromarray(RAW).save(f, format="JPEG"), ("a", "b", "c"))
    with pytest.raises(UserError, match=r"a\.png is a JPEG: .*Save masks as PNG.*>= 128"):
        dataset[0]


def test_ids_out_of_range(tmp_path):
    dataset = one(tmp_path, lambda f: Image.fromarray(np.full((2, 3), 7, np.uint8)).save(f), ("a", "b"))
    with pytest.raises(UserError, match=r"a\.png has the ids 7; expected 0 to 1 or 255"):
        dataset[0]


def test_mask_of_another_size(tmp_path):
    dataset = one(tmp_path, lambda f: Image.fromarray(np.zeros((4, 4), np.uint8)).save(f), ("a",))
    with pytest.raises(UserError, match=r"a\.png is 4x4 pixels, its image a\.png is 3x2; they must have the same size"):
        dataset[0]


@pytest.mark.parametrize("turned", [True, False])
def test_exif_orientation_follows_the_mask(tmp_path, turned):
    pixels = RNG(3).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    put_mask(tmp_path / "masks" / "a.png", np.zeros((3, 2) if turned else (2, 3)))
    sample = open_dataset(tmp_path, "train")[0]
    expected = np.rot90(pixels, 3) if turned else pixels
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("of_image", "of_mask", "size", "says"),
    [
        (6, 1, (2, 3), "read as stored since that fits their masks"),
        (6, 1, (3, 2), ""),
        (6, 1, (3, 3), "whose size does not tell their orientation"),
        (3, 1, (2, 3), "whose size does not tell their orientation"),
        (6, 6, (2, 3), "read as stored since that fits their masks"),
        (
            6,
            6,
            (3, 3),
            r"is to be rotated for display \(EXIF orientation 6\), its image has orientation 6, and",
        ),
        (1, 3, (2, 3), r"is to be rotated for display \(EXIF orientation 3\), its image does not"),
        (1, 1, (2, 3), ""),
    ],
)
def test_what_is_said_of_images_and_masks_that_exif_turns(tmp_path, of_image, of_mask, size, says):
    tags = {orientation: Image.Exif() for orientation in (of_image, of_mask)}
    for orientation, exif in tags.items():
        exif[0x0112] = orientation
    for k in range(3):
        stored = (3, 3) if size == (3, 3) else (2, 3)
        (tmp_path / "images").mkdir(exist_ok=True)
        pixels = RNG(k).integers(0, 256, (*stored, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png", exif=tags[of_image])
        put_mask(tmp_path / "masks" / f"{k}.png", np.arange(6)[: size[0]].repeat(size[1]).reshape(size) % 2)
        if of_mask != 1:
            with Image.open(tmp_path / "masks" / f"{k}.png") as mask:
                mask.load()
            mask.save(tmp_path / "masks" / f"{k}.png", exif=tags[of_mask])
    report = check_data(tmp_path)
    said = [sentence for sentence in report.notes + report.problems if "EXIF" in sentence]
    assert len(said) == bool(says)
    assert not says or re.search(says, said[0])
    assert report.ok == ("rotated for display" not in says)
    if not report.ok:
        with pytest.raises(UserError, match=says):
            open_dataset(tmp_path)[0]


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(UserError, match="no data at .*nowhere"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images with masks found in .*Looked for: .*images/ and masks/"):
        open_dataset(tmp_path / "empty")
    root = folder(tmp_path / "set")
    (root / "masks" / "b.png").unlink()
    with pytest.raises(UserError, match=r'1 of 5 images in the split "train" .* have no mask, .*b\.png'):
        open_dataset(root, "train" if zlib.crc32(b"b") % 5 else "val")
    put_mask(root / "masks" / "b.png", ids())
    data = (root / "images" / "a.png").read_bytes()
    (root / "images" / "a.png").write_bytes(data[: len(data) // 2])
    dataset = open_dataset(root, "train")
    with pytest.raises(UserError, match=r"a\.png is damaged or cut short"):
        [dataset[i] for i in range(len(dataset))]
    with pytest.raises(UserError, match=r'Did you mean "\S+[\\/]set"'):
        open_dataset(tmp_path / "sett")


def test_expected_classes(tmp_path):
    folder(tmp_path)
    four = LabelSpace(("a", "b", "c", "d"), ((0, 0, 0),) * 4)
    assert open_dataset(tmp_path, "val", labels=four).labels == four  # guessed classes take the model's names
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    with pytest.raises(UserError, match=r"has 3 classes \(x, y, z\); expected 4 \(a, b, c, d\)"):
        open_dataset(tmp_path, "val", labels=four)


def test_own_dataset(tmp_path, monkeypatch):
    (tmp_path / "sets.py").write_text(
        "import torch\nfrom degrid import LabelSpace, Sample\n"
        "class Ones:\n"
        "    labels = LabelSpace.of_size(2)\n"
        "    def __init__(self, split): self.split = split\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, i):\n"
        "        return Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8), str(i))\n"
    )
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("sets:Ones", "val")
    assert dataset.split == "val"
    check_promises(dataset)


def test_broken_promises_are_named():
    good = Sample(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8), "a")

    class Set(list):
        labels = LabelSpace.of_size(2)

    for sample, message in (
        (Sample(good.image.float(), good.label, "a"), "image must be uint8"),
        (Sample(good.image, good.label.long(), "a"), "label must be uint8"),
        (Sample(good.image, good.label[:2], "a"), "label must be uint8"),
        (Sample(good.image, good.label + 5, "a"), r"label holds the ids \[5\]"),
        ((good.image, good.label), "expected a degrid.Sample"),
    ):
        with pytest.raises(UserError, match=message):
            check_promises(Set([sample]))
    check_promises(Set([good]))
    with pytest.raises(UserError, match="empty"):
        check_promises(Set())

    class Restless(Set):
        def __getitem__(self, index):
            return Sample(torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8), good.label, "a")

    with pytest.raises(UserError, match="two reads gave different samples"):
        check_promises(Restless([good]))


# ---- check and preview --------------------------------------------------------------------------------------


def test_check_counts_by_hand(tmp_path):
    folder(tmp_path, ("a", "b", "c"))
    (tmp_path / "train.txt").write_text("a\nb\n")
    (tmp_path / "val.txt").write_text("c\n")
    calls = []
    report = check_data(tmp_path, lambda p: calls.append((p.done, p.total)))
    assert report.ok
    assert calls == [(1, 3), (2, 3), (3, 3)]
    train = report.splits["train"]
    assert (train.num_images, train.sizes, train.void_pixels) == (2, {"8x6": 2}, 2)
    expected = np.bincount(np.concatenate([ids(0).ravel(), ids(1).ravel()]), minlength=256)
    assert train.class_pixels == expected[:3].tolist()
    assert train.class_images == [2, 2, 2]
    assert "ready to train on" in str(report)
    assert report.to_dict()["splits"]["val"]["num_images"] == 1


def test_check_finds_everything_at_once(tmp_path):
    root = folder(tmp_path, "abcdefgh")
    (root / "classes.txt").write_text("x\ny\nz\nnever\n")
    (root / "masks" / "a.png").unlink()
    put_mask(root / "masks" / "orphan.png", ids())
    put_mask(root / "masks" / "b.png", np.zeros((3, 3)))
    put_mask(root / "masks" / "c.png", np.full((6, 8), 9))
    (root / "images" / "d.png").write_bytes(b"")
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(root / "masks" / "e.png", format="JPEG")
    (root / "masks" / "f.png").write_bytes((root / "masks" / "f.png").read_bytes()[:40])
    put_mask(root / "masks" / "g.png", np.full((6, 8), 255))
    (root / "train.txt").write_text("\n".join("abcdefg"))
    (root / "val.txt").write_text("h\n")
    (root / "images" / "h.png").write_bytes((root / "images" / "g.png").read_bytes())
    report = check_data(root)
    text = str(report)
    assert not report.ok
    for message in (
        r"1 image without a mask",
        "1 mask without an image",
        "1 mask of another size than their image",
        "1 mask with unknown values",
        "the ids 9",
        "1 image that cannot be read",
        "1 JPEG mask",
        "1 mask that cannot be read",
        "1 mask that is all void",
        f"1 of 1 images of val is in train, too, such as {root}/images/h.png (a copy of {root}/images/g.png)",
        "class without a single pixel (is the list of classes right?): 3 never",
    ):
        assert message in text, message


def test_preview_shows_labels(tmp_path):
    folder(tmp_path)
    write_preview(open_dataset(tmp_path, "train"), tmp_path / "out" / "sheet.png", 3)
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"))
    colors = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
    assert set(LabelSpace.of_size(3).colors) <= colors  # the legend
    assert [f.name for f in (tmp_path / "out").iterdir()] == ["sheet.png"]


# ---- synthetic scenes ---------------------------------------------------------------------------------------


def test_synthetic_scenes_are_repeatable_and_apart():
    a, b = SyntheticScenes("train", 3), SyntheticScenes("train", 3)
    for i in range(3):
        assert torch.equal(a[i].image, b[i].image)
        assert torch.equal(a[i].label, b[i].label)
    assert not torch.equal(a[0].label, a[1].label)
    assert not torch.equal(a[0].label, SyntheticScenes("val", 3)[0].label)
    assert not torch.equal(a[0].label, SyntheticScenes("train", 3, seed=1)[0].label)
    # The same on every machine: labels come from comparisons of exact arithmetic.
    assert zlib.crc32(a[0].label.numpy().tobytes()) == 1943270600
    check_promises(a)


def test_synthetic_scenes_hold_every_class_and_void():
    counts = torch.zeros(256, dtype=torch.int64)
    scenes = SyntheticScenes("test", 40)
    for i in range(len(scenes)):
        counts += torch.bincount(scenes[i].label.flatten().long(), minlength=256)
    shares = counts / counts.sum()
    assert (shares[: len(scenes.labels)] > 0.005).all()
    assert 0.005 < shares[IGNORE_INDEX] < 0.15


def test_synthetic_mistakes():
    with pytest.raises(UserError, match="have the splits train, val, test"):
        open_dataset("synthetic", "dev")
    with pytest.raises(UserError, match="at least 64x64"):
        SyntheticScenes(size=(32, 200))


# ---- transforms ---------------------------------------------------------------------------------------------


def coded(height, width, blocks=6):
    """An image whose colour says the label: large even blocks, so that bilinear resampling keeps their insides."""
    ids = RNG(0).integers(0, 5, (blocks, blocks))
    label = np.kron(ids, np.ones((height // blocks + 1, width // blocks + 1), int))[:height, :width].astype(np.uint8)
    image = np.stack([label * 50, 255 - label * 50, label * 0 + 128], axis=2)
    return Sample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label), "x")


def edges(label):
    """Pixels beside another id."""
    field = label.numpy().astype(int)
    near = np.zeros(field.shape, bool)
    for dy, dx in itertools.product((-1, 0, 1), repeat=2):
        near |= np.roll(field, (dy, dx), (0, 1)) != field
    near[0] = near[-1] = near[:, 0] = near[:, -1] = True
    return near


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(40, 90), st.integers(40, 90)),
    crop=st.tuples(st.integers(8, 100), st.integers(8, 100)),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.5, 0.5), (2.0, 2.0)]),
)
def test_image_and_label_stay_aligned(seed, size, crop, scale):
    out = TrainTransform(crop, scale)(coded(*size), RNG(seed))
    assert out.image.shape == (3, *crop)
    assert out.label.shape == crop
    inside = (out.label != IGNORE_INDEX).numpy() & ~edges(out.label)
    decoded = (out.image[0].float() / 50).round()
    assert np.array_equal(decoded.numpy()[inside], out.label.numpy()[inside])
    void = (out.label == IGNORE_INDEX).numpy() & ~edges(out.label)
    assert (out.image.permute(1, 2, 0).numpy()[void] == (124, 116, 104)).all()


def test_without_scaling_the_crop_is_exact_and_every_place_is_reached():
    sample = Sample(
        torch.from_numpy(RNG(0).integers(0, 256, (3, 9, 11), dtype=np.uint8)),
        torch.from_numpy(RNG(1).integers(0, 5, (9, 11), dtype=np.uint8)),
        "x",
    )
    places = set()
    for seed in range(200):
        out = TrainTransform((7, 8), (1, 1), flip=0.0)(sample, RNG(seed))
        found = [
            (y, x)
            for y, x in itertools.product(range(3), range(4))
            if torch.equal(sample.label[y : y + 7, x : x + 8], out.label)
        ]
        assert len(found) == 1
        y, x = found[0]
        assert torch.equal(sample.image[:, y : y + 7, x : x + 8], out.image)
        places.add((y, x))
    assert len(places) == 12


def test_flip_mirrors_and_padding_is_void():
    sample = coded(20, 30)
    plain = TrainTransform((20, 30), (1, 1), flip=0.0)(sample, RNG(0))
    flipped = TrainTransform((20, 30), (1, 1), flip=1.0)(sample, RNG(0))
    assert torch.equal(plain.label, sample.label)
    assert torch.equal(flipped.image, sample.image.flip(2))
    assert torch.equal(flipped.label, sample.label.flip(1))
    for flip in (0.0, 1.0):
        padded = TrainTransform((24, 40), (1, 1), flip=flip)(sample, RNG(0))
        inner = sample.label.flip(1) if flip else sample.label
        assert torch.equal(padded.label[:20, :30], inner)
        assert (padded.label[20:] == IGNORE_INDEX).all()
        assert (padded.label[:, 30:] == IGNORE_INDEX).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", [(8, 13), (20, 30), (24, 41), (14, 35)])
def test_centred_crops_and_padding(crop, flip):
    """As TensorFlow's resize_image_with_crop_or_pad: of an odd rest, the smaller half comes first."""
    sample = coded(20, 30)
    pad = [(max(0, side - have) // 2, -(-max(0, side - have) // 2)) for side, have in zip(crop, (20, 30), strict=True)]
    expected = np.pad(sample.label.numpy(), pad, constant_values=IGNORE_INDEX)
    top, left = (max(0, have - side) // 2 for side, have in zip(crop, (20, 30), strict=True))
    expected = expected[top : top + crop[0], left : left + crop[1]]
    out = TrainTransform(crop, (1, 1), flip=flip, centred=True)(sample, RNG(0))
    assert np.array_equal(out.label.numpy(), expected[:, ::-1] if flip else expected)
    assert np.array_equal(out.image.numpy()[:, out.label == IGNORE_INDEX][0] == 124, np.ones((expected == 255).sum()))


def test_half_size_takes_the_pixel_at_the_half_pixel_centre():
    label = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    out = TrainTransform((4, 4), (0.5, 0.5), flip=0.0)(Sample(label.expand(3, 8, 8).clone(), label, "x"), RNG(0))
    assert torch.equal(out.label, label[1::2, 1::2])  # the centre lies between four pixels; the later one is taken
    # The image is interpolated there: the mean of the four.
    mean = (label[::2, ::2].float() + label[1::2, ::2] + label[::2, 1::2] + label[1::2, 1::2]) / 4
    assert (out.image[0].float() - mean).abs().max() <= 0.5


def test_jitter_changes_colours_only():
    sample = coded(30, 30)
    transform = TrainTransform((30, 30), (1, 1), flip=0.0, jitter=(0.4, 0.4, 0.4, 0.1))
    a, b, again = (transform(sample, RNG(seed)) for seed in (1, 2, 1))
    assert torch.equal(a.label, sample.label)
    assert torch.equal(a.image, again.image)
    assert not torch.equal(a.image, b.image)
    assert not torch.equal(a.image, sample.image)
    assert a.image.dtype == torch.uint8


class Fixed:
    """A generator whose next draws are given, as places between the lowest and the highest value."""

    def __init__(self, *places):
        self.places = list(places)

    def uniform(self, low, high):
        return low + (high - low) * self.places.pop(0)


@pytest.mark.parametrize(
    ("strength", "places", "expected"),
    [
        ((0.5, 0, 0, 0), (1, 0, 0, 0), [(150, 75, 30), (60, 60, 60)]),  # brightness 1.5
        ((0, 0.5, 0, 0), (0, 1, 0, 0), [(120, 45, 0), (30, 30, 30)]),  # contrast 1.5
        ((0, 0, 1.0, 0), (0, 0, 0, 0), [(62, 62, 62), (40, 40, 40)]),  # no saturation: brightness alone
        ((0, 0, 0, 0.5), (0, 0, 0, 1), None),  # half a turn of the hue
    ],
)
def test_jitter_by_hand(strength, places, expected):
    pixels = np.array([[[100, 50, 20], [40, 40, 40]]], np.uint8)
    out = np.array(jitter_colors(Image.fromarray(pixels), strength, Fixed(*places))).astype(int)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    if strength[1]:
        mean = luma.mean()
        expected = np.clip(mean + 1.5 * (pixels - mean), 0, 255)
    if expected is None:
        assert np.abs(out @ np.array([0.299, 0.587, 0.114]) - luma).max() <= 1.5  # brightness stays
        assert out[0, 0, 2] > out[0, 0, 0]  # orange has become blue
        assert (out[0, 1] == 40).all()  # grey has no hue
    else:
        assert np.abs(out - np.array(expected)).max() <= 1


# ---- loader -------------------------------------------------------------------------------------------------


def numbered(count):
    class Numbered:
        labels = LabelSpace.of_size(2)

        def __len__(self):
            return count

        def __getitem__(self, index):
            return Sample(
                torch.full((3, 4, 4), index, dtype=torch.uint8),
                torch.zeros(4, 4, dtype=torch.uint8),
                str(index),
            )

    return Numbered()


def noisy(sample, rng):
    return Sample(sample.image + int(rng.integers(0, 100)), sample.label, sample.name)


def test_every_image_once_per_epoch():
    batches = training_batches(numbered(7), lambda sample, rng: sample, 3, seed=5)
    names = [name for batch in itertools.islice(batches, 14) for name in batch.names]
    epochs = [names[k : k + 7] for k in range(0, 42, 7)]
    assert all(sorted(epoch) == [str(k) for k in range(7)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_their_number_only(workers):
    whole = list(itertools.islice(training_batches(numbered(7), noisy, 3, seed=5), 9))
    resumed = list(itertools.islice(training_batches(numbered(7), noisy, 3, seed=5, start=4, workers=workers), 5))
    for expected, batch in zip(whole[4:], resumed, strict=True):
        assert batch.names == expected.names
        assert torch.equal(batch.image, expected.image)
        assert batch.label.dtype == torch.int64
    other = next(training_batches(numbered(7), noisy, 3, seed=6))
    assert not torch.equal(other.image, whole[0].image)


def test_loader_mistakes():
    with pytest.raises(UserError, match="nothing to train on"):
        training_batches(numbered(0), noisy, 3, seed=0)
    with pytest.raises(UserError, match="must be of one size"):
        collate([coded(20, 20), coded(20, 30)])
