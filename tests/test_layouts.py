"""Layouts of one's own data: which names belong together, which splits they form, and what is said of the rest."""

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.formats.layout import DataFormat, splits_of
from degrid.data.formats.matching import masks_among, matched, without_image
from degrid.data.formats.table import FORMATS, recognise
from degrid.types import UserError


def label_of(key):
    """A label that no other key has: ids of 0 to 4."""
    return np.random.default_rng(sum(map(ord, key))).integers(0, 5, (3, 4)).astype(np.uint8)


def put_image(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(file)


def put_mask(file, key):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".npy":
        np.save(file, label_of(key))
    elif file.suffix == ".npz":
        np.savez_compressed(file, label_of(key))
    else:
        values = label_of(key)
        if file.suffix == ".webp":
            Image.fromarray(np.stack([values] * 3, -1)).save(file, lossless=True)
        else:
            Image.fromarray(values).save(file)


def make(root, pairs):
    """Images and masks, each pair with a label of its own."""
    for image, mask in pairs:
        put_image(root / image)
        put_mask(root / mask, image)


def check(root, pairs, splits=("train", "val")):
    """Whether every image has its own label; gives the images of each split."""
    truth, found = {image for image, _ in pairs}, {}
    for split in splits:
        dataset = open_dataset(root, split)
        found[split] = [source.image.relative_to(root).as_posix() for source in dataset.sources]
        for k, image in enumerate(found[split]):
            assert dataset[k].label.tolist() == label_of(image).tolist(), image
    assert {image for images in found.values() for image in images} == truth
    return found


PATTERNS = [
    ("images/{}.jpg", "masks/{}.jpg.png"),
    ("images/{}.jpg", "masks/{}.npy"),
    ("images/{}.jpg", "masks/{}.npz"),
    ("images/{}.jpg", "masks/{}_id.png"),
    ("images/{}.jpg", "masks/{}_labelIds.png"),
    ("images/{}.jpg", "masks/{}_semantic.png"),
    ("{}_color.jpg", "{}_label.png"),
    ("images/{}.jpg", "masks/{}.webp"),
    ("images/{}.jpg", "masks/{}.bmp"),
    ("images/{}.bmp", "masks/{}.gif"),
    ("images/{}.tif", "masks/{}.tif"),
    ("images/image_{}.jpg", "masks/mask_{}.png"),
    ("images/image_000{}.png", "labels/label_000{}.png"),
    ("images/img{}.png", "annotations/gt{}.png"),
    ("images/a/image_{}.png", "masks/a/mask_{}.png"),
    ("img_dir/{}.jpg", "ann_dir/{}.png"),
    ("Original/{}.png", "Ground Truth/{}.png"),
    ("images/c_{}_leftImg8bit.png", "masks/c_{}_gtFine_labelTrainIds.png"),
    ("images/c_{}_leftImg8bit.png", "masks/c_{}_gtFine_labelIds.png"),
    ("images/{}.jpg", "masks/{}_train_id.png"),
    ("{}_sat.jpg", "{}_mask.png"),
    ("{}.jpg", "{}_mask.npy"),
    ("{}.jpg", "{}.jpg.png"),
    ("{}.jpg", "{}.png"),
    ("image_{}.png", "mask_{}.png"),
    ("deep/image_000{}.jpg", "deep/label_000{}.png"),
    ("IMG-{}.JPG", "IMG-{}_label.PNG"),
    ("images/img_{}.jpg", "masks/mask_00{}.png"),
    ("{}_rgb.png", "{} mask.png"),
    ("images/IMG_{}.JPG", "masks/img_{}.png"),
    ("images/\u00e9{}.png", "masks/e\u0301{}.png"),
    ("x/{}.png", "Y/{}.png"),
]


@pytest.mark.parametrize(("image", "mask"), PATTERNS, ids=[" ".join(pattern) for pattern in PATTERNS])
def test_names_that_belong_together(tmp_path, image, mask):
    pairs = [(image.format(k), mask.format(k)) for k in range(4)]
    make(tmp_path, pairs)
    check(tmp_path, pairs)
    assert "the data name no splits" in notes_of(open_dataset(tmp_path))[0]


SPLITS = [
    ("images/train2017/{}.jpg", "images/val2017/{}.jpg", "masks/train2017/{}.png", "masks/val2017/{}.png"),
    ("train2017/{}.jpg", "val2017/{}.jpg", "masks/train2017/{}.png", "masks/val2017/{}.png"),
    ("train_2017/{}.jpg", "val_2017/{}.jpg", "train_2017_masks/{}.png", "val_2017_masks/{}.png"),
    ("img_dir/train/{}.jpg", "img_dir/val/{}.jpg", "ann_dir/train/{}.png", "ann_dir/val/{}.png"),
    ("train/img_dir/{}.jpg", "valid/img_dir/{}.jpg", "train/ann_dir/{}.png", "valid/ann_dir/{}.png"),
    ("train_images/{}.jpg", "val_images/{}.jpg", "train_masks/{}.png", "val_masks/{}.png"),
    ("images_train/{}.jpg", "images_val/{}.jpg", "masks_train/{}.png", "masks_val/{}.png"),
    ("Train/{}.jpg", "Validation/{}.jpg", "Train_labels/{}_mask.gif", "Validation_labels/{}_mask.gif"),
    ("train/{}.jpg", "valid/{}.jpg", "train/{}_mask.png", "valid/{}_mask.png"),
    ("train/{}_sat.jpg", "valid/{}_sat.jpg", "train/{}_mask.png", "valid/{}_mask.png"),
    ("train/image_{}.jpg", "val/image_{}.jpg", "train/mask_{}.png", "val/mask_{}.png"),
    ("train/{}.jpg", "val/{}.jpg", "train/{}.png", "val/{}.png"),
    ("trainImages/{}.jpg", "valImages/{}.jpg", "trainMasks/{}.png", "valMasks/{}.png"),
    ("x_train/{}.jpg", "x_val/{}.jpg", "y_train/{}.png", "y_val/{}.png"),
    ("tr/images/{}.jpg", "va/images/{}.jpg", "tr/masks/{}.png", "va/masks/{}.png"),
    ("TrainDataset/image/{}.jpg", "dev_set/image/{}.jpg", "TrainDataset/masks/{}.png", "dev_set/masks/{}.png"),
]


@pytest.mark.parametrize("patterns", SPLITS, ids=[patterns[0] + " " + patterns[2] for patterns in SPLITS])
def test_splits_are_those_of_the_folders(tmp_path, patterns):
    train, val = ([(patterns[s].format(k), patterns[s + 2].format(k)) for k in range(2 + s)] for s in (0, 1))
    make(tmp_path, train + val)
    found = check(tmp_path, train + val)
    assert found == {"train": [image for image, _ in train], "val": [image for image, _ in val]}
    assert not any("kept for" in note for note in notes_of(open_dataset(tmp_path)))


def test_capitals_and_accents_where_they_tell_names_apart():
    images = ["A.png", "a.png", "b.png", "\u00fc.png"]
    assert matched(images, ["a.png", "B_mask.png", "u\u0308_mask.png"]) == {
        "a.png": "a.png",
        "b.png": "B_mask.png",
        "\u00fc.png": "u\u0308_mask.png",
    }
    assert matched(["b.png"], ["B.png", "B.tif", "c.png"]) == {}
    assert matched(["AB.png", "aB.png"], ["ab.png"]) == {}


@pytest.mark.parametrize("line", ["/images/{0}.png /masks/{0}.png", "{0}"])
def test_lists_whose_accents_are_stored_in_another_way(tmp_path, line):
    pairs = [(f"images/u\u0308{k}.png", f"masks/u\u0308{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    for split, keys in (("train", (0, 1)), ("val", (2,))):
        (tmp_path / f"{split}.txt").write_text("".join(line.format(f"\u00fc{k}") + "\n" for k in keys))
    found = check(tmp_path, pairs)
    assert [len(images) for images in found.values()] == [2, 1]


def test_years_are_passed_over_with_care():
    assert splits_of(["train2017", "val_2012", "Test-1999", "train3", "trainaug", "more"]) == {
        "train2017": "train",
        "val_2012": "val",
        "Test-1999": "test",
    }
    assert splits_of(["TrainDataset", "val_data", "testset", "dataset"]) == {
        "TrainDataset": "train",
        "val_data": "val",
        "testset": "test",
    }
    several = {"train2014": "train2014", "train2017": "train2017", "val2017": "val", "train": "train"}
    assert splits_of(several) == several


def test_train_alone_is_divided(tmp_path):
    pairs = [(f"train/{k}.jpg", f"train_masks/{k}_mask.gif") for k in range(12)]
    make(tmp_path, pairs)
    put_image(tmp_path / "test" / "1.jpg")  # has no masks
    found = check(tmp_path, pairs)
    assert len(found["train"]) + len(found["val"]) == 12
    assert "kept for validation" in notes_of(open_dataset(tmp_path))[0]


@pytest.mark.parametrize(
    ("image", "mask", "place"),
    [
        ("images/{}.jpg", "masks/{}.png", "train.txt"),
        ("images/train/{}.jpg", "masks/train/{}.png", "ImageSets/Segmentation/train.txt"),
        ("{}.jpg", "{}_mask.png", "train.txt"),
        ("train/{}.jpg", "train/{}_mask.png", "splits/train.txt"),
    ],
)
@pytest.mark.parametrize("name", ["{name}", "./{image}", "{image}"])
def test_a_list_of_names_wins(tmp_path, image, mask, place, name):
    pairs = [(image.format(k), mask.format(k)) for k in range(5)]
    make(tmp_path, pairs)
    base = image.removeprefix("images/").removesuffix(".jpg")
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", (4, 0)), ("val", (2,))):
        lines = [name.format(name=base.format(k), image=image.format(k)) for k in chosen]
        (tmp_path / place).with_name(f"{split}.txt").write_text("\n".join(lines))
    found = {
        split: [s.image.relative_to(tmp_path).as_posix() for s in open_dataset(tmp_path, split).sources]
        for split in ("train", "val")
    }
    assert found == {"train": [image.format(4), image.format(0)], "val": [image.format(2)]}
    assert notes_of(open_dataset(tmp_path))[0] == "2 images are in none of the lists"


def test_a_list_of_val_alone(tmp_path):
    """fastai's CamVid: valid.txt, and everything else is for training; images without masks are not."""
    pairs = [(f"images/{k}.jpg", f"labels/{k}.png") for k in range(5)]
    make(tmp_path, pairs)
    put_image(tmp_path / "images/unlabelled.jpg")
    (tmp_path / "valid.txt").write_text("1.jpg\n3.jpg\n")
    assert check(tmp_path, pairs)["val"] == ["images/1.jpg", "images/3.jpg"]
    said = "no list is called train: 3 images are in none of the lists, and trained on"
    assert said in notes_of(open_dataset(tmp_path))


@pytest.mark.parametrize(
    ("mask", "further"), [("{}_1stHO.png", "{}_2ndHO.png"), ("{}.jpg___fuse.png", "{}.jpg___save.png")]
)
def test_further_masks_side_by_side_are_no_images(tmp_path, mask, further):
    """CHASE_DB1's second observer, and the pictures beside SuperAnnotate's masks."""
    names = [f"Image_{k:02d}L" for k in range(4)]
    pairs = [(f"{name}.jpg", mask.format(name)) for name in names]
    make(tmp_path, pairs)
    for name in names:
        put_mask(tmp_path / further.format(name), "other")
    check(tmp_path, pairs)


def test_several_datasets_below_a_folder_are_named(tmp_path):
    for task in ("task0", "task1"):
        make(tmp_path, [(f"{task}/JPEGImages/a.jpg", f"{task}/SegmentationClass/a.png")])
        (tmp_path / task / "labelmap.txt").write_text("".join(f"{k}:::\n" for k in "abcde"))
    with pytest.raises(UserError, match=r"some in each of \S+task0, \S+task1: give one of these folders, or join"):
        open_dataset(tmp_path)


def test_a_list_of_names_wins_over_split_folders(tmp_path):
    pairs = [(f"train/images/{k}.jpg", f"train/masks/{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    (tmp_path / "train.txt").write_text("train/images/2.jpg\n")
    assert [source.name for source in open_dataset(tmp_path).sources] == ["2"]


def test_class_names_in_the_folder_of_each_split(tmp_path):
    """As labelme2voc.py leaves them, called once for each split."""
    pairs = [
        (f"{split}/JPEGImages/{k}.jpg", f"{split}/SegmentationClass/{k}.png")
        for split in ("train", "val")
        for k in "ab"
    ]
    make(tmp_path, pairs)
    names = ("_background_", "car", "sign", "tree", "road")
    for split in ("train", "val"):
        (tmp_path / split / "class_names.txt").write_text("\n".join(names))
    check(tmp_path, pairs)
    assert open_dataset(tmp_path).labels.names == names
    (tmp_path / "val" / "class_names.txt").write_text("\n".join(reversed(names)))
    with pytest.raises(UserError, match=r"train/class_names.txt and .*val/class_names.txt name different classes"):
        open_dataset(tmp_path)


def test_two_folders_of_masks(tmp_path):
    pairs = [(f"images/{k}.jpg", f"masks/{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.1 0.1 0.2 0.2 0.3 0.1\n")  # polygons are no masks
    assert "masks is not read" not in " ".join(notes_of(open_dataset(tmp_path)))
    make(tmp_path, [(image, mask.replace("masks", "labels")) for image, mask in pairs])
    check(tmp_path, pairs)
    assert notes_of(open_dataset(tmp_path))[1] == "the labels are those of masks; labels is not read"
    for split in ("train", "val"):
        make(tmp_path / "b" / split, pairs)
        make(tmp_path / "b" / split, [(image, mask.replace("masks", "gt")) for image, mask in pairs])
    assert notes_of(open_dataset(tmp_path / "b"))[0] == "the labels are those of masks; gt is not read"


def test_a_folder_without_masks_is_passed_over(tmp_path):
    pairs = [(f"images/{k}.jpg", f"annotations/{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.1 0.1 0.2 0.2 0.3 0.1\n")
    check(tmp_path, pairs)


def test_names_that_fit_several_are_left_alone():
    images = ["image_1.jpg", "img_1.jpg", "photo_2.jpg"]
    masks = ["mask_1.png", "label_2.png", "gt_2.png"]
    assert matched(images, masks) == {}
    assert without_image(masks, {}) == masks
    assert matched(["mask.jpg"], ["image.png"]) == {}  # nothing is left of the names without these words


def test_further_files_of_an_image_are_no_masks_without_image():
    images = ["ulm_1_leftImg8bit.png"]
    masks = [f"ulm_1_gtFine_{word}.png" for word in ("color", "instanceIds", "labelIds", "labelTrainIds")]
    found = matched(images, masks)
    assert found == {images[0]: masks[3]}
    assert without_image([*masks, "bonn_1_gtFine_color.png"], found) == ["bonn_1_gtFine_color.png"]


@pytest.mark.parametrize("ending", ["id", "label", "labelIds"])
@pytest.mark.parametrize("folder", ["masks/", ""])
def test_pictures_of_the_masks_in_colors_beside_them(tmp_path, ending, folder):
    pairs = [(f"{'images/' * bool(folder)}{k}.jpg", f"{folder}{k}_{ending}.png") for k in range(3)]
    make(tmp_path, pairs)
    for k in range(3):
        put_image(tmp_path / f"{folder}{k}_color.png")
    check(tmp_path, pairs)
    assert check_data(tmp_path, accept=["grey-edges"]).ok  # none is a mask without an image
    said = f"the labels are those of 0_{ending}.png and the like; their pictures in colours (0_color.png) are not read"
    assert [note.replace("2_", "0_").replace("1_", "0_") for note in notes_of(open_dataset(tmp_path))][1] == said


def test_instances_beside_semantic_masks(tmp_path):
    pairs = [(f"images/{k}.jpg", f"masks/{k}_semantic.png") for k in range(3)]
    make(tmp_path, pairs)
    make(tmp_path, [(image, mask.replace("semantic", "instance")) for image, mask in pairs])
    for k in range(3):
        put_mask(tmp_path / f"masks/{k}_semantic.png", f"images/{k}.jpg")
    check(tmp_path, pairs)
    assert check_data(tmp_path, accept=["grey-edges"]).ok


def test_lists_that_python_wrote_on_windows(tmp_path):
    """glob joins with a backslash what was given with slashes."""
    pairs = [(f"images/{k}.jpg", f"masks/{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    lines = [f"C:/my photos/images\\{k}.jpg C:/my photos/masks\\{k}.png\n" for k in range(3)]
    (tmp_path / "train.txt").write_text("".join(lines[:2]))
    (tmp_path / "val.txt").write_text(lines[2])
    assert list(map(len, check(tmp_path, pairs).values())) == [2, 1]
    (tmp_path / "train.txt").write_text("C:/my photos/images\\0.jpg\nC:/my photos/images\\1.jpg\n")
    (tmp_path / "val.txt").write_text("C:/my photos/images\\2.jpg\n")
    assert list(map(len, check(tmp_path, pairs).values())) == [2, 1]


def test_lists_of_masks_before_images_are_refused(tmp_path):
    make(tmp_path, [(f"images/{k}.png", f"masks/{k}.png") for k in range(3)])
    (tmp_path / "train.txt").write_text("".join(f"masks/{k}.png images/{k}.png\n" for k in range(3)))
    with pytest.raises(UserError, match=r"train.txt: the first column \(masks/0.png\) seems to be masks, the second"):
        open_dataset(tmp_path)
    (tmp_path / "train.txt").write_text("".join(f"images/{k}.png masks/{k}.png\n" for k in range(3)))
    assert open_dataset(tmp_path).sources[0].mask == tmp_path / "masks" / "0.png"


def test_masks_in_colors_that_say_so_in_their_names(tmp_path):
    for k in range(3):
        put_image(tmp_path / "images" / f"{k}.jpg")
        put_image(tmp_path / "masks" / f"{k}_color.png")
    (tmp_path / "classes.csv").write_text("name,r,g,b\nroad,0,0,0\ncar,9,9,9\n")
    assert not open_dataset(tmp_path)[0].label.any()


def test_masks_among_images():
    files = [
        "a.jpg",
        "a_mask.png",
        "b.png",
        "label_1.jpg",
        "label_1_mask.png",
        "mask_7.png",
        "c.jpg",
        "c.JPG.png",
        "d.jpeg",
        "d.png",
    ]
    assert masks_among(files) == {"a_mask.png", "label_1_mask.png", "d.png"}
    assert masks_among(["c.jpg", "c.jpg.png"]) == {"c.jpg.png"}
    # Photographs of masks, and one photograph in two forms, are no dataset.
    assert masks_among(["mask_1.jpg", "mask_2.jpg"]) == set()
    assert masks_among(["a.jpg", "a.jpeg"]) == set()


def test_images_that_are_not_read_are_counted(tmp_path):
    pairs = [(f"images/{k}.jpg", f"masks/{k}.png") for k in range(3)]
    make(tmp_path, pairs)
    for name in ("x.HEIC", "y.heic", "z.nii.gz", "notes.gz", ".w.heic"):
        (tmp_path / "images" / name).write_bytes(b"")
    assert notes_of(open_dataset(tmp_path))[1] == (
        "files of kinds that are not read as images are left out: 2 .heic, 1 .nii.gz; save them as JPEG or PNG"
    )


def test_what_lies_there_is_said(tmp_path):
    for name in ("photos/a.jpg", "photos/b.jpg", "c.json", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"which holds 1 folder and these files: 2 \.jpg, 1 \.json\. Looked for"):
        open_dataset(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty, which holds no file\. Looked for"):
        open_dataset(tmp_path / "empty")
    make(tmp_path / "inner", [(f"images/{k}.jpg", f"masks/{k}.png") for k in range(3)])
    with pytest.raises(UserError, match=r"but there are some in .*inner: give that folder"):
        open_dataset(tmp_path)


def test_each_row_of_the_table_is_a_format_of_its_own():
    formats = [row.load() for row in FORMATS.values()]
    assert all(issubclass(made, DataFormat) for made in formats)
    assert len(set(formats)) == len(formats)


def test_a_format_is_tried_where_a_name_in_any_depth_and_in_any_letters_speaks_for_it(tmp_path, monkeypatch):
    make(tmp_path, [("images/a.jpg", "masks/a.png")])
    (tmp_path / "x" / "LeftImg8bit").mkdir(parents=True)
    (tmp_path / "x" / "notes.JSON").touch()
    tried = []
    for kind, row in FORMATS.items():
        monkeypatch.setattr(row.load(), "find", lambda self, path, kind=kind: tried.append(kind))
    with pytest.raises(UserError, match="no images with masks"):
        recognise(tmp_path)
    assert {"Cityscapes", "Hugging Face", "folder"} <= set(tried)
    assert not {"VOC", "lists", "LabelMe XML", "CVAT", "YOLO polygons", "dataset.yaml"} & set(tried)


def test_images_of_several_splits_have_one_folder_of_masks(tmp_path):
    places = [("train", "a"), ("train", "b"), ("train", "c"), ("val", "d"), ("val", "e")]
    make(tmp_path / "one", [(f"{split}/{name}.jpg", f"masks/{name}.png") for split, name in places])
    report = check_data(tmp_path / "one")
    assert report.ok
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 3, "val": 2}
    assert not any("without an image" in note for note in report.notes)
    both = [open_dataset(tmp_path / "one", split) for split in ("train", "val")]
    assert [sample.name for dataset in both for sample in dataset] == ["a", "b", "c", "d", "e"]


def test_masks_that_may_be_those_of_images_of_either_split_are_refused(tmp_path):
    make(tmp_path, [(f"{split}/{name}.jpg", f"masks/{name}.png") for split in ("train", "val") for name in "ab"])
    with pytest.raises(UserError, match="no images with masks found"):
        check_data(tmp_path)
