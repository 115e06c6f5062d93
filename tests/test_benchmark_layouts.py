"""Published benchmarks in the layouts in which they are handed out: classes, colours, void and splits."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from degrid.data import notes_of, open_dataset
from degrid.data.formats.benchmarks.coco_panoptic import Segments
from degrid.data.formats.benchmarks.coco_stuff import COCO_STUFF
from degrid.data.formats.table import recognise
from degrid.types import UserError

V = 255


def put(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(file)


def put_image(file, width=4):
    put(file, np.full((1, width, 3), 90))


def painted(*colors):
    """One row of pixels."""
    return [list(colors)]


def check(root, split, name, label, *, kind, names=None, colors=None):
    """One sample of a split: its name and its label, and the first classes."""
    dataset = open_dataset(root, split)
    assert recognise(root).kind == kind
    found = {source.name: k for k, source in enumerate(dataset.sources)}
    sample = dataset[found[name]]
    assert sample.label.tolist() == label
    assert tuple(sample.image.shape[1:]) == tuple(sample.label.shape)
    if names:
        assert dataset.labels.names[: len(names)] == names
    if colors:
        assert dataset.labels.colors[: len(colors)] == colors
    return dataset


# ---- driving ------------------------------------------------------------------------------------------------


def test_idd(tmp_path):
    """Cityscapes' folders with ids of other classes, whose names no file tells."""
    for split in ("train", "val"):
        put_image(tmp_path / f"leftImg8bit/{split}/7/frame1_leftImg8bit.jpg")
        put(tmp_path / f"gtFine/{split}/7/frame1_gtFine_labellevel3Ids.png", [[0, 25, 1, V]])
        put(tmp_path / f"gtFine/{split}/7/frame1_gtFine_instancelevel3Ids.png", [[0, 1, 2, 3]])
    dataset = check(tmp_path, "val", "val/7/frame1", [[0, 25, 1, V]], kind="Cityscapes")
    assert len(dataset.labels) == 26


def test_kitti(tmp_path):
    for k in range(12):
        put_image(tmp_path / f"training/image_2/{k:06d}_10.png")
        put(tmp_path / f"training/semantic/{k:06d}_10.png", [[7, 33, 0, 4]])
        put(tmp_path / f"training/semantic_rgb/{k:06d}_10.png", painted(*[(0, 0, 0)] * 4))
    put_image(tmp_path / "testing/image_2/000000_10.png")
    train = check(tmp_path, "train", "000000_10", [[0, 18, V, V]], kind="KITTI", names=("road", "sidewalk"))
    assert len(train) + len(open_dataset(tmp_path, "val")) == 12
    assert "kept for validation" in notes_of(train)[0]


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [("images/10k", "labels/sem_seg/masks", ""), ("seg/images", "seg/labels", "_train_id")],
)
@pytest.mark.parametrize("base", ["", "bdd100k"])
def test_bdd100k(tmp_path, images, masks, ending, base):
    root = tmp_path / base
    for split in ("train", "val", "test"):
        put_image(root / images / split / f"{split}1.jpg")
        if split != "test":
            put(root / masks / split / f"{split}1{ending}.png", [[0, 18, 255, 11]])
    put(root / "seg/color_labels/train/train1_train_color.png", painted(*[(0, 0, 0)] * 4))
    for split in ("train", "val"):
        dataset = check(tmp_path, split, f"{split}1", [[0, 18, V, 11]], kind="BDD100K", names=("road", "sidewalk"))
    assert dataset.rule.said == "BDD100K"
    assert set(recognise(tmp_path).splits) == {"train", "val"}


CONFIG = {
    "labels": [
        {"name": "animal--bird", "readable": "Bird", "evaluate": True, "color": [165, 42, 42], "instances": True},
        {"name": "void--ground", "readable": "Ground", "evaluate": False, "color": [0, 0, 1], "instances": False},
        {"name": "nature--sky", "readable": "Sky", "evaluate": True, "color": [70, 130, 180], "instances": False},
    ]
}


@pytest.mark.parametrize(
    ("folder", "config"),
    [("v1.2/labels", "config_v1.2.json"), ("v2.0/labels", "config_v2.0.json"), ("labels", "config.json")],
)
def test_mapillary(tmp_path, folder, config):
    (tmp_path / config).write_text(json.dumps(CONFIG))
    for top in ("training", "validation"):
        put_image(tmp_path / top / "images" / "a.jpg")
        palette = Image.fromarray(np.array([[0, 1, 2, 0]], np.uint8))
        palette.putpalette([165, 42, 42, 0, 0, 1, 70, 130, 180])
        (tmp_path / top / folder).mkdir(parents=True)
        palette.save(tmp_path / top / folder / "a.png")
        put(tmp_path / top / folder.replace("labels", "instances") / "a.png", [[0, 1, 2, 3]])
    put_image(tmp_path / "testing/images/b.jpg")
    for split in ("train", "val"):
        dataset = check(tmp_path, split, "a", [[0, V, 1, 0]], kind="Mapillary Vistas")
    assert dataset.labels.names == ("Bird", "Sky")
    assert dataset.labels.colors == ((165, 42, 42), (70, 130, 180))
    assert dataset.rule.said == config
    put(tmp_path / "training" / folder / "a.png", painted((70, 130, 180), (0, 0, 1), (165, 42, 42), (70, 130, 180)))
    check(tmp_path, "train", "a", [[1, V, 0, 1]], kind="Mapillary Vistas")


def test_mapillary_with_both_versions_and_without_classes(tmp_path):
    put_image(tmp_path / "training/images/a.jpg")
    for version in ("v1.2", "v2.0"):
        put(tmp_path / "training" / version / "labels/a.png", [[2, 2, 2, 2]])
    with pytest.raises(UserError, match=r"without the classes: put config_v1\.2\.json"):
        open_dataset(tmp_path)
    config = {"labels": [*CONFIG["labels"], {**CONFIG["labels"][0], "name": "animal--fowl"}]}
    (tmp_path / "config_v1.2.json").write_text(json.dumps(config))
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == ("animal--bird", "nature--sky", "animal--fowl")  # "Bird" would be there twice
    assert notes_of(dataset)[0] == "v1.2/labels is read, not v2.0/labels: move one of them away to choose"
    (tmp_path / "config_v1.2.json").write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(UserError, match="expected labels, each with name, color and evaluate"):
        open_dataset(tmp_path)


# ---- from above ---------------------------------------------------------------------------------------------


def test_loveda(tmp_path):
    for top in ("Train", "Val"):
        for area in ("Rural", "Urban"):
            put_image(tmp_path / top / area / "images_png/7.png")
            put(tmp_path / top / area / "masks_png/7.png", [[0, 1, 7, 3 if area == "Rural" else 4]])
    put_image(tmp_path / "Test/Rural/images_png/9.png")
    for split in ("train", "val"):
        check(tmp_path, split, "Rural/7", [[V, 0, 6, 2]], kind="LoveDA", names=("background", "building", "road"))
        dataset = check(tmp_path, split, "Urban/7", [[V, 0, 6, 3]], kind="LoveDA")
        assert len(dataset) == 2
    assert dataset.labels.names[6] == "agriculture"
    for top in ("Train", "Val", "Test"):  # each unpacked into a folder of its own
        (tmp_path / top).rename(tmp_path / "moved")
        (tmp_path / top).mkdir()
        (tmp_path / "moved").rename(tmp_path / top / top)
    check(tmp_path, "val", "Urban/7", [[V, 0, 6, 3]], kind="LoveDA")


def test_rugd(tmp_path):
    """Both folders have a word for masks in their names, and the table lies beside the masks."""
    for name in ("creek/creek_1", "park-1/park-1_1"):
        put_image(tmp_path / f"RUGD_frames-with-annotations/{name}.png", 3)
        put(tmp_path / f"RUGD_annotations/{name}.png", painted((255, 229, 204), (0, 0, 0), (108, 64, 20)))
    table = "0 void 0 0 0\n1 dirt 108 64 20\n2 sand 255 229 204\n"
    (tmp_path / "RUGD_annotations/RUGD_annotation-colormap.txt").write_text(table)
    dataset = check(tmp_path, "val", "park-1/park-1_1", [[1, V, 0]], kind="folder", names=("dirt", "sand"))
    assert "the classes are those of RUGD_annotations/RUGD_annotation-colormap.txt" in notes_of(dataset)


def test_refuge(tmp_path):
    for split in ("train", "val"):
        put_image(tmp_path / split / "Images/g1.jpg", 3)
        put(tmp_path / split / "gts/g1.bmp", [[255, 128, 0]])
    (tmp_path / "dataset.yaml").write_text("classes: [cup, disc, background]\nids: [0, 128, 255]\n")
    check(tmp_path, "val", "g1", [[2, 1, 0]], kind="split folders")


ISPRS_ROW = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]


def test_potsdam(tmp_path):
    for area in ("2_10", "6_15", "7_13"):
        put_image(tmp_path / f"2_Ortho_RGB/top_potsdam_{area}_RGB.tif", 6)
        put_image(tmp_path / f"3_Ortho_IRRG/top_potsdam_{area}_IRRG.tif", 6)
        put(tmp_path / f"5_Labels_all/top_potsdam_{area}_label.tif", painted(*ISPRS_ROW))
        black = painted(*ISPRS_ROW[:-1], (0, 0, 0))
        put(tmp_path / f"5_Labels_all_noBoundary/top_potsdam_{area}_label_noBoundary.tif", black)
    for split, area in (("train", "2_10"), ("val", "2_10"), ("test", "6_15"), ("test", "7_13")):
        dataset = check(tmp_path, split, f"top_potsdam_{area}_RGB", [[0, 1, 2, 3, 4, 5]], kind="ISPRS")
        assert len(dataset) == (2 if split == "test" else 1)
    assert dataset.labels.colors == tuple(ISPRS_ROW)
    for file in (tmp_path / "5_Labels_all").iterdir():
        file.unlink()
    check(tmp_path, "train", "top_potsdam_2_10_RGB", [[0, 1, 2, 3, 4, V]], kind="ISPRS")


@pytest.mark.parametrize("ending", ["", "_noBoundary"])
def test_vaihingen(tmp_path, ending):
    for area in (1, 3, 38):
        put_image(tmp_path / f"top/top_mosaic_09cm_area{area}.tif", 6)
        if area != 38:
            label = tmp_path / f"gts_for_participants/top_mosaic_09cm_area{area}{ending}.tif"
            put(label, painted(*ISPRS_ROW[::-1]))
    train, val = open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val")
    assert len(train) == len(val) == 1
    for dataset in (train, val):
        assert dataset[0].label.tolist() == [[5, 4, 3, 2, 1, 0]]
    layout = recognise(tmp_path)
    assert layout.kind == "ISPRS"
    assert set(layout.splits) == {"train", "val"}
    assert layout.notes[0] == "1 image has no label: left out"


LAND = [(0, 255, 255), (255, 255, 0), (255, 0, 255), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("table", [False, True])
def test_deepglobe_land_cover(tmp_path, table):
    nearly = [tuple(abs(value - 3) for value in color) for color in LAND]  # as compression leaves them
    for k in range(10):
        put_image(tmp_path / f"train/{k}_sat.jpg", 7)
        put(tmp_path / f"train/{k}_mask.png", painted(*nearly))
    put_image(tmp_path / "valid/99_sat.jpg", 7)
    if table:  # as a common copy has it
        rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in zip("abcdef", LAND, strict=False)]
        (tmp_path / "class_dict.csv").write_text("\n".join(["name,r,g,b", *rows, "unknown,0,0,0"]))
    dataset = check(tmp_path, "train", "train/0_sat", [[0, 1, 2, 3, 4, 5, V]], kind="DeepGlobe")
    assert dataset.labels.names[:2] == ("urban land", "agriculture land")
    assert set(recognise(tmp_path).splits) == {"train", "val"}
    assert recognise(tmp_path).notes[0] == "1 image has no label: left out"


def test_deepglobe_roads(tmp_path):
    for k in range(10):
        put_image(tmp_path / f"train/{k}_sat.jpg")
        put(tmp_path / f"train/{k}_mask.png", painted((0, 0, 0), (127, 127, 127), (128, 128, 128), (255, 255, 255)))
    dataset = check(tmp_path, "train", "train/0_sat", [[0, 0, 1, 1]], kind="DeepGlobe", names=("background", "road"))
    assert len(dataset.labels) == 2


# ---- under water, and the retina ----------------------------------------------------------------------------


def test_suim(tmp_path):
    colors = [(0, 0, 0), (0, 0, 255), (0, 255, 0), (0, 255, 255), (255, 0, 0), (255, 0, 255), (255, 255, 0)]
    soft = [*colors[:-1], (253, 251, 4), (250, 255, 240)]
    for top in ("train_val", "TEST"):
        for k in range(9):
            put_image(tmp_path / top / f"images/d_r_{k}_.jpg", 8)
            put(tmp_path / top / f"masks/d_r_{k}_.bmp", painted(*soft))
    put(tmp_path / "TEST/masks/FV/d_r_0_.bmp", [[0] * 8])
    for split in ("train", "test"):
        dataset = check(tmp_path, split, "d_r_0_", [list(range(8))], kind="SUIM", names=("background (waterbody)",))
    assert len(dataset) == 9
    assert dataset.labels.colors[:7] == tuple(colors)


def test_ids_where_colours_are_expected(tmp_path):
    for k in range(2):
        put_image(tmp_path / f"train_val/images/{k}.jpg", 3)
        put(tmp_path / f"train_val/masks/{k}.bmp", [[0, 1, 7]])
    with pytest.raises(UserError, match="holds ids up to 7; expected this benchmark's colours"):
        open_dataset(tmp_path)[0]


@pytest.mark.parametrize("ending", [".gif", ".png"])
@pytest.mark.parametrize("base", ["", "DRIVE"])
def test_drive(tmp_path, ending, base):
    for number, top in (("21", "training"), ("22", "training"), ("01", "test")):
        put_image(tmp_path / base / top / f"images/{number}_{top}.tif")
        put(tmp_path / base / top / f"1st_manual/{number}_manual1{ending}", [[0, 255, 255, 0]])
        put(tmp_path / base / top / f"mask/{number}_{top}_mask{ending}", [[255, 255, 0, 0]])
    put(tmp_path / base / "test/2nd_manual/01_manual2.gif", [[0, 0, 0, 0]])
    for split, name in (("test", "01_test"), ("train", "21_training"), ("val", "22_training")):
        dataset = check(tmp_path, split, name, [[0, 1, V, V]], kind="DRIVE", names=("background", "vessel"))
        assert len(dataset) == 1
    assert notes_of(dataset)[:2] == [
        "2nd_manual, by another observer, is not read",
        "what lies outside the field of view (mask) is void",
    ]
    put(tmp_path / base / "test" / f"mask/01_test_mask{ending}", [[255, 255]])
    with pytest.raises(UserError, match="is not of the size of"):
        open_dataset(tmp_path, "test")[0]


def test_drive_without_labels_of_the_test(tmp_path):
    for number in (21, 22):
        put_image(tmp_path / f"training/images/{number}_training.tif")
        put(tmp_path / f"training/1st_manual/{number}_manual1.gif", [[255, 0, 0, 0]])
    put_image(tmp_path / "test/images/01_test.tif")
    check(tmp_path, "train", "21_training", [[1, 0, 0, 0]], kind="DRIVE")
    assert notes_of(open_dataset(tmp_path))[0] == "1 image has no label: left out"


def test_drive_as_mmsegmentation_makes_it(tmp_path):
    for number, split in ((21, "training"), (1, "validation")):
        put_image(tmp_path / f"images/{split}/{number}_{'training' if number == 21 else 'test'}.png")
        put(tmp_path / f"annotations/{split}/{number}_manual1.png", [[0, 1, 1, 0]])
        put(tmp_path / f"annotations/{split}/{number}_manual2.png", [[1, 1, 1, 1]])
    for split in ("train", "val"):
        assert open_dataset(tmp_path, split)[0].label.tolist() == [[0, 1, 1, 0]]
    assert not recognise(tmp_path).orphans


# ---- PASCAL Context, NYU Depth v2 ---------------------------------------------------------------------------


def context(root, folder):
    for name in ("2008_000001", "2008_000002", "2008_000003"):
        put_image(root / f"JPEGImages/{name}.jpg")
    for name in ("2008_000001", "2008_000002"):
        put(root / folder / f"{name}.png", [[0, 1, 2, 59]])
    put(root / "SegmentationClass/2008_000001.png", [[0, 1, 20, 255]])


def test_pascal_context_as_mmsegmentation_makes_it(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2010"
    context(root, "SegmentationClassContext")
    (root / "ImageSets/SegmentationContext").mkdir(parents=True)
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        (root / f"ImageSets/SegmentationContext/{split}.txt").write_text(f"{name}\n")
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        dataset = check(tmp_path, split, name, [[V, 0, 1, 58]], kind="PASCAL Context", names=("aeroplane", "bag"))
    assert len(dataset.labels) == 59
    assert dataset.labels.names[58] == "wood"
    assert open_dataset(f"VOC={root}").labels.names[20] == "tvmonitor"
    assert "--data VOC=FOLDER" in notes_of(dataset)[0]


def test_pascal_context_of_the_authors(tmp_path):
    context(tmp_path, "33_context_labels")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("2008_000001\n2008_000003\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("2008_000002\n")
    with pytest.raises(UserError, match=r"put 33_labels\.txt of the benchmark there"):
        open_dataset(tmp_path)
    (tmp_path / "33_labels.txt").write_text("0: empty\n" + "".join(f"{k}: name {k}\n" for k in range(1, 60)))
    train = check(tmp_path, "train", "2008_000001", [[V, 0, 1, 58]], kind="PASCAL Context", names=("name 1", "name 2"))
    assert len(train) == len(open_dataset(tmp_path, "val")) == 1
    (tmp_path / "33_labels.txt").write_text("1: a\n3: b\n")
    with pytest.raises(UserError, match="numbered without a gap"):
        open_dataset(tmp_path)


def test_pascal_context_of_459_classes(tmp_path):
    (tmp_path / "trainval").mkdir()
    scipy = pytest.importorskip("scipy.io")
    for k, name in enumerate(("2008_000001", "2008_000002")):
        put(tmp_path / f"JPEGImages/{name}.jpg", np.zeros((2, 4, 3), np.uint8))
        ids = np.array([[2, 458, 1, 459], [0, 258, 9, 255 + 3 * k]], np.uint16)  # 255, paper, is no void of this file
        scipy.savemat(tmp_path / f"trainval/{name}.mat", {"LabelMap": ids})
    names = {2: "aeroplane", 458: "wood", 258: "motorbike", 9: "bag"}
    (tmp_path / "labels.txt").write_text("".join(f"{k}: {names.get(k, f'thing {k}')}\n" for k in range(1, 460)))
    truth = [[0, 58, V, V], [V, 33, 1, V]]
    dataset = check(tmp_path, "train", "2008_000001", truth, kind="PASCAL Context", names=("aeroplane", "bag"))
    assert [dataset.labels.names[k] for k in (0, 58, 33, 1)] == ["aeroplane", "wood", "motorbike", "bag"]
    assert any("of the 459 classes, the benchmark's 59 are read" in note for note in notes_of(dataset))
    # Others are those of a table.
    (tmp_path / "classes.csv").write_text("id,name\n9,bag\n459,wool\n")
    assert open_dataset(tmp_path).labels.names == ("bag", "wool")
    assert open_dataset(tmp_path)[0].label.tolist() == [[V, V, V, 1], [V, V, 0, V]]


@pytest.mark.parametrize("lists", ["pairs", "names", ""])
def test_nyu_depth(tmp_path, lists):
    for k in range(6):
        put_image(tmp_path / f"RGB/{k}.jpg")
        put(tmp_path / f"Label/{k}.png", [[0, 1, 40, 22]])
        put(tmp_path / f"HHA/{k}.jpg", painted(*[(0, 0, 0)] * 4))
    if lists:
        line = "RGB/{k}.jpg\tLabel/{k}.png\n" if lists == "pairs" else "{k}\n"
        (tmp_path / "train.txt").write_text("".join(line.format(k=k) for k in range(4)))
        (tmp_path / "test.txt").write_text("".join(line.format(k=k) for k in (4, 5)))
    layout = recognise(tmp_path)
    splits = {split: len(sources) for split, sources in layout.splits.items()}
    assert sum(splits.values()) == 6
    if lists:
        assert splits["test"] == 2
    dataset = open_dataset(tmp_path)
    assert layout.kind == "NYU Depth v2"
    assert dataset[0].label.tolist() == [[V, 0, 39, 21]]
    assert (dataset.labels.names[0], dataset.labels.names[39], len(dataset.labels)) == ("wall", "otherprop", 40)


class Hdf5:
    """What h5py gives of a file, from an .npz; MATLAB's arrays come with their axes in reverse."""

    def __init__(self, file, mode):
        assert mode == "r"
        self.arrays = dict(np.load(file))

    def __enter__(self):
        return self.arrays

    def __exit__(self, *error):
        pass


def nyu(root):
    """Three images of 2x4 pixels, of 5 classes that become 3 (and 4 is none)."""
    values = np.array([[0, 1, 2, 3], [4, 5, 1, 0]])
    labels = np.stack([np.roll(values, k, axis=1) for k in range(3)], -1)  # [H,W,N], as MATLAB has it
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3)).astype(np.uint8)  # [H,W,3,N]
    with (root / "nyu_depth_v2_labeled.mat").open("wb") as file:
        np.savez(file, images=images.T, labels=labels.T.astype(np.uint16))
    names = np.empty((1, 3), object)
    names[0] = ["wall", "floor", "bed"]
    savemat(root / "classMapping40.mat", {"mapClass": np.array([[1, 2, 2, 0, 3]]), "className": names})
    return images, [np.roll([[V, 0, 1, 1], [V, 2, 0, V]], k, axis=1).tolist() for k in range(3)]


def test_nyu_depth_as_it_is_handed_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=Hdf5))
    images, truth = nyu(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[2]])})
    for place in (tmp_path, tmp_path / "nyu_depth_v2_labeled.mat"):
        samples = {}
        for split in ("train", "val", "test"):
            dataset = open_dataset(place, split)
            assert len(dataset) == 1
            samples[split] = dataset[0]
        assert {samples[split].name for split in ("train", "val")} == {"0001", "0003"}
        assert samples["test"].name == "0002"
        for sample in samples.values():
            index = int(sample.name) - 1
            assert sample.label.tolist() == truth[index]
            assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), images[..., index])
    assert dataset.labels.names == ("wall", "floor", "bed")
    assert dataset.rule.said == "classMapping40.mat"
    (tmp_path / "splits.mat").unlink()
    assert sum(len(sources) for sources in recognise(tmp_path).splits.values()) == 3


def test_mistakes_in_nyu_depth(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)  # as where it is not installed
    nyu(tmp_path)
    with pytest.raises(UserError, match="read with h5py: pip install h5py"):
        open_dataset(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=Hdf5))
    savemat(tmp_path / "classMapping40.mat", {"mapClass": np.array([[1]]), "className": np.array([["wall"]], object)})
    with pytest.raises(UserError, match="has the class 5 of 1"):
        open_dataset(tmp_path)[0]
    savemat(tmp_path / "classMapping40.mat", {"mapClass": np.array([[2]]), "className": np.array([["wall"]], object)})
    with pytest.raises(UserError, match="expected classes from 0 to 1, got up to 2"):
        open_dataset(tmp_path)
    savemat(tmp_path / "classMapping40.mat", {"other": 1})
    with pytest.raises(UserError, match="expected mapClass and className"):
        open_dataset(tmp_path)
    (tmp_path / "classMapping40.mat").unlink()
    with pytest.raises(UserError, match="894 classes, and degrid has at most 255: put one table .* there are 0"):
        open_dataset(tmp_path)


# ---- COCO ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "ending", "values"),
    [
        ("stuffthingmaps/{}2017", "", [[0, 12, 181, 255]]),
        ("annotations/stuffthingmaps/{}2017", "", [[0, 12, 181, 255]]),
        ("annotations/{}2017", "_labelTrainIds", [[0, 11, 170, 255]]),
    ],
)
@pytest.mark.parametrize("images", ["images/{}2017", "{}2017"])
def test_coco_stuff(tmp_path, folder, ending, values, images):
    for split in ("train", "val"):
        put_image(tmp_path / images.format(split) / "000000000009.jpg")
        put(tmp_path / folder.format(split) / f"000000000009{ending}.png", values)
        if ending:
            put(tmp_path / folder.format(split) / "000000000009.png", [[0, 12, 181, 255]])
        dataset = check(tmp_path, split, "000000000009", [[0, 11, 170, V]], kind="COCO-Stuff", names=("person",))
    assert [dataset.labels.names[k] for k in (11, 79, 80, 170)] == ["stop sign", "toothbrush", "banner", "wood"]


def test_coco_stuff_10k(tmp_path):
    for top in ("train2014", "test2014"):
        put_image(tmp_path / "images" / top / "COCO_1.jpg")
        put(tmp_path / "annotations" / top / "COCO_1_labelTrainIds.png", [[0, 1, 171, 2]])
    for split in ("train", "val"):
        check(tmp_path, split, "COCO_1", [[V, 0, 170, 1]], kind="COCO-Stuff")


def test_the_removed_classes_of_coco_stuff_are_no_classes(tmp_path):
    assert len(COCO_STUFF) == 171
    put_image(tmp_path / "train2017/1.jpg")
    put(tmp_path / "stuffthingmaps/train2017/1.png", [[0, 11, 1, 2]])  # 11 would be "street sign"
    with pytest.raises(UserError, match="has the ids 11"):
        open_dataset(tmp_path)[0]


def panoptic(root, split, where="annotations/", images="{}2017"):
    """Two segments: 300 (category 7) and 70000 (category 3, a crowd), and a pixel of none."""
    rows = [{"id": 300, "category_id": 7, "iscrowd": 0}, {"id": 70000, "category_id": 3, "iscrowd": 1}]
    values = {
        "images": [{"id": 5, "file_name": "000000000005.jpg"}],
        "annotations": [{"image_id": 5, "file_name": "000000000005.png", "segments_info": rows}],
        "categories": [
            {"id": 7, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
            {"id": 3, "name": "car", "isthing": 1, "color": [4, 5, 6]},
        ],
    }
    numbers = [300, 70000, 0, 300]
    colors = [(n % 256, n // 256 % 256, n // 65536) for n in numbers]
    put(root / f"{where}panoptic_{split}2017/000000000005.png", painted(*colors))
    put_image(root / images.format(split) / "000000000005.jpg")
    (root / f"annotations/panoptic_{split}2017.json").parent.mkdir(parents=True, exist_ok=True)
    (root / f"annotations/panoptic_{split}2017.json").write_text(json.dumps(values))
    return values


@pytest.mark.parametrize("where", ["annotations/", ""])
@pytest.mark.parametrize("images", ["images/{}2017", "{}2017"])
def test_coco_panoptic(tmp_path, where, images):
    for split in ("train", "val"):
        panoptic(tmp_path, split, where, images)
    (tmp_path / "annotations/instances_train2017.json").write_text('["hair drier"]')
    for split in ("train", "val"):
        dataset = check(tmp_path, split, "000000000005", [[1, 0, V, 1]], kind="COCO panoptic", names=("car", "sky"))
    assert dataset.labels.colors == ((4, 5, 6), (1, 2, 3))
    assert f'give "COCO polygons={tmp_path}"' in notes_of(dataset)[0]
    assert hash(dataset.sources[0]) == hash(open_dataset(tmp_path, "val").sources[0])  # what was found is kept by it


def test_a_category_of_void_in_coco_panoptic(tmp_path):
    """As Datumaro writes a label that is called so."""
    values = panoptic(tmp_path, "train")
    values["categories"][0]["name"] = "Void"
    (tmp_path / "annotations/panoptic_train2017.json").write_text(json.dumps(values))
    dataset = check(tmp_path, "train", "000000000005", [[V, 0, V, V]], kind="COCO panoptic")
    assert dataset.labels.names == ("car",)


def test_coco_panoptic_of_which_one_split_is_unpacked(tmp_path):
    for split in ("train", "val"):
        panoptic(tmp_path, split)
    (tmp_path / "annotations/panoptic_train2017/000000000005.png").unlink()
    assert set(recognise(tmp_path).splits) == {"val"}
    assert notes_of(open_dataset(tmp_path, "val")) == [
        "panoptic_train2017.json is there without its images or segments"
    ]
    (tmp_path / "annotations/panoptic_val2017/000000000005.png").unlink()
    (tmp_path / "annotations/instances_train2017.json").write_text('["hair drier"]')
    with pytest.raises(UserError, match="degrid data prepare coco"):
        open_dataset(tmp_path, "val")


def test_mistakes_in_coco_panoptic(tmp_path):
    values = panoptic(tmp_path, "val")
    file = tmp_path / "annotations/panoptic_val2017.json"
    values["annotations"][0]["segments_info"].pop()
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="segments that the JSON file does not list: 70000"):
        open_dataset(tmp_path, "val")[0]
    values["annotations"][0]["segments_info"][0]["category_id"] = 8
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="categories that are not listed: 8"):
        open_dataset(tmp_path, "val")
    file.write_text("{}")
    with pytest.raises(UserError, match="expected images, annotations and categories"):
        open_dataset(tmp_path, "val")
    (tmp_path / "annotations/panoptic_val2017/000000000005.png").unlink()
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"without its segments: unpack panoptic_val2017\.zip"):
        open_dataset(tmp_path, "val")


# ---- a table of one's own -----------------------------------------------------------------------------------


def test_a_table_beside_a_benchmark_wins(tmp_path):
    for k in range(2):
        put_image(tmp_path / f"Train/Rural/images_png/{k}.png")
        put(tmp_path / f"Train/Rural/masks_png/{k}.png", [[0, 1, 2, 7]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")  # as many: names for the same ids
    dataset = open_dataset(tmp_path)
    assert dataset.labels.names == tuple("abcdefg")
    assert dataset[0].label.tolist() == [[V, 0, 1, 6]]
    (tmp_path / "classes.txt").write_text("void as a class\na\nb\nc\nd\ne\nf\ng\n")
    assert open_dataset(tmp_path)[0].label.tolist() == [[0, 1, 2, 7]]


def test_segments_can_be_a_key():
    """Surveys of masks are kept by the sources that they read."""
    made = [Segments("a", Path("a.jpg"), Path("a.png"), segments={1: 2}) for _ in range(2)]
    assert len(set(made)) == 1


def test_a_table_beside_cityscapes_and_camvid_wins(tmp_path):
    for split in ("train", "val"):
        put_image(tmp_path / f"city/leftImg8bit/{split}/x/x_1_leftImg8bit.png")
        put(tmp_path / f"city/gtFine/{split}/x/x_1_gtFine_labelIds.png", [[0, 1, 2, V]])
        put_image(tmp_path / f"cam/{split}/1.png")
        put(tmp_path / f"cam/{split}annot/1.png", [[0, 1, 2, V]])
    for root, name in ((tmp_path / "city", "train/x/x_1"), (tmp_path / "cam", "1")):
        (root / "classes.txt").write_text("road\ncrack\nhole\n")
        dataset = open_dataset(root)
        assert dataset.labels.names == ("road", "crack", "hole")
        assert dataset[0].name == name
        assert dataset[0].label.tolist() == [[0, 1, 2, V]]


def test_vocs_layout_with_a_list_of_train_alone_and_with_lists_of_pairs(tmp_path):
    """A part of train is for validation; DeepLab's lists of pairs count where there are no lists of names."""
    names = [f"f{k}" for k in range(8)]
    for k, name in enumerate(names):
        put_image(tmp_path / f"JPEGImages/{name}.jpg")
        put(tmp_path / f"SegmentationClass/{name}.png", [[0, 1, k % 2, V]])
    lists = tmp_path / "ImageSets/SegmentationAug"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text(
        "".join(f"/JPEGImages/{n}.jpg /SegmentationClass/{n}.png\n" for n in names[2:])
    )
    (lists / "val.txt").write_text("/JPEGImages/f0.jpg /SegmentationClass/f0.png\n")
    train = check(tmp_path, "train", "JPEGImages/f3", [[0, 1, 1, V]], kind="VOC")
    assert len(train) == 6
    check(tmp_path, "val", "JPEGImages/f0", [[0, 1, 0, V]], kind="VOC")
    (tmp_path / "ImageSets/Segmentation").mkdir()
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n".join(names[1:]))
    train, val = open_dataset(tmp_path), open_dataset(tmp_path, "val")
    assert {source.name for source in (*train.sources, *val.sources)} == {*names[1:]}
    assert notes_of(train)[0].startswith('the data have no split "val" beside "train": ')
    (tmp_path / "ImageSets/Segmentation/train.txt").rename(tmp_path / "ImageSets/Segmentation/trainaug.txt")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("f0")
    assert len(open_dataset(tmp_path, "trainaug")) == 7  # as recipes for VOC ask for it
