"""degrid data prepare for CamVid and ADE20K, and what degrid data's commands say of splits that cannot be used."""

import numpy as np
import pytest
from PIL import Image
from test_benchmark_files import ade, cli, files_below, pixels, put, put_image

from degrid.data import check_data, open_dataset
from degrid.data.formats.benchmarks.camvid import CAMVID
from degrid.data.prepare.ade20k import prepare_ade20k
from degrid.data.prepare.camvid import CAMVID_GROUPS, camvid_split, prepare_camvid
from degrid.types import IGNORE_INDEX, UserError, voc_palette

# ---- CamVid -------------------------------------------------------------------------------------------------

# label_colors.txt of the download: "red green blue name".
_COLORS = """64 128 64 Animal;192 0 128 Archway;0 128 192 Bicyclist;0 128 64 Bridge;128 0 0 Building;64 0 128 Car;
64 0 192 CartLuggagePram;192 128 64 Child;192 192 128 Column_Pole;64 64 128 Fence;128 0 192 LaneMkgsDriv;
192 0 64 LaneMkgsNonDriv;128 128 64 Misc_Text;192 0 192 MotorcycleScooter;128 64 64 OtherMoving;64 192 128 ParkingBlock;
64 64 0 Pedestrian;128 64 128 Road;128 128 192 RoadShoulder;0 0 192 Sidewalk;192 128 128 SignSymbol;128 128 128 Sky;
64 128 192 SUVPickupTruck;0 0 64 TrafficCone;0 64 64 TrafficLight;192 64 128 Train;128 128 0 Tree;192 128 192 Truck_Bus;
64 0 64 Tunnel;192 192 0 VegetationMisc;0 0 0 Void;64 192 0 Wall"""
COLORS = {}
for _row in _COLORS.replace("\n", "").split(";"):
    *_rgb, _name = _row.split(" ")
    COLORS[_name] = tuple(map(int, _rgb))


def label(*names, width=4):
    """One row of pixels in the colours of CamVid's classes; the last one fills it."""
    return [[COLORS[name] for name in (*names, *[names[-1]] * (width - len(names)))]]


def camvid(root, frames):
    for name, colors in frames.items():
        pixels = np.random.default_rng(sum(name.encode())).integers(0, 256, (1, len(colors[0]), 3))
        put(root / "701_StillsRaw_full" / f"{name}.png", pixels)
        put(root / "LabeledApproved_full" / f"{name}_L.png", colors)
    return root


FRAMES = {
    "0001TP_008520": label("Sky", "Wall", "Void", "Child"),
    "0006R0_f00930": label("TrafficCone", "LaneMkgsDriv", "RoadShoulder", "VegetationMisc"),
    "0016E5_07959": label("TrafficLight", "Fence", "Train", "MotorcycleScooter"),
    "0001TP_008550": label("Road"),
    "Seq05VD_f00000": label("Tree"),
}


def test_every_class_of_camvid_is_in_one_group():
    assert len(COLORS) == 32
    assert tuple(CAMVID_GROUPS) == CAMVID.names
    grouped = [row for group in CAMVID_GROUPS.values() for row in group.items()]
    assert sorted(grouped) == sorted(row for row in COLORS.items() if row[0] != "Void")


def test_camvid_split_has_segnets_counts():
    """The frames of the download: every thirtieth, and of one stretch of 0016E5 every second."""
    frames = [f"0001TP_{frame:06d}" for frame in range(6690, 10381, 30)]
    frames += [f"0006R0_f{frame:05d}" for frame in range(930, 3931, 30)]
    frames += [f"0016E5_{frame:05d}" for frame in range(390, 8641, 30) if not 7950 <= frame <= 8160]
    frames += [f"0016E5_{frame:05d}" for frame in range(7959, 8160, 2)]
    frames += [f"Seq05VD_f{frame:05d}" for frame in range(0, 5101, 30)]
    splits = [camvid_split(name) for name in frames]
    assert splits.count("val") == 101
    assert splits.count("test") == 233
    # 0016E5 has gaps: 204 of these 268 frames were labelled.
    assert splits.count("train") == 367 + 268 - 204
    assert [camvid_split(name) for name in ("cat", "0001TP", "0001TP_L", "0099XX_00001")] == [None] * 4


def test_prepare_camvid(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.data.prepare.camvid._COUNTS", {"train": 2, "val": 1, "test": 233})
    root = camvid(tmp_path, FRAMES)
    put_image(root / "701_StillsRaw_full" / "0001TP_006690.png")
    put(root / "LabeledApproved_full" / "0001TP_006720_L.png", label("Sky"))
    steps = []
    report = prepare_camvid(root, lambda p: steps.append((p.done, p.total)))
    assert steps == [(k, 5) for k in range(1, 6)]
    assert report == [
        f"warning: 1 image has no label, {root / '701_StillsRaw_full' / '0001TP_006690.png'}",
        f"warning: 1 label has no image, {root / 'LabeledApproved_full' / '0001TP_006720_L.png'}",
        "5 labels of 11 classes made in labels_11",
        f"{root / 'train.txt'}: found 2 images, expected 2",
        f"{root / 'val.txt'}: found 1 image, expected 1",
        f"warning: {root / 'test.txt'}: found 2 images, expected 233",
        f"classes: {root / 'classes.csv'}",
        f"written to {root}: train.txt, val.txt, test.txt, classes.csv; "
        f"train on it: degrid train --data {root / 'train.txt'}",
    ]
    names = CAMVID.names.index
    expected = {
        "0001TP_008520": [names("Sky"), names("Building"), IGNORE_INDEX, names("Pedestrian")],
        "0006R0_f00930": [names("Pole"), names("Road"), names("Pavement"), names("Tree")],
        "0016E5_07959": [names("SignSymbol"), names("Fence"), names("Car"), names("Bicyclist")],
        "0001TP_008550": [names("Road")] * 4,
        "Seq05VD_f00000": [names("Tree")] * 4,
    }
    for name, ids in expected.items():
        assert pixels(root / "labels_11" / f"{name}.png") == [ids]
    for path in (root, root / "train.txt"):
        train = open_dataset(path)
        assert train.labels == CAMVID
        assert train[1].label.tolist() == [expected["0006R0_f00930"]]
        assert len(open_dataset(path, "val")) == 1
        assert len(open_dataset(path, "test")) == 2
    assert check_data(root).ok
    # Again: the labels are there; one is missing.
    (root / "labels_11" / "0016E5_07959.png").unlink()
    assert "1 labels of 11 classes made in labels_11" in prepare_camvid(root)
    assert pixels(root / "labels_11" / "0016E5_07959.png") == [expected["0016E5_07959"]]


def test_camvid_by_split_folders_and_frames_of_no_split(tmp_path):
    """As the copy with class_dict.csv has it: train beside train_labels."""
    for folder, name in (("train", "0001TP_008520"), ("val", "0016E5_07959"), ("val", "other_00001")):
        put_image(tmp_path / folder / f"{name}.png", (1, 4))
        put(tmp_path / f"{folder}_labels" / f"{name}_L.png", label("Sky", "Void"))
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nSky,128,128,128\nVoid,0,0,0\n")
    code, output = cli("data", "prepare", "camvid", tmp_path)
    assert code == 0, output
    assert f"warning: 1 image is in no split, {tmp_path / 'val' / 'other_00001.png'}" in output


def test_camvids_stray_colours(tmp_path):
    wide = label("Sky", width=200)
    wide[0][3] = wide[0][7] = (1, 2, 3)
    root = camvid(tmp_path, {"0001TP_006690": wide, "0016E5_07959": label("Sky")})
    report = prepare_camvid(root)
    where = root / "LabeledApproved_full" / "0001TP_006690_L.png"
    assert f"warning: 2 pixels in 1 labels, {where} among them, have colours that no class has; they are void" in report
    assert np.flatnonzero(np.array(pixels(root / "labels_11" / "0001TP_006690.png")) == IGNORE_INDEX).tolist() == [3, 7]
    wide[0][9] = (1, 2, 3)
    put(where, wide)
    (root / "labels_11" / "0001TP_006690.png").unlink()
    with pytest.raises(
        UserError, match=r"is not a label of CamVid's 32 classes: 3 of its 200 pixels .* \(1, 2, 3\) among"
    ):
        prepare_camvid(root)
    assert not (root / "labels_11" / "0001TP_006690.png").exists()


def test_copies_of_11_classes_are_counted_and_left_alone(tmp_path):
    for split, number in (("train", 2), ("val", 1)):
        for k in range(number):
            put_image(tmp_path / "CamVid" / split / f"{k}.png", (1, 3))
            put(tmp_path / "CamVid" / f"{split}annot" / f"{k}.png", [[0, 10, 11]])
    root = tmp_path / "CamVid"
    (root / "val" / "more.png").write_bytes((root / "val" / "0.png").read_bytes())
    before = files_below(tmp_path)
    code, output = cli("data", "prepare", "camvid", root)
    assert code == 0
    assert output.splitlines() == [
        "warning: train: found 2 images, expected 367",
        "warning: val: found 2 images, expected 101",
        f"warning: val: 1 image is not there, or the label: {root / 'val' / 'more.png'}",
        "warning: test: found 0 images, expected 233",
        f"nothing to write, CamVid is read as it is; train on it: degrid train --data {root}",
    ]
    assert files_below(tmp_path) == before


def test_mistakes_with_camvid(tmp_path):
    with pytest.raises(UserError, match=r"no CamVid in .*; expected 701_StillsRaw_full and LabeledApproved_full"):
        prepare_camvid(tmp_path)
    put_image(tmp_path / "images" / "a.png")
    put(tmp_path / "masks" / "a.png", np.zeros((4, 5)))
    with pytest.raises(UserError, match="or a copy with the 11 classes Sky, Building, Pole"):
        prepare_camvid(tmp_path)
    root = camvid(tmp_path / "CamVid", FRAMES)
    put_image(root / "copy" / "0001TP_008520.png")
    with pytest.raises(UserError, match=r"0001TP_008520\.png have the same name; give the folder of one copy"):
        prepare_camvid(root)
    (root / "copy" / "0001TP_008520.png").unlink()
    (root / "LabeledApproved_full" / "0016E5_07959_L.png").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"0016E5_07959_L\.png is not an image"):
        prepare_camvid(root)
    assert not (root / "train.txt").exists()


# ---- ADE20K -------------------------------------------------------------------------------------------------


def names_of(root, first="wall"):
    rows = "".join(f"{k}\t0.1\t1\t1\t{first if k == 1 else f'thing {k}, other'}\n" for k in range(1, 151))
    (root / "objectInfo150.txt").write_text(f"Idx\tRatio\tTrain\tVal\tName\n{rows}")


def test_prepare_ade20k(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.data.prepare.ade20k._COUNTS", {"train": 1, "val": 2_000})
    root = ade(tmp_path / "ADEChallengeData2016")
    names_of(root)
    bare = root / "images" / "validation" / "ADE_val_00000002.jpg"
    put_image(bare)
    put(root / "annotations" / "training" / "ADE_train_00000009.png", [[1]])
    steps = []
    report = prepare_ade20k(tmp_path, lambda p: steps.append((p.done, p.total)))
    assert steps == [(1, 2), (2, 2)]
    made = root / "annotations_train_ids"
    assert report == [
        f"2 labels made in {made}",
        f"{root / 'train.txt'}: found 1 image, expected 1",
        f"warning: val: 1 image has no label, {bare}",
        f"warning: {root / 'val.txt'}: found 1 image, expected 2,000",
        f"warning: 1 label has no image, {root / 'annotations' / 'training' / 'ADE_train_00000009.png'}",
        f"classes: {root / 'classes.csv'}",
        f"written to {root}: train.txt, val.txt, classes.csv; train on it: degrid train --data {root / 'train.txt'}",
    ]
    # 0 is void; 1, 2 and 150 are the classes 0, 1 and 149.
    assert pixels(made / "training" / "ADE_train_00000001.png") == [[IGNORE_INDEX, 0, 1, 149]]
    assert (root / "train.txt").read_text() == (
        "/images/training/ADE_train_00000001.jpg /annotations_train_ids/training/ADE_train_00000001.png\n"
    )
    # The folder, whose labels are shifted when they are read, and the lists say the same.
    for path in (tmp_path, root, root / "train.txt"):
        train = open_dataset(path)
        assert train.labels.names[:2] == ("wall", "thing 2")
        assert train.labels.colors == voc_palette(150)
        assert train[0].label.tolist() == [[IGNORE_INDEX, 0, 1, 149]]
    put(made / "training" / "ADE_train_00000001.png", [[5, 5, 5, 5]])  # what is there stays
    assert prepare_ade20k(root)[0] == f"0 labels made in {made}"
    assert open_dataset(root / "train.txt")[0].label.tolist() == [[5, 5, 5, 5]]


def test_ade20k_without_its_table_of_names(tmp_path):
    root = ade(tmp_path / "ADEChallengeData2016")
    for _ in range(2):  # as long as the classes are called so
        assert prepare_ade20k(root)[0].startswith(f"warning: no objectInfo150.txt in {root}: the classes are called")
    names_of(root)
    (root / "classes.csv").unlink()
    assert not any("objectInfo150" in line for line in prepare_ade20k(root))
    assert open_dataset(root / "train.txt").labels.names[0] == "wall"


def test_mistakes_with_ade20k(tmp_path):
    with pytest.raises(UserError, match="no ADE20K in .*; expected ADEChallengeData2016 with images/training"):
        prepare_ade20k(tmp_path)
    root = ade(tmp_path / "ADEChallengeData2016")
    bad = root / "annotations" / "validation" / "ADE_val_00000001.png"
    put(bad, [[0, 151, 200, 1]])
    with pytest.raises(UserError, match=r"val_00000001\.png has the values 151, 200; .* have ids from 0 to 150"):
        prepare_ade20k(root)
    assert not (root / "annotations_train_ids" / "validation").exists()
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"val_00000001\.png is not an image"):
        prepare_ade20k(root)
    (root / "classes.txt").write_text("".join(f"name {k}\n" for k in range(151)))
    with pytest.raises(UserError, match=r"classes\.txt names 151 classes, ADE20K has 150; remove it before preparing"):
        prepare_ade20k(root)
    assert not (root / "train.txt").exists()


def test_a_path_with_spaces_is_quoted_in_the_command(tmp_path):
    root = ade(tmp_path / "my data" / "ADEChallengeData2016")
    assert prepare_ade20k(root)[-1].endswith(f"degrid train --data '{root / 'train.txt'}'")


# ---- splits that cannot be used, by every command -------------------------------------------------------------

MASK = (np.arange(80, dtype=np.uint8).reshape(8, 10)) % 3


@pytest.fixture
def lists(tmp_path):
    """Three pairs, of which train.txt names a, val.txt b; test.txt has one that is there and one that is not."""
    root = tmp_path / "data"
    for name in "abc":
        put(root / "images" / f"{name}.png", np.random.default_rng(ord(name)).integers(0, 256, (8, 10, 3)))
        put(root / "masks" / f"{name}.png", MASK)
    for split, names in (("train", "a"), ("val", "b"), ("test", "cz")):
        lines = (f"/images/{name}.png /masks/{name}.png\n" for name in names)
        (root / f"{split}.txt").write_text("".join(lines))
    return root


READERS = {"stats": (), "preview": ("-o", "out.png"), "export": ("-o", "out.tfrecord")}


@pytest.fixture(params=READERS)
def reads(request, tmp_path, monkeypatch):
    """A command that reads one split; run in an empty folder, in which it is to leave nothing."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(path, split):
        code, output = cli("data", request.param, path, "--split", split, *READERS[request.param])
        left = files_below(tmp_path / "here")
        return code, output, left

    return run


def test_the_commands_work_on_good_splits(reads, lists):
    code, output, _ = reads(lists, "train")
    assert code == 0, output


def test_a_split_that_does_not_exist(reads, lists):
    for path in (lists, lists / "train.txt"):
        code, output, left = reads(path, "trainval")
        assert (code, left) == (2, [])
        assert output == (
            f'degrid: {path} has no split "trainval"; it has: train, val, test. Choose one of these, or name its '
            "folder or list in a dataset.yaml (train: .., val: ..): only those called train, val or test are splits by "
            "themselves"
        )


def test_a_list_that_names_missing_files(reads, lists):
    code, output, left = reads(lists, "test")
    assert (code, left) == (2, [])
    assert output == (
        f'degrid: 1 of 2 images in the split "test" of {lists} are missing, {lists / "images" / "z.png"} among them; '
        "add them, or remove them from the list (degrid data check lists them)"
    )
    put_image(lists / "images" / "z.png", (8, 10))
    code, output, left = reads(lists, "test")
    assert (code, left) == (2, [])
    assert f'1 of 2 images in the split "test" of {lists} have no mask' in output
    assert f"(expected {lists / 'masks' / 'z.png'})" in output


def test_a_split_without_an_image(reads, lists, tmp_path):
    (lists / "none").mkdir()
    (lists / "dataset.yaml").write_text("train: images\nval: none\nmasks: masks\nclasses: [a, b, c]\n")
    assert reads(lists, "val") == (2, f'degrid: the split "val" of {lists} is empty', [])
    (lists / "val.txt").write_text("\n \n")
    assert reads(lists / "val.txt", "val") == (2, f"degrid: the list {lists / 'val.txt'} is empty", [])
    assert reads(lists / "train.txt", "train") == (2, f"degrid: the list {lists / 'val.txt'} is empty", [])


def test_data_that_are_not_there(reads, tmp_path):
    code, output, left = reads(tmp_path / "nowhere", "train")
    assert (code, left) == (2, [])
    assert output.startswith(f"degrid: no data at {tmp_path / 'nowhere'}.")


def test_check_lists_the_missing_files(lists):
    code, output = cli("data", "check", lists)
    assert code == 2
    assert (
        f"problem: 1 image that cannot be read (get them again): no such image: {lists / 'images' / 'z.png'}" in output
    )
    (lists / "val.txt").write_text("")
    assert cli("data", "check", lists / "train.txt") == (2, f"degrid: the list {lists / 'val.txt'} is empty")


@pytest.mark.parametrize("number", [0, -1])
def test_preview_shows_one_image_at_least(lists, number, tmp_path):
    code, output = cli("data", "preview", lists, "-o", tmp_path / "x.png", "-n", number)
    assert code == 2
    assert "Invalid value for '-n'" in output
    assert not (tmp_path / "x.png").exists()


def test_preview_of_fewer_images_than_asked_for(lists, tmp_path):
    assert cli("data", "preview", lists, "-o", tmp_path / "x.png", "-n", 50)[0] == 0
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.width == 2 * 320 + 2 * 8  # one pair of cells, and a gap on each side


def test_export_beside_another_table_of_classes(lists, tmp_path):
    out = tmp_path / "records"
    out.mkdir()
    (out / "classes.txt").write_text("sky\nsea\n")
    code, output = cli("data", "export", lists, "-o", out / "x.tfrecord")
    assert (code, output) == (
        2,
        f"degrid: {out / 'classes.txt'} names classes other than those of the data; choose another folder to write to",
    )
    assert files_below(out) == ["classes.txt"]
