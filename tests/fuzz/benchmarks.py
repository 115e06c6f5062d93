"""Small sound benchmarks as they are unpacked, by name, written by a function of the folder."""

import json

import test_data_coco as coco
from PIL import Image
from test_benchmark_files import ade, voc
from test_benchmark_layouts import CONFIG, ISPRS_ROW, LAND, painted, put, put_image


def _cityscapes(root):
    for split, name in (("train", "ulm_0_1"), ("train", "ulm_0_2"), ("val", "bonn_0_1")):
        city = name.split("_")[0]
        put_image(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", 34)
        put(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", [[*range(34)]])


def _voc(root):
    voc(root)
    for name in ("t1", "t2", "v1", "v2"):
        put(root / f"SegmentationClassAug/{name}.png", [[1, 2, 0]])
    (root / "ImageSets/Segmentation/train.txt").write_text("t1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("v1\n")


def _camvid(root):
    for split, name in (("train", "0001TP_006690"), ("val", "0016E5_07959")):
        put_image(root / split / f"{name}.png")
        put(root / f"{split}annot" / f"{name}.png", [[0, 1, 10, 11]])


def _instances(root):
    box = coco.runs(coco.box(0, 0, 20, coco.WIDTH), category=coco.CAR)
    for split in ("train", "val"):
        coco.put(root, split, {"000000000001": [box, coco.polygon((1, 1), (30, 5), (9, 30))], "000000000002": []})


def _stuff(root):
    for split in ("train", "val"):
        put_image(root / f"images/{split}2017/000000000009.jpg")
        put(root / f"stuffthingmaps/{split}2017/000000000009.png", [[0, 12, 181, 255]])


def _kitti(root):
    for k in range(3):
        put_image(root / f"training/image_2/{k:06d}_10.png")
        put(root / f"training/semantic/{k:06d}_10.png", [[7, 33, 0, 4]])


def _bdd(root):
    for split in ("train", "val"):
        put_image(root / f"images/10k/{split}/a.jpg")
        put(root / f"labels/sem_seg/masks/{split}/a.png", [[0, 18, 255, 11]])


def _mapillary(root):
    (root / "config.json").write_text(json.dumps(CONFIG))
    for top in ("training", "validation"):
        put_image(root / top / "images/a.jpg")
        put(root / top / "labels/a.png", [[0, 1, 2, 0]])


def _loveda(root):
    for top in ("Train", "Val"):
        put_image(root / top / "Rural/images_png/7.png")
        put(root / top / "Rural/masks_png/7.png", [[0, 1, 7, 3]])


def _potsdam(root):
    for area in ("2_10", "6_15"):
        put_image(root / f"2_Ortho_RGB/top_potsdam_{area}_RGB.tif", 6)
        put(root / f"5_Labels_all/top_potsdam_{area}_label.tif", painted(*ISPRS_ROW))


def _land(root):
    for k in range(3):
        put_image(root / f"train/{k}_sat.jpg", 7)
        put(root / f"train/{k}_mask.png", painted(*LAND))


def _suim(root):
    for k in range(2):
        put_image(root / f"train_val/images/{k}.jpg", 3)
        put(root / f"train_val/masks/{k}.bmp", painted((0, 0, 0), (0, 0, 255), (255, 255, 0)))


def _drive(root):
    for number, top in (("21", "training"), ("01", "test")):
        put_image(root / f"{top}/images/{number}_{top}.tif")
        put(root / f"{top}/1st_manual/{number}_manual1.gif", [[0, 255, 255, 0]])


def _context(root):
    for name in ("2008_000001", "2008_000002"):
        put_image(root / f"JPEGImages/{name}.jpg")
        put(root / f"33_context_labels/{name}.png", [[0, 1, 2, 59]])
    (root / "33_labels.txt").write_text("0: empty\n" + "".join(f"{k}: name {k}\n" for k in range(1, 60)))
    (root / "ImageSets/Main").mkdir(parents=True)
    for split, name in (("train", "2008_000001"), ("val", "2008_000002")):
        (root / f"ImageSets/Main/{split}.txt").write_text(f"{name}\n")


def _nyu(root):
    for k in range(2):
        put_image(root / f"RGB/{k}.jpg")
        put(root / f"Label/{k}.png", [[0, 1, 40, 22]])
    (root / "train.txt").write_text("RGB/0.jpg\tLabel/0.png\n")
    (root / "test.txt").write_text("RGB/1.jpg\tLabel/1.png\n")


def _ade(root):
    ade(root)
    rows = "".join(f"{k}\t0.1\tthing {k}\n" for k in range(1, 151))
    (root / "objectInfo150.txt").write_text(f"Idx\tRatio\tName\n{rows}")


def _palette(root):
    """VOC's own masks have a palette, whose colours mean nothing."""
    _voc(root)
    for name in ("t1", "v1"):
        file = root / f"SegmentationClass/{name}.png"
        picture = Image.open(file).convert("P")
        picture.save(file)


BENCHMARKS = {
    "cityscapes": _cityscapes,
    "voc": _voc,
    "voc with a palette": _palette,
    "camvid": _camvid,
    "coco": _instances,
    "ade20k": _ade,
    "COCO-Stuff": _stuff,
    "KITTI": _kitti,
    "BDD100K": _bdd,
    "Mapillary": _mapillary,
    "LoveDA": _loveda,
    "Potsdam": _potsdam,
    "DeepGlobe": _land,
    "SUIM": _suim,
    "DRIVE": _drive,
    "PASCAL Context": _context,
    "NYU Depth": _nyu,
}
"""The first of them are what `degrid data prepare` takes, too."""
