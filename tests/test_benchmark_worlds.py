"""What was written is what is read, in the layouts of benchmarks: random ids, void, names and encodings, in every row
of the table of formats that `test_mask_encodings` does not write."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mask_writers import ENCODINGS
from PIL import Image
from test_mask_encodings import FORMATS as WRITTEN
from test_mask_encodings import TOOLS

from degrid.data.dataset import open_layout
from degrid.data.formats.benchmarks.cityscapes import CITYSCAPES_LABEL_IDS
from degrid.data.formats.benchmarks.coco_stuff import COCO_STUFF
from degrid.data.formats.benchmarks.remote_sensing import ISPRS, LAND_COVER, LOVEDA
from degrid.data.formats.benchmarks.suim import SUIM
from degrid.data.formats.table import FORMATS
from degrid.types import IGNORE_INDEX

V = IGNORE_INDEX
FEW = settings(max_examples=4, phases=[Phase.explicit, Phase.reuse, Phase.generate])


class Bench(NamedTuple):
    """A layout.

    count: of classes. image, mask: the places of image k of a split, below the root.
    raw: the value of each class and of void in the files, ids or colours; None for void where it cannot be written.
    also: writes what else belongs to it, called with root, names and the ids of each image by its number.
    """

    count: int
    image: str
    mask: str
    raw: object
    splits: tuple[str, str] = ("train", "val")
    also: object = None
    suffix: str = ".png"

    @property
    def in_colors(self):
        return np.ndim(self.raw[0]) == 1


def plain(count, void=V):
    return [*range(count), void]


def names_of_voc(root, names, masks):
    (root / "VOC2007/ImageSets/SegmentationContext").mkdir(parents=True)
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        (root / f"VOC2007/ImageSets/SegmentationContext/{split}.txt").write_text("\n".join(f"x{k}" for k in numbers))
    lines = (f"{k}: {name}" for k, name in enumerate(names, 1))
    (root / "33_labels.txt").write_text("0: empty\n" + "\n".join(lines) + "\n")


def config_of_mapillary(root, names, masks):
    rows = [{"name": name, "color": [k, 9, 9], "evaluate": True} for k, name in enumerate(names)]
    rows.append({"name": "nothing", "color": [0, 0, 0], "evaluate": False})
    (root / "config_v2.0.json").write_text(json.dumps({"labels": rows}))


def lists_of_nyu(root, names, masks):
    (root / "Depth").mkdir()
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        (root / f"{split}.txt").write_text("\n".join(f"x{k}" for k in numbers))


def field_of_view(root, names, masks):
    for k, ids in masks.items():
        file = root / ("training" if k < 3 else "test") / f"mask/{k}_mask.gif"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(ids == V, 0, 255).astype(np.uint8)).save(file)


def panoptic(root, names, masks):
    """Each class of an image is one segment; the files hold their numbers."""
    categories = [{"id": 3 * k + 2, "name": name, "isthing": k % 2} for k, name in enumerate(names)]
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        rows, folder = [], root / f"annotations/panoptic_{split}2017"
        folder.mkdir(parents=True)
        for k in numbers:
            segments = [
                {"id": 70_000 * (value + 1) + k, "category_id": 3 * value + 2}
                for value in np.unique(masks[k]).tolist()
                if value != V
            ]
            number = np.where(masks[k] == V, 0, 70_000 * (masks[k].astype(np.int64) + 1) + k)
            Image.fromarray(np.stack([number & 255, number >> 8 & 255, number >> 16], 2).astype(np.uint8)).save(
                folder / f"x{k}.png"
            )
            rows.append({"image_id": k, "file_name": f"x{k}.png", "segments_info": segments})
        images = [{"id": k, "file_name": f"x{k}.png"} for k in numbers]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / f"annotations/panoptic_{split}2017.json").write_text(json.dumps(content))


def prepared_coco(root, names, masks):
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2017.json").write_text("{}")
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        lines = (f"/{split}2017/x{k}.png /coco81/masks/{split}2017/x{k}.png" for k in numbers)
        (root / f"coco81/{split}.txt").write_text("\n".join(lines))
    rows = (f"{k},{name},{k},1,2" for k, name in enumerate(names))
    (root / "coco81/classes.csv").write_text("id,name,r,g,b\n" + "\n".join(rows))


def objects_of_ade(root, names, masks):
    rows = (f"{k},0,0,0,{name}" for k, name in enumerate(names, 1))
    (root / "objectInfo150.csv").write_text("Idx,Ratio,Train,Val,Name\n" + "\n".join(rows))


def colors(labels, *void):
    return [*labels.colors, *(void or ((0, 0, 0),))]


BENCHMARKS = {
    "ADE20K": Bench(150, "images/{}/x{}.jpg", "annotations/{}/x{}.png", [*range(1, 151), 0], ("training", "validation"),
                    objects_of_ade),
    "BDD100K": Bench(19, "images/10k/{}/x{}.jpg", "labels/sem_seg/masks/{}/x{}.png", plain(19)),
    "CamVid": Bench(11, "{}/0001TP_{}.png", "{}annot/0001TP_{}.png", plain(11, 11)),
    "Cityscapes": Bench(19, "leftImg8bit/{}/ulm/x{}_leftImg8bit.png", "gtFine/{}/ulm/x{}_gtFine_labelIds.png",
                        [*CITYSCAPES_LABEL_IDS, 4]),
    "COCO": Bench(5, "{}2017/x{}.png", "coco81/masks/{}2017/x{}.png", plain(5), also=prepared_coco),
    "COCO panoptic": Bench(5, "{}2017/x{}.png", "", plain(5), also=panoptic),
    "COCO-Stuff": Bench(171, "{}2017/x{}.jpg", "stuffthingmaps/{}2017/x{}.png",
                        [v for v in range(182) if v not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)] + [V]),
    "DeepGlobe": Bench(6, "{}/{}_sat.jpg", "{}/{}_mask.png", colors(LAND_COVER), ("train", "valid")),
    "DRIVE": Bench(2, "training/images/{}_training.tif", "training/1st_manual/{}_manual1.gif", [0, 255, 255],
                   ("training", "test"), field_of_view, suffix=".gif"),
    "ISPRS": Bench(6, "top_potsdam_2_{}_RGB.tif", "top_potsdam_2_{}_label.tif", colors(ISPRS), ("", ""), suffix=".tif"),
    "KITTI": Bench(19, "training/image_2/x{}.png", "training/semantic/x{}.png", [*CITYSCAPES_LABEL_IDS, 4], ("", "")),
    "LoveDA": Bench(7, "{}/Rural/images_png/x{}.png", "{}/Rural/masks_png/x{}.png", [*range(1, 8), 0],
                    ("Train", "Val")),
    "Mapillary Vistas": Bench(5, "{}/images/x{}.jpg", "{}/v2.0/labels/x{}.png", plain(5, 5),
                              ("training", "validation"), config_of_mapillary),
    "masks of objects": Bench(2, "", "", [0, 255]),
    "MVTec AD": Bench(3, "", "", [0, 255, 255]),
    "NYU Depth v2": Bench(40, "RGB/x{}.png", "Label/x{}.png", [*range(1, 41), 0], ("", ""), lists_of_nyu),
    "PASCAL Context": Bench(33, "VOC2007/JPEGImages/x{}.jpg", "33_context_labels/x{}.png", [*range(1, 34), 0],
                            ("", ""), names_of_voc),
    "SUIM": Bench(8, "{}/images/x{}.jpg", "{}/masks/x{}.bmp", [*SUIM.colors, None], ("train_val", "TEST"),
                  suffix=".bmp"),
}  # fmt: skip
assert (len(LOVEDA), len(COCO_STUFF)) == (7, 171)


NAMING = (names_of_voc, config_of_mapillary, panoptic, prepared_coco, objects_of_ade)
"""What names the classes in the benchmark's own way."""
PURE = ("DeepGlobe", "SUIM")
"""Whose masks are pictures in colours; palettes there are those of one's own data."""


def test_every_row_of_the_table_is_written():
    """Here, in `test_mask_encodings`, or as COCO's polygons there; "lists" and the like are called as in the table."""
    words = {"Roboflow": "side by side", "folders": "folder", "mmsegmentation": "folder", "Darwin": "folder"}
    words |= {f"{name} with label_colors.txt": f"Datumaro {name}" for name in ("CamVid", "Cityscapes", "KITTI")}
    words |= {"VOC with labelmap.txt": "VOC", "shards, tar": "shards", "shards, TFRecord": "shards"}
    words |= {"Label Studio, PNG": "Label Studio", "Label Studio, NumPy": "Label Studio"}
    there = {words.get(name, name.partition(",")[0]) for name in (*WRITTEN, *TOOLS)}
    assert set(FORMATS) == {*there, *BENCHMARKS, "COCO polygons"}


def place(root, bench, pattern, k):
    split = bench.splits[k >= 3]
    if bench.suffix == ".gif" and k >= 3:
        pattern = pattern.replace("training/", "test/", 1)
    file = root / (pattern.format(split, k) if pattern.count("{}") == 2 else pattern.format(k))
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def write(root, bench, names, masks, data):
    pure = bench in [BENCHMARKS[name] for name in PURE]
    fits = [
        each
        for name, each in ENCODINGS.items()
        if each.suffix == bench.suffix
        and each.colors == bench.in_colors
        and not (pure and "palette" in name)
        and (each.colors or (each.low == 0 and each.high >= 255))
    ]
    for k, ids in masks.items():
        image = place(root, bench, bench.image, k)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (*ids.shape, 3), np.uint8)).save(image)
        if bench.mask:
            raw = np.array([value for value in bench.raw if value is not None])
            stored = raw[np.where(ids == V, bench.count, ids)]
            stored = stored.astype(np.uint8) if bench.in_colors else stored
            palette = np.random.default_rng(k).integers(0, 256, (256, 3), np.uint8)
            data.draw(st.sampled_from(fits)).write(place(root, bench, bench.mask, k), stored, palette)
    if bench.also:
        bench.also(root, names, masks)


def mvtec(root, names, masks):
    """A mask for the defect of each image; pixels that are void are background there."""
    for k, ids in masks.items():
        defect = names[1 + k % (len(names) - 1)]
        for file in (root / f"test/{defect}/x{k}.png", root / f"ground_truth/{defect}/x{k}_mask.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
        ids[:] = np.where(ids % 2 == 1, 1 + k % (len(names) - 1), 0)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (*ids.shape, 3), np.uint8)).save(
            root / f"test/{defect}/x{k}.png"
        )
        Image.fromarray(np.where(ids, 255, 0).astype(np.uint8)).save(root / f"ground_truth/{defect}/x{k}_mask.png")


def objects(root, masks):
    """The pixels of the second class in two masks, which may overlap."""
    for k, ids in masks.items():
        rng = np.random.default_rng(k)
        ids[:] = np.where(ids == 1, 1, 0)
        one = rng.random(ids.shape) < 0.5
        for file in (root / f"x{k}/images/x{k}.png", root / f"x{k}/masks/a{k}.png"):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*ids.shape, 3), np.uint8)).save(root / f"x{k}/images/x{k}.png")
        for name, part in (("a", one), ("b", ~one | (rng.random(ids.shape) < 0.3))):
            Image.fromarray(((ids == 1) & part) * np.uint8(255)).save(root / f"x{k}/masks/{name}{k}.png")


@st.composite
def labels(draw, bench):
    """Five masks, in whose ids every third pixel may be void."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = rng.permutation(bench.count)[: draw(st.integers(2, 6))]
    masks = {}
    for k in range(5):
        masks[k] = rng.choice(some, rng.integers((2, 4), (7, 9))).astype(np.uint8)
        if bench.raw[-1] is not None and draw(st.booleans()):
            masks[k][rng.random(masks[k].shape) < 0.3] = V
        masks[k].flat[: len(some)] = some[: masks[k].size]
    return masks


@pytest.mark.parametrize("name", BENCHMARKS)
@FEW
@given(data=st.data())
def test_every_benchmark(name, data):
    bench = BENCHMARKS[name]
    masks = data.draw(labels(bench))
    names = tuple(f"{'big ' * (k % 2)}class {chr(97 + k % 26)}{k}" for k in range(bench.count))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if name == "MVTec AD":
            names = ("background", "bent", "cut")
            mvtec(root, names, masks)
        elif name == "masks of objects":
            names = ("background", "nucleus")
            objects(root, masks)
        else:
            write(root, bench, names, masks, data)
        if bench.also not in NAMING and name != "MVTec AD":
            (root / "classes.txt").write_text("\n".join(names))  # as many names as the benchmark has classes
        layout = open_layout(root)
        assert layout.kind == name
        assert layout.labels.names == names
        read = set()
        for sources in layout.splits.values():
            for source in sources:
                k = int(
                    Path(source.name)
                    .stem.removeprefix("top_potsdam_2_")
                    .removeprefix("0001TP_")
                    .lstrip("x")
                    .partition("_")[0]
                )
                read.add(k)
                ids, unknown = layout.rule.apply(source.read().label)
                assert not unknown
                assert np.array_equal(ids, masks[k]), k
        assert read == set(masks)
