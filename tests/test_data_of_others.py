"""Data as other people have them: what was read in silence as something else, or ended without a way on."""

import json

import numpy as np
import pytest
from mask_writers import tiff
from PIL import Image

from degrid.data import check_data, notes_of, open_dataset
from degrid.data.formats.layout import splits_of
from degrid.data.formats.matching import masks_among
from degrid.raster import tiff_header
from degrid.types import UserError

IDS = np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8) % 2, 4, axis=0).repeat(4, axis=1)


def put(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def put_image(file, seed):
    put(file, np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8))


def pair(image, mask, seed, ids=IDS):
    put_image(image, seed)
    put(mask, np.roll(ids, seed, axis=1))


def problems(root):
    return " | ".join(check_data(root).problems)


# ---- values -------------------------------------------------------------------------------------------------


def test_white_in_colour_pictures_beside_ids(tmp_path):
    """Masks of 0 and 1 among pictures in black and white, whose white would be void."""
    for k in range(6):
        grey = IDS if k % 2 else np.dstack([IDS * 255] * 3)
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, grey)
    assert "3 masks hold 0 and 1, 3 hold 0 and 255, and none holds 1 and 255" in problems(tmp_path)
    (tmp_path / "dataset.yaml").write_text("threshold: 1")
    assert not problems(tmp_path)
    assert open_dataset(tmp_path)[0].label.tolist() == IDS.tolist()


def test_white_alone_beside_several_ids(tmp_path):
    """255 that comes only in masks without any class is an object, or else they teach the background alone."""
    for k in range(6):
        values = [[0, 1], [0, 2], [0, 255]][k % 3]
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, np.array(values, np.uint8)[IDS])
    assert "4 masks hold other ids, 2 hold 0 and 255 alone, and none holds both, so that 255 is void" in problems(
        tmp_path
    )
    (tmp_path / "dataset.yaml").write_text("void: [255]")
    assert not problems(tmp_path)
    pair(tmp_path / "images/6.png", tmp_path / "masks/6.png", 6, np.where(IDS, np.uint8(255), np.uint8(1)))
    (tmp_path / "dataset.yaml").unlink()
    assert not problems(tmp_path)  # as void beside a class


@pytest.mark.parametrize("off", [(1, 0, 0), (0, 2, 3)])
def test_colours_near_those_of_the_classes(tmp_path, off):
    (tmp_path / "classes.csv").write_text("name,r,g,b\nroad,0,0,0\ncar,100,50,200\n")
    colours = np.array([[0, 0, 0], np.add((100, 50, 200), off)], np.uint8)
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, colours[IDS])
    assert "which are near those of classes but not equal" in problems(tmp_path)
    (tmp_path / "dataset.yaml").write_text("nearest_color: 30")
    assert not problems(tmp_path)
    assert open_dataset(tmp_path)[0].label.tolist() == IDS.tolist()


@pytest.mark.parametrize("named", [False, True])
def test_ids_in_one_channel(tmp_path, named):
    """As CARLA's cameras write them."""
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, np.dstack([IDS + 4, 0 * IDS, 0 * IDS]))
    said = r'differ in red alone: if that is the id.*getchannel\("R"\)'
    if named:
        (tmp_path / "classes.txt").write_text("road\ncar\n")
        assert "all of them differ in red alone" in problems(tmp_path)
    else:
        with pytest.raises(UserError, match=f"All of them {said}"):
            open_dataset(tmp_path)


def test_colours_in_one_channel_are_colours(tmp_path):
    """Massachusetts' buildings are red."""
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, np.dstack([IDS * 255, 0 * IDS, 0 * IDS]))
    with pytest.raises(UserError, match="nothing says which colour") as refused:
        open_dataset(tmp_path)
    assert "getchannel" not in str(refused.value)


# ---- which mask is whose ------------------------------------------------------------------------------------


def test_the_field_of_view_beside_manual_labels(tmp_path):
    """HRF: manual1 is the label, mask is the same for all."""
    for k in range(4):
        pair(tmp_path / f"images/0{k}_dr.png", tmp_path / f"manual1/0{k}_dr.tif", k, IDS * 255)
        put(tmp_path / f"mask/0{k}_dr_mask.tif", np.full_like(IDS, 255))
    train = open_dataset(tmp_path)
    assert {source.mask.parent.name for source in train.sources} == {"manual1"}
    assert "the labels are those of manual1; mask is not read" in notes_of(train)


def test_further_masks_of_an_image(tmp_path):
    """BUSI has a mask for each tumour: the second one is no image, and no background either."""
    assert masks_among(["a (1).png", "a (1)_mask.png", "a (1)_mask_1.png", "b_2.png"]) == {
        "a (1)_mask.png",
        "a (1)_mask_1.png",
    }
    for k in range(4):
        pair(tmp_path / f"benign ({k}).png", tmp_path / f"benign ({k})_mask.png", k, IDS * 255)
    assert not problems(tmp_path)
    put(tmp_path / "benign (2)_mask_1.png", IDS[::-1] * 255)
    assert "benign (2).png has several masks" in problems(tmp_path)
    assert "images without a mask" not in problems(tmp_path)


def test_folders_of_benchmarks_by_words(tmp_path):
    """DeepCrack's train_lab; ACDC's gt for rgb_anon, below the weather."""
    for split, first in (("train", 0), ("test", 9)):
        for k in range(first, first + 2):
            pair(tmp_path / f"crack/{split}_img/{k}.jpg", tmp_path / f"crack/{split}_lab/{k}.png", k, IDS * 255)
            place = f"{'train' if split == 'train' else 'val'}/x/{k}_frame_1"
            pair(
                tmp_path / f"acdc/rgb_anon/fog/{place}_rgb_anon.png",
                tmp_path / f"acdc/gt/fog/{place}_gt_labelTrainIds.png",
                k,
            )
    assert len(open_dataset(tmp_path / "crack", "test")) == 2
    assert len(open_dataset(tmp_path / "acdc", "val")) == 2
    assert not problems(tmp_path / "acdc")


# ---- scenes and splits --------------------------------------------------------------------------------------


def test_scenes_with_folders_of_their_own(tmp_path):
    """UAVid: uavid_train/seq1/Images; names come again in every scene."""
    for split, count in (("train", 3), ("val", 2)):
        for scene in range(count):
            for k in range(2):
                base = tmp_path / f"uavid_{split}/seq{scene}"
                pair(base / f"Images/{k}.png", base / f"Labels/{k}.png", scene + 5 * k + 50 * (split == "val"))
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, "val")
    assert (len(train), len(val)) == (6, 4)
    for dataset in (train, val):
        for k, source in enumerate(dataset.sources):
            assert source.mask.parent.parent == source.image.parent.parent
            assert dataset[k].label.tolist() == np.asarray(Image.open(source.mask)).tolist()
    assert check_data(tmp_path).kind == "split folders"


def test_datasets_beside_each_other_are_no_scenes(tmp_path):
    for k, name in enumerate("ab"):
        for number in range(2):
            pair(tmp_path / name / f"images/{number}.png", tmp_path / name / f"masks/{number}.png", 2 * k + number)
    assert check_data(tmp_path).kind == "scenes"
    (tmp_path / "b/classes.txt").write_text("road\ncar\n")
    with pytest.raises(
        UserError, match=r"but there are some in each of \S+a, \S+b: give one of these folders, or join"
    ):
        open_dataset(tmp_path)


def test_a_mask_for_each_object_in_the_folder_of_an_image(tmp_path):
    """The Data Science Bowl's nuclei."""
    truth = {}
    for k in range(4):
        put_image(tmp_path / f"stage1_train/{k}/images/{k}.png", k)
        objects = np.random.default_rng(k).random((3, 24, 32)) < 0.2
        truth[f"stage1_train/{k}/images/{k}"] = objects.any(axis=0)
        for each in range(3):  # one image's in one bit
            white = objects[each] if k == 1 else objects[each] * np.uint8(255)
            put(tmp_path / f"stage1_train/{k}/masks/{k}f{each}.png", white)
    put_image(tmp_path / "stage1_test/9/images/9.png", 9)
    for table, names in ((None, ("background", "object")), ("nucleus\nbackground\n", ("nucleus", "background"))):
        if table:
            (tmp_path / "classes.txt").write_text(table)
        report = check_data(tmp_path)
        assert report.ok
        assert "1 image has no folder of masks beside: left out" in report.notes
        for dataset in (open_dataset(tmp_path, split, accept=()) for split in ("train", "val")):
            assert dataset.labels.names == names
            for sample in dataset:
                assert np.array_equal(sample.label == (0 if table else 1), truth[sample.name])
    (tmp_path / "stage1_train/1/masks/1f0.png").rename(tmp_path / "stage1_train/1/masks/0f0.png")
    with pytest.raises(
        UserError, match=r"masks of the same names \(0f0.png in 2\), which may be classes.*: join those"
    ):
        open_dataset(tmp_path)


def test_splits_in_the_names_of_images(tmp_path):
    for k, name in enumerate(["train_1", "train_2", "train_3", "val_1", "test_1"]):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png", k)
    report = check_data(tmp_path)
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 3, "val": 1, "test": 1}
    assert any(note.startswith("the splits are those that the images' names say") for note in report.notes)
    pair(tmp_path / "images/other.png", tmp_path / "masks/other.png", 9)  # of which no name says it
    assert set(check_data(tmp_path).splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["uavid_train", "uavid_val"], {"uavid_train": "train", "uavid_val": "val"}),
        (["uavid-train", "uavid-valid", "maps"], {"uavid-train": "train", "uavid-valid": "val"}),
        (["img_train", "img_val", "ann_train", "ann_val"], {}),  # which of both?
        (["road_train", "roof_train"], {}),
        (["train", "road_val"], {"train": "train"}),
        (["DUTS-TR", "DUTS-TE"], {"DUTS-TR": "train", "DUTS-TE": "test"}),
        (["a_train", "a_trainval", "a_val"], {"a_train": "train", "a_val": "val"}),
    ],
)
def test_splits_behind_one_word(names, found):
    assert splits_of(names) == found


@pytest.mark.parametrize(
    ("files", "doubted"),
    [
        (["train_val_split.json"], True),
        (["splits.yaml"], True),
        (["train.npy", "val.npy"], True),
        (["train.csv"], False),  # Kaggle's, of all images
    ],
)
def test_splits_in_files_that_are_not_read(tmp_path, files, doubted):
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    for file in files:
        (tmp_path / file).write_text("{}" if file.endswith("json") else "id,rle\n0,1 5\n")
    report = check_data(tmp_path)
    assert any(f"{', '.join(files)} is not read: train.txt" in note for note in report.notes)
    said = f"the images are split at random, though {', '.join(files)} seems to name the splits"
    assert any(said in problem for problem in report.problems) == doubted
    assert check_data(tmp_path, accept=["splits-unread"]).ok


def test_folders_below_that_pair_are_offered(tmp_path):
    """Pictures before and after: nothing says which are the images."""
    for k in range(2):
        for folder in ("before", "after"):
            pair(tmp_path / f"train/{folder}/{k}.jpg", tmp_path / f"train/label/{k}.png", k)
    with pytest.raises(UserError, match=r'write "train: .*" .*and "masks: .*" in .*dataset\.yaml') as refused:
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text("\n".join(str(refused.value).split('"')[1:4:2]))
    assert len(open_dataset(tmp_path)) == 2


def test_images_of_kinds_that_are_not_read_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    put(tmp_path / "masks/a.png", IDS)
    with pytest.raises(UserError, match=r"no images with masks found.*1 \.dcm"):
        open_dataset(tmp_path)


# ---- maps ---------------------------------------------------------------------------------------------------


def with_place(content, left, top, system=None):
    """A TIFF of `tiff` with pixels of one metre, whose first corner lies there; tags of its own at the end.

    Args:
        system: the number of GeoTIFF's key for a coordinate system, and its EPSG code.
    """
    import struct

    data = bytearray(content + bytes(len(content) % 2))
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    fields = bytes(data[place + 2 : place + 2 + 12 * count])
    tags = [("d", 12, 33550, (1.0, 1.0, 0.0)), ("d", 12, 33922, (0.0, 0.0, 0.0, left, top, 0.0))]
    if system:
        tags.append(("H", 3, 34735, (1, 1, 0, 2, 1024, 0, 1, 1, system[0], 0, 1, system[1])))
    for letter, kind, tag, values in tags:
        fields += struct.pack("<HHII", tag, kind, len(values), len(data))
        data += struct.pack(f"<{len(values)}{letter}", *values)
    struct.pack_into("<I", data, 4, len(data))
    return bytes(data) + struct.pack("<H", count + len(tags)) + fields + bytes(4)


def test_a_mask_of_another_place_on_the_map(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        picture = np.random.default_rng(k).integers(0, 256, (24, 32), np.uint8)
        (tmp_path / f"images/{k}.tif").write_bytes(with_place(tiff(picture), 100.0, 50.0))
        (tmp_path / f"masks/{k}.tif").write_bytes(with_place(tiff(np.roll(IDS, k, 1)), 100.0, 50.0))
    assert tiff_header(tmp_path / "images/0.tif").corners == (100.0, 50.0, 132.0, 26.0)
    assert not problems(tmp_path)
    (tmp_path / "masks/2.tif").write_bytes(with_place(tiff(IDS), 132.0, 50.0))
    assert "masks/2.tif are of different places on the map: 100, 50, 132, 26 and 132, 50, 164, 26" in problems(tmp_path)


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [
        ((3072, 32632), (3072, 32633), True),
        ((3072, 32632), (2048, 4326), True),
        ((3072, 32632), (3072, 25832), False),
        ((2048, 4326), (2048, 4269), False),
        ((3072, 32632), (3072, 32767), False),  # user-defined
        ((3072, 32632), None, False),
    ],
)
def test_masks_in_another_coordinate_system(tmp_path, ours, theirs, apart):
    for folder, system in (("images", ours), ("masks", theirs)):
        (tmp_path / folder).mkdir()
        for k in range(4):
            picture = np.random.default_rng(k).integers(0, 256, (24, 32), np.uint8)
            content = tiff(picture if folder == "images" else np.roll(IDS, k, 1))
            (tmp_path / f"{folder}/{k}.tif").write_bytes(with_place(content, 500000.0, 4649776.0, system))
    assert tiff_header(tmp_path / "images/0.tif").system == ours[1]
    said = f"in other coordinate systems (EPSG:{ours[1]} and EPSG:{theirs and theirs[1]})"
    assert (said in problems(tmp_path)) == apart
    assert apart or not problems(tmp_path)


# ---- tools --------------------------------------------------------------------------------------------------


def label_studio(file, names):
    """An export with a polygon in each image."""
    shape = {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "polygonlabels": ["car"]}
    row = {"id": "s", "type": "polygonlabels", "original_width": 32, "original_height": 24, "value": shape}
    tasks = [
        {"id": k, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [{"id": 1, "result": [row]}]}
        for k, name in enumerate(names)
    ]
    file.write_text(json.dumps(tasks))


def test_two_exports_of_label_studio_are_joined(tmp_path):
    for k in range(6):
        put_image(tmp_path / f"images/{k}.png", k)
    label_studio(tmp_path / "a.json", ["0.png", "1.png", "2.png"])
    label_studio(tmp_path / "b.json", ["3.png", "4.png", "5.png"])
    report = check_data(tmp_path)
    assert report.reason == "a.json, b.json"
    assert sum(split.num_images for split in report.splits.values()) == 6
    for old, new in (("a", "train"), ("b", "val")):
        (tmp_path / f"{old}.json").rename(tmp_path / f"{new}.json")
    assert [source.name for source in open_dataset(tmp_path, "val").sources] == [f"images/{k}" for k in (3, 4, 5)]
    label_studio(tmp_path / "val.json", ["2.png", "3.png"])
    with pytest.raises(UserError, match=r"train\.json and .*val\.json both have 2\.png, as if they were two exports"):
        open_dataset(tmp_path)


def yolo(root, lines, yaml=""):
    for k in range(3):
        put_image(root / f"images/{k}.png", k)
        (root / "labels").mkdir(exist_ok=True)
        (root / f"labels/{k}.txt").write_text(lines)
    if yaml:
        (root / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\n{yaml}")


LEFT, RIGHT = "0 0 .5 0 .5 1 0 1", ".5 0 1 0 1 1 .5 1"


def test_yolo_that_counts_classes_from_1(tmp_path):
    yolo(tmp_path, f"1 {LEFT}\n2 {RIGHT}\n", "names: [car, tree]")
    assert "class 2 is not among the 2 classes, which YOLO counts from 0 on; if these files count" in problems(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: {1: car, 2: tree}\n")
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("background", "car", "tree")
    assert dataset[0].label.tolist() == [[1] * 16 + [2] * 16] * 24


def test_names_of_yolo_beside_its_texts(tmp_path):
    yolo(tmp_path, f"0 {LEFT}\n1 {RIGHT}\n")
    (tmp_path / "labels/classes.txt").write_text("car\ntree\n")
    assert open_dataset(tmp_path).labels.names == ("background", "car", "tree")


def test_numbers_of_yolo_in_quotes(tmp_path):
    yolo(tmp_path, f"0 {LEFT}\n1 {RIGHT}\n", "names: {'1': tree, '0': car}\n")
    assert check_data(tmp_path).classes == ["background", "car", "tree"]


def test_key_points_are_no_polygons(tmp_path):
    yolo(tmp_path, "0 .5 .5 .2 .2 .4 .4 2 .5 .5 2\n", "kpt_shape: [2, 3]\nnames: [person]")
    with pytest.raises(UserError, match=r"data\.yaml describes key points \(kpt_shape\), which cannot train"):
        open_dataset(tmp_path)


def test_lines_of_supervisely(tmp_path):
    (tmp_path / "ds/ann").mkdir(parents=True)
    classes = [{"title": "crack", "shape": "any", "color": "#FF0000"}]
    (tmp_path / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    points = {"exterior": [[1, 1], [9, 1], [9, 9]], "interior": []}
    line, polygon = ({"classTitle": "crack", "geometryType": kind, "points": points} for kind in ("line", "polygon"))

    def write(objects):
        for k in range(3):
            put_image(tmp_path / f"ds/img/{k}.png", k)
            content = {"size": {"height": 24, "width": 32}, "objects": objects}
            (tmp_path / f"ds/ann/{k}.png.json").write_text(json.dumps(content))

    write([line, polygon])
    assert "shapes without an area are left out: 3 of the kind line" in notes_of(open_dataset(tmp_path))
    write([line])
    with pytest.raises(UserError, match="the shapes are 3 of the kind line, and no outlines"):
        open_dataset(tmp_path)


def test_results_of_coco_are_named(tmp_path):
    put_image(tmp_path / "a.png", 0)
    rows = [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"results\.json holds COCO's results, which are predictions"):
        open_dataset(tmp_path)


def test_an_export_that_is_not_unpacked(tmp_path):
    (tmp_path / "task_1.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"task_1\.zip is packed: unpack it there"):
        open_dataset(tmp_path)


# ---- names, lists and tables ----------------------------------------------------------------------------------


def test_copies_of_one_photograph_stay_together(tmp_path):
    """Roboflow turns and mirrors each image several times; its export of train alone is divided here."""
    for k in range(30):
        name = f"photo{k // 3}_jpg.rf.{k:032x}"
        pair(tmp_path / f"train/{name}.jpg", tmp_path / f"train/{name}_mask.png", k)
    found = {
        split: {sample.name.split("/")[-1].partition("_")[0] for sample in open_dataset(tmp_path, split)}
        for split in ("train", "val")
    }
    assert found["train"]
    assert found["val"]
    assert not found["train"] & found["val"]
    assert found["train"] | found["val"] == {f"photo{k}" for k in range(10)}


def test_links_that_lead_nowhere(tmp_path):
    """As git-annex and DVC leave them for files that were not fetched."""
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    (tmp_path / "images/9.png").symlink_to(tmp_path / "store/9.png")
    assert any(note.startswith("1 link leads to files that are not here") for note in check_data(tmp_path).notes)


def test_comments_and_quotes_in_lists(tmp_path):
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    (tmp_path / "classes.txt").write_text("#classes\n'road'\ncar\n")
    (tmp_path / "train.txt").write_text('"0.png"\n"1.png"\n')
    (tmp_path / "val.txt").write_text("'2.png'\n")
    report = check_data(tmp_path)
    assert report.ok
    assert report.classes == ["road", "car"]
    assert [split.num_images for split in report.splits.values()] == [2, 1]
    (tmp_path / "classes.txt").write_text("#1\n#2\n")
    assert check_data(tmp_path).classes == ["#1", "#2"]


@pytest.mark.parametrize(("folder", "table"), [("a/b/train", "a"), ("a/b/train", "a/b/train"), ("x", "x")])
def test_tables_in_a_folder_around_the_masks(tmp_path, folder, table):
    for scene in ("one", "two"):
        for k in range(3):
            place = tmp_path / folder / scene
            pair(place / f"images/{k}.png", place / f"masks/{k}.png", k + len(scene) * 10)
    (tmp_path / table / "classes.txt").write_text("road\ncar\n")
    report = check_data(tmp_path)
    assert report.classes == ["road", "car"]
    assert f"the classes are those of {table}/classes.txt" in report.notes


def test_tables_of_pairs_with_numbers_of_rows(tmp_path):
    """As pandas writes them, with other columns."""
    for k in range(5):
        pair(tmp_path / f"x/{k}.png", tmp_path / f"y/m{k}.png", k)
    for split, of in (("train", range(4)), ("val", [4])):
        rows = "".join(f"{k},32,x/{k}.png,y/m{k}.png\n" for k in of)
        (tmp_path / f"{split}.csv").write_text(f",width,image,mask\n{rows}")
    report = check_data(tmp_path)
    assert report.ok
    assert [split.num_images for split in report.splits.values()] == [4, 1]
    assert open_dataset(tmp_path)[2].label.tolist() == np.roll(IDS, 2, axis=1).tolist()


@pytest.mark.parametrize(
    ("column", "values", "splits"),
    [
        ("split", ("train", "holdout"), {"train": 4, "holdout": 2}),
        ("is_valid", ("False", "True"), {"train": 4, "val": 2}),
        ("is_train", ("1", "0"), {"train": 4, "test": 2}),
        ("split", ("a", "b"), None),
    ],
)
def test_splits_that_a_column_says(tmp_path, column, values, splits):
    for k in range(6):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    rows = "".join(f"{k}.png,{values[k > 3]}\n" for k in range(6))
    (tmp_path / "metadata.csv").write_text(f"image,{column}\n{rows}")
    report = check_data(tmp_path)
    if splits is None:
        assert set(report.splits) == {"train", "val"}
    else:
        assert {split: found.num_images for split, found in report.splits.items()} == splits


@pytest.mark.parametrize(("head", "name"), [("fname", "{}"), ("photo", "{}.png"), ("id,Photo taken", "7{0},{0}.png")])
def test_the_column_of_images_is_found_by_its_values(tmp_path, head, name):
    for k in range(6):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k)
    rows = "".join(f"{name.format(k)},{k > 3}\n" for k in range(6))
    (tmp_path / "data.csv").write_text(f"{head},is_valid\n{rows}")
    assert {split: found.num_images for split, found in check_data(tmp_path).splits.items()} == {"train": 4, "val": 2}
    assert open_dataset(tmp_path, "val")[1].label.tolist() == np.roll(IDS, 5, axis=1).tolist()
    (tmp_path / "data.csv").write_text(f"key,is_valid\n{rows.replace('.png', '')}")
    (problem,) = check_data(tmp_path).problems
    assert 'the column "is_valid" of splits in data.csv seems to name the splits' in problem


def test_tables_of_pairs_with_a_column_of_splits(tmp_path):
    for k in range(6):
        pair(tmp_path / f"x/{k}.png", tmp_path / f"y/m{k}.png", k)
    rows = "".join(f"x/{k}.png,y/m{k}.png,{k > 3}\n" for k in range(5))
    (tmp_path / "data.csv").write_text(f"image,mask,is_valid\n{rows}x/5.png,y/m5.png,\n")
    report = check_data(tmp_path)
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 4, "val": 1}
    assert "data.csv: 1 row names no split: left out" in report.notes


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("list.txt", "x/{0}.png y/{0}.png {1}"),
        ("list.txt", "x/{0}.png\ty/{0}.png\t{1}"),
        ("data.csv", "x/{0}.png,y/{0}.png,{1}"),
        ("data.csv", "{0}.png,{1}"),
        ("list.txt", "{0} {1}"),
        ("list.lst", "x/{0}.png | {1}"),
    ],
)
@pytest.mark.parametrize("head", ["", "image mask split\n"])
def test_lists_that_end_in_the_split(tmp_path, name, form, head):
    """Without names of columns."""
    for k in range(6):
        pair(tmp_path / f"x/{k}.png", tmp_path / f"y/{k}.png", k)
    rows = (form.format(k, ("train", "val", "test")[k // 3 + k // 5]) for k in range(6))
    (tmp_path / name).write_text(head + "\n".join(rows) + "\n")
    report = check_data(tmp_path)
    assert report.ok
    assert {split: found.num_images for split, found in report.splits.items()} == {"train": 3, "val": 2, "test": 1}
    for split, first in (("train", 0), ("val", 3), ("test", 5)):
        assert open_dataset(tmp_path, split)[0].label.tolist() == np.roll(IDS, first, axis=1).tolist()


@pytest.mark.parametrize("layout", ["CamVid", "KITTI"])
def test_own_classes_in_the_layout_of_a_benchmark(tmp_path, layout):
    """Three classes that number from 0 are no sky, building and pole."""
    for k in range(12):
        split = "val" if k > 8 else "train"
        image, mask = (f"{split}/0001TP_{k}.png", f"{split}annot/0001TP_{k}.png")
        if layout == "KITTI":
            image, mask = f"training/image_2/{k}.png", f"training/semantic/{k}.png"
        pair(tmp_path / image, tmp_path / mask, k, np.array([7, 8] if layout == "KITTI" else [0, 2], np.uint8)[IDS])
    assert f"the data lie as those of {layout} and so have its" in (said := problems(tmp_path))
    assert "12 masks hold 2 of them only" in said
    assert check_data(tmp_path, accept=["sparse-ids"]).ok
    (tmp_path / "classes.txt").write_text("a\nb\nc\n" if layout == "CamVid" else "7 a\n8 b\n")
    assert not problems(tmp_path)


def test_a_list_of_images_to_test_without_masks(tmp_path):
    """As PaddleX and `degrid data prepare cityscapes` write it."""
    for k in range(5):
        pair(tmp_path / f"x/{k}.png", tmp_path / f"y/{k}.png", k)
    for split, of in (("train", range(4)), ("val", [4])):
        (tmp_path / f"{split}_list.txt").write_text("".join(f"x/{k}.png y/{k}.png\n" for k in of))
    put_image(tmp_path / "z/9.png", 9)
    (tmp_path / "test_list.txt").write_text("z/9.png\n")
    report = check_data(tmp_path)
    assert report.ok
    assert "1 image of test without masks: left out, since nothing can be scored" in report.notes
    assert [*report.splits] == ["train", "val"]
    (tmp_path / "test_list.txt").write_text("z/9.png\nx/0.png y/0.png\n")
    assert "1 image without a mask" in problems(tmp_path)


def test_keys_that_are_written_twice(tmp_path):
    pair(tmp_path / "images/0.png", tmp_path / "masks/0.png", 0)
    (tmp_path / "dataset.yaml").write_text("classes:\n  0: road\n  1: car\n  1: tree\n")
    with pytest.raises(UserError, match='the key "1" is there twice'):
        check_data(tmp_path)


def test_folders_of_any_names_that_pair_are_offered(tmp_path):
    for k in range(3):
        pair(tmp_path / f"A/{k}.png", tmp_path / f"B/{k}.png", k)
    with pytest.raises(UserError, match='A and B hold files of the same names: write "train: A" and "masks: B"'):
        check_data(tmp_path)


# ---- shapes ---------------------------------------------------------------------------------------------------


def coco(root, polygons):
    put_image(root / "a.png", 1)
    rows = [{"id": k, "image_id": 1, "category_id": 5, "segmentation": parts} for k, parts in enumerate(polygons)]
    images = [{"id": 1, "file_name": "a.png", "height": 24, "width": 32}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 5, "name": "car"}]}
    (root / "a.json").write_text(json.dumps(content))
    return " | ".join(check_data(root).notes)


SQUARE, HOLE, BESIDE = [2, 2, 20, 2, 20, 20, 2, 20], [6, 6, 6, 10, 10, 10, 10, 6], [22, 2, 30, 2, 30, 9, 22, 9]


def test_holes_that_are_written_as_parts(tmp_path):
    assert "1 annotation has an outline inside another one" in coco(tmp_path, [[SQUARE, HOLE, BESIDE], [BESIDE]])
    assert "inside another" not in coco(tmp_path, [[SQUARE, BESIDE], [HOLE]])


def test_objects_outside_of_the_image(tmp_path):
    outside = [value + 40 for value in SQUARE]
    said = "masks with objects that cover no pixel: outside the image, or smaller than one"
    assert said in coco(tmp_path, [[SQUARE], [outside]])
    assert "cover no pixel" not in coco(tmp_path, [[SQUARE], [[value - 4 for value in SQUARE]]])
    source = open_dataset(tmp_path).sources[0]
    source.read_label()[:] = 9  # what a caller does with a label is its own affair
    assert set(source.read_label().ravel()) == {0, 1}


def test_annotations_of_nothing_but_an_empty_list(tmp_path):
    assert "1 annotation has only a box" in coco(tmp_path, [[SQUARE], [[]]])


def test_cityscapes_with_polygons_alone(tmp_path):
    """As Cityscapes' gtFine without labelIds, and as IDD comes."""
    put_image(tmp_path / "leftImg8bit/train/0/1_leftImg8bit.png", 1)
    (tmp_path / "gtFine/train/0").mkdir(parents=True)
    (tmp_path / "gtFine/train/0/1_gtFine_polygons.json").write_text('{"objects": []}')
    with pytest.raises(UserError, match="are polygons, and .*gtFine holds no masks: draw them with .*createLabels.py"):
        check_data(tmp_path)


# ---- what tables say ----------------------------------------------------------------------------------------


def images_of(root, split):
    return sorted(open_dataset(root, split)[k].name.rpartition("/")[2] for k in range(len(open_dataset(root, split))))


def ten(root):
    for k in range(10):
        pair(root / f"images/{k}.png", root / f"masks/{k}.png", k)


@pytest.mark.parametrize("column", ["group", "mode", "data_split", "belongs to"])
def test_columns_of_words_for_splits_whatever_they_are_called(tmp_path, column):
    ten(tmp_path)
    words = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    rows = "".join(f"{k},train,{word}\n" for k, word in enumerate(words))  # the vehicle is no split
    (tmp_path / "metadata.csv").write_text(f"ImageID,vehicle,{column}\n{rows}")
    found = {split: images_of(tmp_path, split) for split in ("train", "val", "test")}
    assert found == {"train": [*"012345"], "val": [*"67"], "test": [*"89"]}


def test_columns_that_say_yes_or_no_together(tmp_path):
    """What is neither for training nor for validation is for the test."""
    ten(tmp_path)
    rows = "".join(f"{k}.png,{int(k < 6)},{int(k in (6, 7))}\n" for k in range(10))
    (tmp_path / "metadata.csv").write_text(f"image,is_train,is_val\n{rows}")
    found = {split: images_of(tmp_path, split) for split in ("train", "val", "test")}
    assert found == {"train": [*"012345"], "val": [*"67"], "test": [*"89"]}


def test_a_column_of_splits_that_is_not_understood(tmp_path):
    ten(tmp_path)
    (tmp_path / "metadata.csv").write_text("image,split\n" + "".join(f"{k}.png,{k % 3}\n" for k in range(10)))
    assert 'the column "split" of splits in metadata.csv seems to name the splits' in problems(tmp_path)


def test_dev_and_eval_are_two_splits():
    assert splits_of(["train", "dev", "eval"]) == {"train": "train", "dev": "val", "eval": "test"}
    assert splits_of(["train", "eval", "test"]) == {"train": "train", "eval": "val", "test": "test"}


def test_numbers_of_classes_in_columns_under_any_name(tmp_path):
    """The order of the rows must not count where another column numbers them."""
    ten(tmp_path)
    (tmp_path / "classes.csv").write_text("name,grey value\nroad,1\nsky,0\n")
    assert open_dataset(tmp_path).labels.names == ("sky", "road")
    (tmp_path / "classes.csv").write_text("name,priority\nroad,1\nsky,0\n")
    with pytest.raises(UserError, match='the numbers in the column "priority" the ids'):
        open_dataset(tmp_path)
    (tmp_path / "classes.csv").write_text("name,priority\nroad,0\nsky,1\n")
    assert open_dataset(tmp_path).labels.names == ("road", "sky")


def test_names_in_data_yaml_beside_masks(tmp_path):
    ten(tmp_path)
    (tmp_path / "data.yaml").write_text("nc: 2\nnames:\n  0: sky\n  1: road\n")
    assert open_dataset(tmp_path).labels.names == ("sky", "road")


@pytest.mark.parametrize("second", ["fond", "背景", "back-ground", "else", "background"])
def test_the_mend_for_a_background_that_is_white(tmp_path, second):
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, IDS * 255)
    (tmp_path / "classes.txt").write_text(f"leaf\n{second}\n", encoding="utf-8")
    assert 'write "ids: [255, 0]"' in problems(tmp_path)
    (tmp_path / "dataset.yaml").write_text("ids: [255, 0]")
    assert not problems(tmp_path)
    assert (
        open_dataset(tmp_path)[0].label.tolist() == (1 - np.roll(IDS, int(images_of(tmp_path, "train")[0]), 1)).tolist()
    )


def test_masks_of_one_unknown_ending(tmp_path):
    """As fastai's CamVid."""
    for k in range(5):
        pair(tmp_path / f"images/a_{k}.png", tmp_path / f"labels/a_{k}_P.png", k)
    assert not problems(tmp_path)
    assert images_of(tmp_path, "train") + images_of(tmp_path, "val")
    for k in range(5):  # two masks of each image
        put(tmp_path / f"labels/a_{k}_Q.png", IDS)
    assert "5 images without a mask" in problems(tmp_path)


def test_masks_of_each_class_that_are_called_after_it(tmp_path):
    for k in range(5):
        for name in ("road", "tree"):
            pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}_{name}.png", k)
    assert "5 images without a mask" in problems(tmp_path)
    notes = " | ".join(check_data(tmp_path).notes)
    assert "0 has several masks (0_road.png, 0_tree.png): if there is one for each class, join them" in notes
    assert "10 masks without an image" in notes


def test_masks_of_another_observer_are_mentioned(tmp_path):
    ten(tmp_path)
    for k in range(10):
        put(tmp_path / f"masks_observer2/{k}.png", IDS)
    assert not problems(tmp_path)
    assert "the labels are those of masks; masks_observer2 is not read" in check_data(tmp_path).notes


def test_the_mend_for_names_of_masks_that_count_from_1(tmp_path):
    """Some masks hold only a part of the ids; a mend that is offered must mend."""
    ids = np.where(np.arange(24 * 32).reshape(24, 32) % 7, 3, 2).astype(np.uint8)
    for k in range(4):
        pair(tmp_path / f"images/{k}.png", tmp_path / f"masks/{k}.png", k, ids - (ids == 2) * np.uint8(k % 2))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    assert 'write "ids: [1, 2, 3]" if the masks count from 1, or give more classes' in problems(tmp_path)
    (tmp_path / "dataset.yaml").write_text("ids: [1, 2, 3]\n")
    assert not problems(tmp_path)
    dataset = open_dataset(tmp_path)
    assert {value for k in range(len(dataset)) for value in np.unique(dataset[k].label).tolist()} == {0, 1, 2}


@pytest.mark.parametrize("first", [0, 2, 9])
def test_masks_that_are_numbered_from_another_number_on_may_belong_to_others(tmp_path, first):
    ten(tmp_path)
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/x.png")
    for k in range(9, 0, -1):  # images 0 to 9
        (tmp_path / f"masks/{k}.png").rename(tmp_path / f"masks/{k + first}.png")
    (tmp_path / "masks/x.png").rename(tmp_path / f"masks/{first}.png")
    said = f"images are numbered 0 to 9, and as many masks {first} to {first + 9}, so that equal numbers may not belong"
    assert (said in problems(tmp_path)) == (first > 0)
    assert bool(problems(tmp_path)) == (first > 0)


@pytest.mark.filterwarnings("error")
def test_images_that_are_not_finite(tmp_path):
    for split, number in (("train", 4), ("val", 2)):
        for k in range(number):
            put(tmp_path / f"masks/{split}/{k}.png", IDS)
            values = np.random.default_rng(k + 10 * number).random((24, 32), np.float32)
            values[:2], values[2:4] = np.nan, np.inf
            (tmp_path / f"images/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / f"images/{split}/{k}.tif")
    assert not problems(tmp_path)
