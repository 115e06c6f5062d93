"""Small sound datasets of many formats, by name, written by a function of the folder."""

import json

import numpy as np
import test_tools_datumaro as datumaro
import test_tools_polygons as polygons
import test_tools_supervisely as supervisely
from PIL import Image
from test_tools_darwin import HUES, export
from test_tools_label_studio import put_mask
from test_tools_segments_ai import ANNOTATIONS, CATEGORIES, INSTANCES

from degrid.data.tfrecord.records import encode_example, framed

IDS = (np.arange(48, dtype=np.uint8).reshape(6, 8)) % 3
TABLE = "id,name,r,g,b\n0,road,10,0,0\n1,car,0,20,0\n2,sign,0,0,30\n255,void,255,255,255\n"


def _put(file, values, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(file, **options)


def _folder(root, names=("a", "b", "c"), images="images", masks="masks", mask=IDS):
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        _put(root / images / f"{name}.png", pixels)
        _put(root / masks / f"{name}.png", mask)


def _text(**files):
    """A folder of images and masks with text files: a__b=... is a.b."""

    def write(root):
        _folder(root)
        for name, text in files.items():
            (root / name.replace("__", ".")).write_text(text)

    return write


def _description(root):
    _folder(root, ("a", "b"), "images/train", "masks/train")
    _folder(root, ("c",), "images/val", "masks/val")
    classes = {0: "road", 1: {"name": "car", "color": [0, 20, 0], "ids": [1]}, 2: {"name": "sign", "ids": [2, 7]}}
    rest = {"void": [9, [255, 255, 255]], "nearest_color": 3, "accept": ["one-class"], "palette": "index"}
    value = {"path": ".", "train": "images/train", "val": "images/val", "classes": classes, **rest}
    (root / "dataset.yaml").write_text(json.dumps(value))  # JSON is YAML


def _description_of_ids(root):
    _folder(root)
    (root / "list.txt").write_text("/images/a.png /masks/a.png\n/images/b.png /masks/b.png\n")
    split = {"images": "images", "masks": "masks"}
    value = {"train": "list.txt", "val": split, "classes": ["road", "car"], "ids": {0: 0, 1: 1, 2: "void"}}
    (root / "dataset.yaml").write_text(json.dumps(value))


def _coco(root):
    names = [f"{k}.png" for k in range(3)]
    polygons.coco(root / "annotations" / "instances_default.json", names)
    for name in names:
        polygons.put_image(root / "images" / "default" / name)


def _coco_runs(root):
    shapes = ((1, polygons.runs(polygons.TRUTH == 1)), (2, [polygons.SIGN]), (2, {"size": [6, 8], "counts": "1"}))
    polygons.coco(root / "train" / "a.json", ["a.png"], shapes=shapes[:2], bbox=[1, 1, 3, 3])
    polygons.put_image(root / "train" / "a.png")


def _yolo(root):
    polygons.yolo(root, ["train/images/a.png", "train/images/b.png", "valid/images/c.png"])
    value = {"train": "../train/images", "val": "../valid/images", "nc": 2, "names": ["car", "sign"]}
    (root / "data.yaml").write_text(json.dumps(value))


def _yolo_of_lists(root):
    polygons.yolo(root, ["images/train/a.png", "images/train/c.png", "images/val/b.png"])
    (root / "train.txt").write_text("images/train/a.png\n./images/train/c.png\n")
    value = {"path": "./", "train": "train.txt", "val": "/elsewhere/images/val", "names": {0: "car", 1: "sign"}}
    (root / "data.yaml").write_text(json.dumps(value))


def _labelme(root):
    car, sign = polygons.pairs_of(polygons.CAR), polygons.pairs_of(polygons.SIGN)
    mask = {"mask": polygons.png((np.ones((2, 2)) * 255).astype(np.uint8))}
    for name in "abc":
        kinds = [
            *(("car", car, "polygon", {}), ("sign", [sign[0], sign[2]], "rectangle", {})),
            *(("sign", [[2, 2], [3, 3]], "circle", {}), ("sign", [[1, 1], [5, 5]], "linestrip", {})),
            ("sign", [[4, 2], [5, 3]], "mask", mask),
        ]
        polygons.labelme(root / f"{name}.json", kinds)
        polygons.put_image(root / f"{name}.png")


def _via(root):
    regions = [polygons.via_region(polygons.CAR, type="car"), polygons.via_region(polygons.SIGN, type="sign")]
    circle = {"shape_attributes": {"name": "circle", "cx": 3, "cy": 3, "r": 2}, "region_attributes": {"type": "sign"}}
    ellipse = {"name": "ellipse", "cx": 3, "cy": 3, "rx": 2, "ry": 1, "theta": 0.5}
    regions += [circle, {"shape_attributes": ellipse, "region_attributes": {"type": "car"}}]
    content = {"_via_settings": {}, "_via_img_metadata": polygons.via({"a.png": regions})}
    polygons.put_json(root / "train" / "via_project.json", content)
    polygons.put_json(root / "val" / "via_region_data.json", polygons.via({"b.png": dict(enumerate(regions))}))
    polygons.put_image(root / "train" / "a.png")
    polygons.put_image(root / "val" / "b.png")


def _label_studio(root):
    polygon = polygons.result("polygon", {"points": polygons.percent(polygons.CAR), "closed": True}, "car")
    strokes = polygons.result("brush", {"format": "rle", "rle": polygons.brush(polygons.TRUTH == 2)}, "sign")
    box = polygons.result("rectangle", {"x": 20, "y": 20, "width": 30, "height": 30, "rotation": 20}, "sign")
    round_ = polygons.result("ellipse", {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 9}, "sign")
    tasks = [
        {
            "id": k,
            "data": {"image": f"/data/upload/1/0a1b2c3d-{k}.png"},
            "annotations": [{"id": 2, "result": [polygon, strokes, box, round_]}],
        }
        for k in range(3)
    ]
    polygons.put_json(root / "project.json", tasks)
    for k in range(3):
        polygons.put_image(root / "images" / f"0a1b2c3d-{k}.png")


def _label_studio_masks(root):
    for task in range(1, 4):
        _put(root / "images" / f"{task:08x}-street {task}.jpg", np.zeros((6, 8, 3), np.uint8))
        for value, label in ((1, "crack"), (2, "old pothole")):
            put_mask(root / "brush", value == IDS, label, task)
    tasks = [{"id": k, "data": {"n": 3, "image": f"/d/{k:08x}-street%20{k}.jpg"}} for k in range(1, 4)]
    (root / "project-1.json").write_text(json.dumps(tasks))


def _supervisely(root):
    polygon = {"exterior": polygons.pairs_of(polygons.CAR)[:3], "interior": [[[1, 1], [2, 1], [2, 2]]]}
    drawn = {"classTitle": "crack", "geometryType": "polygon", "points": polygon}
    for dataset, names in (("train", ("a.jpg", "a.png")), ("val", ("b.jpg",))):
        for name in names:
            bitmaps = [supervisely.bitmap(k == supervisely.TRUTH, supervisely.NAMES[k]) for k in (1, 2)]
            supervisely.put(root, dataset, name, [*bitmaps, drawn])
    supervisely.put_meta(root)


def _segments(root):
    folder = root / "segments" / "jane_roads" / "v1.0"
    samples = []
    for name in ("a", "b"):
        _put(folder / f"{name}.jpg", np.zeros((2, 3, 3), np.uint8))
        _put(folder / f"{name}_label_ground-truth.png", INSTANCES)
        label = {"label_status": "LABELED", "attributes": {"annotations": ANNOTATIONS}}
        samples.append({"name": f"{name}.jpg", "labels": {"ground-truth": label}})
    dataset = {"name": "roads", "task_attributes": {"categories": CATEGORIES}, "samples": samples}
    (root / "roads-v1.0.json").write_text(json.dumps({"name": "v1.0", "dataset": dataset}))


def _panoptic(root):
    info = [{"id": 1, "category_id": 1, "iscrowd": 0}, {"id": 2, "category_id": 4, "iscrowd": 0}]
    for split in ("train", "val"):
        _put(root / f"{split}2017" / "a.jpg", np.zeros((6, 8, 3), np.uint8))
        _put(root / "annotations" / f"panoptic_{split}2017" / "a.png", np.dstack([IDS, IDS * 0, IDS * 0]))
        rows = [{"image_id": 1, "file_name": "a.png", "segments_info": info}]
        categories = [
            {"id": 1, "name": "road", "isthing": 0, "color": [1, 2, 3]},
            {"id": 4, "name": "car", "isthing": 1},
        ]
        images = [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}]
        content = {"images": images, "annotations": rows, "categories": categories}
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))


def _records(root):
    def stored(name):
        return (root / name).read_bytes()

    _folder(root)
    for split, key in (("train", "image/segmentation/encoded"), ("val", "image/segmentation/class/encoded")):
        parts = {"image/encoded": stored("images/a.png"), key: stored("masks/a.png"), "image/filename": b"a.png"}
        sizes = {"image/height": 6, "image/width": 8}
        (root / f"{split}.tfrecord").write_bytes(framed(encode_example({**parts, **sizes})) * 2)
    raw = {"height": 6, "width": 8, "image_raw": bytes(144), "annotation_raw": IDS.tobytes()}
    (root / "test.tfrecord").write_bytes(framed(encode_example(raw)))
    for name in ("images", "masks"):
        for file in (root / name).iterdir():
            file.unlink()
        (root / name).rmdir()
    (root / "classes.txt").write_text("road\ncar\nsign\n")


def _arrays(root):
    _folder(root)
    for name in "abc":
        (root / "masks" / f"{name}.png").unlink()
        np.save(root / "masks" / f"{name}.npy", IDS.astype(np.int64))


def _wide(root):
    _folder(root)
    for k, name in enumerate("abc"):
        (root / "images" / f"{name}.png").unlink()
        _put(root / "images" / f"{name}.tif", np.random.default_rng(k).integers(0, 4096, (6, 8)).astype(np.uint16))


def _turned(root):
    for name in "abc":
        exif = Image.Exif()
        exif[0x0112] = 6
        _put(root / "images" / f"{name}.jpg", np.zeros((8, 6, 3), np.uint8), exif=exif)
        _put(root / "masks" / f"{name}.png", IDS)


COLORED = np.array([(10, 0, 0), (0, 20, 0), (0, 0, 30)], np.uint8)[IDS]
DATASETS = {
    "names": _text(classes__txt="road\ncar\nsign\n"),
    "numbered names": _text(classes__txt="0 road\n1: car\n2, sign\n"),
    "table": _text(classes__csv=TABLE),
    "table without ids": _text(classes__csv="name;r;g;b\nroad;1;2;3\ncar;4;5;6\nsign;7;8;9\n"),
    "pixel values": _text(_classes__csv="Pixel Value, Class\n0, road\n1, car\n2, sign\n"),
    "labelmap": _text(labelmap__txt="# label:color_rgb:parts:actions\nroad:0,0,0::\ncar:1,1,1::\nsign:2,2,2::\n"),
    "label colours": _text(label_colors__txt="0 0 0 road\n1 1 1 car\n2 2 2 sign\n"),
    "meta": _text(
        dataset_meta__json='{"labels": ["a", "b", "c"], "label_map": {"0": "a"}, "segmentation_colors": [[0, 0, 0]]}'
    ),
    "lists": _text(
        train__txt="/images/a.png /masks/a.png\n/images/b.png /masks/b.png\n", val__txt="/images/c.png /masks/c.png\n"
    ),
    "names in lists": _text(train__txt="a\nb.png\n", val__txt="images/c.png\n", classes__txt="a\nb\nc\n"),
    "description": _description,
    "description of ids": _description_of_ids,
    "colours": lambda root: (_folder(root, mask=COLORED), (root / "classes.csv").write_text(TABLE)),
    "COCO": _coco,
    "COCO runs": _coco_runs,
    "YOLO": _yolo,
    "YOLO lists": _yolo_of_lists,
    "labelme": _labelme,
    "VIA": _via,
    "Label Studio": _label_studio,
    "Label Studio masks": _label_studio_masks,
    "Supervisely": _supervisely,
    "Segments.ai": _segments,
    "panoptic": _panoptic,
    "Darwin": lambda root: export(root, [" ".join(map(str, hue)) for hue in HUES], np.array(HUES, np.uint8)[IDS]),
    "CamVid": lambda root: datumaro.camvid(
        root,
        datumaro.painted(),
        {"train": ["a", "b"], "val": ["c"]},
        datumaro.color_lines(datumaro.NAMES[1:], datumaro.COLORS[1:]),
    ),
    "VOC": lambda root: datumaro.voc(root, datumaro.painted(), {"train": ["a"], "val": ["b"]}, datumaro.label_map()),
    "TFRecord": _records,
    "arrays": _arrays,
    "wide": _wide,
    "turned": _turned,
}
