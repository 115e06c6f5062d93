"""Folders, lists and splits under the names that people give them: which mask is whose, and what is trained on."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.formats.layout import splits_of
from degrid.types import UserError


def ids_of(k):
    return np.roll(
        np.repeat(np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3, 4, axis=0), 4, axis=1), k, axis=1
    )


def pair(image, mask, k):
    """An image and its mask, both of which k tells from others."""
    for file, values in (
        (image, np.random.default_rng(k).integers(0, 256, (24, 32, 3), np.uint8)),
        (mask, ids_of(k)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(file)


def found(root):
    """The images of each split, by the numbers that they were made of, which are those of their masks."""
    splits = {}
    report = check_data(root)
    assert not report.problems
    for split in report.splits:
        dataset = open_dataset(root, split)
        for sample in (dataset[k] for k in range(len(dataset))):
            k = next(k for k in range(40) if np.array_equal(sample.label, ids_of(k)))
            image = np.random.default_rng(k).integers(0, 256, (24, 32, 3), np.uint8)
            assert np.array_equal(sample.image.permute(1, 2, 0), image)
            splits.setdefault(split, []).append(k)
    return splits


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("original_images/{}.png", "label_images_semantic/{}.png"),
        ("src/{}.png", "gt/{}.png"),
        ("CXR_png/{}.png", "mask/{}_mask.png"),
        ("Bilder/{}.png", "Masken/{}.png"),
        ("imágenes/{}.png", "máscaras/{}.png"),
        ("imagens/{}.png", "mascaras/{}.png"),
        ("图像/{}.png", "标签/{}.png"),
        ("изображения/{}.png", "маски/{}.png"),
        ("images/{}.png", "annotations/trimaps/{}.png"),
        ("ColorImage/Record001/{}.png", "Label/Record001/{}_bin.png"),
        ("images/frame_{}.png", "groundtruth/gt_frame_{}.png"),
        ("imagesTr/img{}_0000.png", "labelsTr/img{}.png"),
        ("tiles/s [x={},y=0].png", "tiles/s [x={},y=0]-labelled.png"),
        ("s{}.png", "s{}_Simple Segmentation.png"),
        ("a{}.png", "a{}.png___fuse.png"),
        ("images/s{}_rgb.png", "masks/s{}_class.png"),
    ],
)
def test_folders_and_endings(tmp_path, images, masks):
    for k in range(6):
        pair(tmp_path / images.format(k), tmp_path / masks.format(k), k)
    assert sorted(k for split in found(tmp_path).values() for k in split) == [*range(6)]


def test_a_word_for_images_wins_over_other_folders(tmp_path):
    """ScanNet and Freiburg's forest: depth and near infrared lie beside the colours."""
    for k in range(4):
        place = tmp_path / f"scene{k}"
        pair(place / "color/0.png", place / "label/0.png", k)
        pair(place / "depth/0.png", place / "other/0.png", k + 20)
    assert sorted(k for split in found(tmp_path).values() for k in split) == [*range(4)]


@pytest.mark.parametrize(
    "folders",
    [
        [("images", "masks_road"), ("images", "masks_car")],  # one for each class
        [("A", "label"), ("B", "label")],  # before and after
    ],
)
def test_what_several_folders_could_be_is_asked(tmp_path, folders):
    for place, (images, masks) in enumerate(folders):
        for k in range(4):
            pair(tmp_path / f"{images}/{k}.png", tmp_path / f"{masks}/{k}.png", k + 10 * place)
    with pytest.raises(UserError, match="no images with masks found.*hold files of the same names"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("images", "masks", "splits"),
    [
        ("{0}/{0}-org-img/{1}.png", "{0}/{0}-label-img/{1}_lab.png", ("train", "val", "test")),  # FloodNet
        (
            "X_Task1-2_{0}_Input/{1}.png",
            "X_Task1_{0}_GroundTruth/{1}_segmentation.png",
            ("Training", "Validation", "Test"),
        ),
        ("{0}crop/{1}.png", "{0}crop/{1}_mask.png", ("train", "val", "test")),  # Crack500
        ("{0}/Bilder/{1}.png", "{0}/Masken/{1}.png", ("Trainingsdaten", "Validierungsdaten", "Testdaten")),
        ("{0}/easy/images/{1}.png", "{0}/easy/masks/{1}_mask.png", ("train", "validation", "test")),  # Trans10K
        ("{0}_{1}.png", "{0}_{1}_anno.png", ("train", "valA", "testA")),  # GlaS
        ("images{0}/{1}.png", "labels{0}/{1}.png", ("Tr", "Val", "Ts")),
    ],
)
def test_splits(tmp_path, images, masks, splits):
    for k, split in enumerate([splits[0]] * 3 + [splits[1]] * 2 + [splits[2]]):
        pair(tmp_path / images.format(split, k), tmp_path / masks.format(split, k), k)
    assert {split: sorted(numbers) for split, numbers in found(tmp_path).items()} == {
        "train": [0, 1, 2],
        "val": [3, 4],
        "test": [5],
    }


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ("{}/images/{}.png", "{}/masks/{}.png", "val/masks/7.png"),
        ("{}/{}.png", "{}_labels/{}.png", "val_masks/7.png"),
        ("{}_images/{}.png", "{}_masks/{}.png", "val_images_masks/7.png"),
    ],
)
def test_val_without_masks_is_not_replaced_by_a_part_of_train(tmp_path, images, masks, expected):
    for k in range(5):
        pair(tmp_path / images.format("train", k), tmp_path / masks.format("train", k), k)
    pair(tmp_path / images.format("val", 7), tmp_path / expected, 7)
    assert found(tmp_path) == {"train": [*range(5)], "val": [7]}  # the message names a place that is read
    (tmp_path / expected).unlink()
    problem = next(problem for problem in check_data(tmp_path).problems if "1 image without a mask" in problem)
    assert problem.endswith(f"{tmp_path / images.format('val', 7)} (expected {tmp_path / expected})")
    with pytest.raises(UserError, match="1 of 1 images in the split.*have no mask"):
        open_dataset(tmp_path, "val")
    test = tmp_path / images.format("test", 8)  # unlabelled images to test are usual
    test.parent.mkdir(parents=True)
    (tmp_path / images.format("val", 7)).rename(test)
    report = check_data(tmp_path)
    assert report.ok
    assert [*report.splits] == ["train", "val"]
    assert "1 image of test without masks: left out, since nothing can be scored" in report.notes


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that differ only in capitals")
def test_folders_of_one_split_in_two_spellings(tmp_path):
    for place in ("train", "Train", "val", "valid"):
        for k in range(2):
            pair(tmp_path / place / "images" / f"{k}.png", tmp_path / place / "masks" / f"{k}.png", k)
    assert [sample.name for sample in open_dataset(tmp_path, "train")] == ["Train/0", "Train/1", "train/0", "train/1"]
    assert [sample.name for sample in open_dataset(tmp_path, "val")] == ["val/0", "val/1", "valid/0", "valid/1"]


def test_masks_of_val_among_those_of_train(tmp_path):
    for k in range(5):
        split = "val" if k == 4 else "train"
        pair(tmp_path / f"{split}/images/{k}.png", tmp_path / f"train/masks/{k}.png", k)
    with pytest.raises(
        UserError, match=r"val/images/4.png is in val, but its mask .*train/masks/4.png is among"
    ) as told:
        open_dataset(tmp_path)
    assert 'write "val: val/images" and "masks: train/masks" in' in str(told.value)
    (tmp_path / "dataset.yaml").write_text("train: train/images\nval: val/images\nmasks: train/masks\n")
    assert found(tmp_path) == {"train": [*range(4)], "val": [4]}
    (tmp_path / "dataset.yaml").unlink()
    (tmp_path / "val/masks").mkdir()
    (tmp_path / "train/masks/4.png").rename(tmp_path / "val/masks/4.png")
    assert found(tmp_path) == {"train": [*range(4)], "val": [4]}


def test_val_beside_folders_that_are_divided_by_chance(tmp_path):
    for k in range(5):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    (tmp_path / "val/images").mkdir(parents=True)
    assert check_data(tmp_path).ok
    shutil.copyfile(tmp_path / "images/0.png", tmp_path / "val/images/7.png")
    with pytest.raises(
        UserError, match=r"val holds 1 image that no label belongs to, such as 7.png, and val would be a"
    ):
        open_dataset(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    assert check_data(tmp_path).ok


def test_val_that_vocs_lists_name_without_masks(tmp_path):
    for k in range(5):
        pair(tmp_path / f"JPEGImages/{k}.jpg", tmp_path / f"SegmentationClass/{k}.png", k)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "labelmap.txt").write_text("".join(f"{name}:{k},9,9::\n" for k, name in enumerate("abc")))
    for split, numbers in (("train", "0123"), ("val", "4")):
        (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(numbers))
    assert check_data(tmp_path).ok
    (tmp_path / "SegmentationClass/4.png").unlink()
    assert "1 image without a mask" in check_data(tmp_path).problems[0]
    with pytest.raises(UserError, match="1 of 1 images in the split"):
        open_dataset(tmp_path, "val")


def test_masks_of_val_without_images(tmp_path):
    for k in range(5):
        pair(tmp_path / f"train/images/{k}.png", tmp_path / f"train/masks/{k}.png", k)
        pair(tmp_path / f"elsewhere/{k}.png", tmp_path / f"val/masks/{k}.png", k)
    with pytest.raises(UserError, match="val/masks holds masks, but the images are missing; put them in .*val/images"):
        open_dataset(tmp_path)


def test_the_folder_of_images_without_masks_is_not_passed_over(tmp_path):
    for k in range(4):
        pair(tmp_path / f"rgb/shot{k}.png", tmp_path / f"elsewhere/{k}.png", k)
        pair(tmp_path / f"nir_color/{k}.png", tmp_path / f"GT_color/{k}.png", k)
    with pytest.raises(UserError, match="elsewhere, nir_color hold files of the same names as GT_color"):
        open_dataset(tmp_path)


NAMES = [f"v{k // 2}/{k}" for k in range(8)]


def lines(names, form="{}"):
    return "".join(form.format(name) + "\n" for name in names)


@pytest.mark.parametrize(
    "files",
    [
        {"train.txt": lines(NAMES[:6], "{} 1 1 1"), "val.txt": lines(NAMES[6:], "{}  -1")},
        {"train.csv": lines(["filename", *NAMES[:6]]), "val.csv": lines(["filename", *NAMES[6:]])},
        {"train.txt": lines(NAMES[:6], "masks/{}_mask.png"), "val.txt": lines(NAMES[6:], "masks/{}_mask.png")},
        {"split.csv": ",image,fold\n" + lines(f"{k},{n},{'train' if k < 6 else 'val'}" for k, n in enumerate(NAMES))},
        {"train.txt": "v0\nv1\nv2\n", "val.txt": "v3\n"},
        {"ImageSets/2017/train.txt": "v0\nv1\nv2\n", "ImageSets/2017/val.txt": "v3\n"},
        {"splits.json": json.dumps({"train": NAMES[:6], "val": [f"{name}.png" for name in NAMES[6:]]})},
        {
            "dataset.json": json.dumps(
                {
                    "training": [{"image": f"./images/{name}.png", "label": "x.png"} for name in NAMES[:6]],
                    "validation": [{"image": f"./images/{name}.png"} for name in NAMES[6:]],
                }
            )
        },
        {
            "training.odgt": lines(json.dumps({"fpath_img": f"images/{name}.png"}) for name in NAMES[:6]),
            "validation.odgt": lines(json.dumps({"fpath_img": f"images/{name}.png"}) for name in NAMES[6:]),
        },
        {
            "dataset.csv": "image_path;mask_path;split\n"
            + lines(
                f"images/{name}.png;masks/{name}_mask.png;{'train' if k < 6 else 'val'}" for k, name in enumerate(NAMES)
            )
        },
    ],
)
def test_lists(tmp_path, files):
    for k, name in enumerate(NAMES):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}_mask.png", k)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert found(tmp_path) == {"train": [0, 1, 2, 3, 4, 5], "val": [6, 7]}


@pytest.mark.parametrize("folder", ["lists", "splits", "file_lists"])
def test_lists_of_pairs_in_a_folder_of_their_own(tmp_path, folder):
    for k in range(6):
        pair(tmp_path / f"imgs/{k}.png", tmp_path / f"lab/{k}.png", k)
    (tmp_path / folder).mkdir()
    for split, numbers in (("train", (0, 1, 2, 5)), ("val", (3, 4))):
        (tmp_path / folder / f"{split}.txt").write_text("".join(f"imgs/{k}.png lab/{k}.png\n" for k in numbers))
    assert found(tmp_path) == {"train": [0, 1, 2, 5], "val": [3, 4]}


def test_lists_beside_vocs_folders(tmp_path):
    """AeroScapes has ImageSets/trn.txt; labelImg's users have ImageSets/Main, which lists images without masks, too."""
    for k in range(5):
        pair(tmp_path / f"JPEGImages/{k}.png", tmp_path / f"SegmentationClass/{k}.png", k)
    pair(tmp_path / "JPEGImages/x.png", tmp_path / "elsewhere/x.png", 9)
    for place in ("ImageSets/trn.txt", "ImageSets/Main/train.txt"):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("0\n1\n2\nx\n")
        file.with_name("val.txt").write_text("3\n4\n")
        assert found(tmp_path) == {"train": [0, 1, 2], "val": [3, 4]}
        file.unlink()
        file.with_name("val.txt").unlink()


def test_masks_in_a_folder_for_each_image(tmp_path):
    for k in range(3):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}/road.png", k)
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}/car.png", k)
    assert any(
        "0 has several masks (0/car.png, 0/road.png): if there is one for each class" in n
        for n in check_data(tmp_path).notes
    )


def test_the_folder_two_levels_below_is_named(tmp_path):
    for k in range(4):
        pair(tmp_path / f"archive/data/images/{k}.png", tmp_path / f"archive/data/masks/{k}.png", k)
        pair(tmp_path / f"archive/other/{k}.png", tmp_path / f"archive/more/{k}.png", k)
    with pytest.raises(UserError, match=r"but there are some in .*archive/data: give that folder"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("train.csv", "ImageId,EncodedPixels\n0.png,1 3 10 2\n", "holds the masks as run-length codes"),
        ("scan.dcm", "DICM", r"np.save\(.*pydicom.dcmread"),
        ("scan.nii.gz", "x", r"one file for each slice: np.save\(.*nibabel.load"),
        ("train.h5", "x", "h5py.File"),
        ("PixelLabelData/Label_1.png", "x", "MATLAB's Image Labeler"),
        ("export.ndjson", '{"data_row": {}}\n', "is Labelbox'"),
    ],
)
def test_what_lies_there_instead(tmp_path, name, content, said):
    pair(tmp_path / "photos/0.png", tmp_path / "x.png", 0)
    (tmp_path / "x.png").unlink()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        open_dataset(tmp_path)


def test_the_line_that_draws_run_lengths():
    """The one in the message, by hand: pixels count from 1, down the columns."""
    from degrid.data.formats import unread

    width, height, codes = 3, 2, "1 1 4 2"
    runs = np.array(codes.split(), int).reshape(-1, 2)
    ids = np.zeros(width * height, np.uint8)
    for start, length in runs:
        ids[start - 1 : start - 1 + length] = 1
    assert ids.reshape(width, height).T.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert "ids.reshape(width, height).T" in unread.DRAW_RUNS


def test_splits_of_a_table_are_said(tmp_path):
    for k, name in enumerate(NAMES):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png", k)
    (tmp_path / "splits.json").write_text(json.dumps({"train": NAMES[:6], "val": NAMES[6:]}))
    assert "the splits are those of splits.json" in notes_of(open_dataset(tmp_path))
    (tmp_path / "splits.json").write_text(json.dumps({"train": 5, "val": [1]}))
    assert any("splits.json is not read" in note for note in notes_of(open_dataset(tmp_path)))


def test_parts_of_a_split_have_numbers(tmp_path):
    for k in range(9):
        folder = tmp_path / ("Train1", "Train2", "Val1")[k // 3]
        pair(folder / f"images/{k}.png", folder / f"masks/{k}.png", k)
    assert found(tmp_path) == {"train": [*range(6)], "val": [6, 7, 8]}
    assert not splits_of(["Train1", "Train2", "Val1", "Val2"])  # may be folds, which share images


def test_a_table_says_splits_as_people_write_them(tmp_path):
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    (tmp_path / "index.csv").write_text("Image, Split\n0.png,TRAIN \n1.png,Train\n2.png, train\n3.png, Val.\n")
    assert found(tmp_path) == {"train": [0, 1, 2], "val": [3]}
