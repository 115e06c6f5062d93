"""What was written is what is read: random classes, colours and void, in every encoding and every format."""

import base64
import csv
import html
import io
import json
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mask_writers import ENCODINGS
from PIL import Image
from test_tools_polygons import brush

from degrid.data import open_dataset, write_tfrecord
from degrid.data.dataset import open_layout
from degrid.types import IGNORE_INDEX
from degrid.verbs.write_shards import write_shards

# A world is small as it is drawn; making it smaller after a failure would take minutes.
FEW = settings(max_examples=12, phases=[Phase.explicit, Phase.reuse, Phase.generate])


class World(NamedTuple):
    """Classes, and masks of train ids by the name of their image.

    colors: of each class, and of void last. raw: the id in the files of each class, and of void last.
    """

    names: tuple[str, ...]
    colors: np.ndarray
    raw: np.ndarray
    masks: dict[str, np.ndarray]

    def stored(self, name, encoding):
        """What a mask file holds: raw ids or colours."""
        table = self.colors if encoding.colors else self.raw
        ids = self.masks[name]
        return table[np.where(ids == IGNORE_INDEX, len(self.names), ids)]

    def write(self, file, encoding):
        """The mask of the image that the file is named after, up to a dot or underscore."""
        file.parent.mkdir(parents=True, exist_ok=True)
        palette = np.zeros((256, 3), np.uint8)
        shown = (self.raw >= 0) & (self.raw < 256)
        palette[self.raw[shown]] = self.colors[shown]
        encoding.write(file, self.stored(file.name[:2], encoding), palette)

    def image(self, file):
        """An image of the size of its mask."""
        file.parent.mkdir(parents=True, exist_ok=True)
        seed = int(file.name[1])
        size = self.masks[file.name[:2]].shape
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(file)


@st.composite
def worlds(draw, encoding, remapped=False):
    """Classes that an encoding can hold. remapped: their ids are any numbers; else 0, 1, .. and 255 for void."""
    room = encoding.high - encoding.low + 1
    most = 6 if encoding.colors else min(6, max(2, room - remapped))
    number = draw(st.integers(2, most))
    with_void = draw(st.booleans()) and (encoding.colors or encoding.high >= 255 or (remapped and number < room))
    triple = st.tuples(*[st.integers(0, 255)] * 3).filter(lambda rgb: len(set(rgb)) > 1)
    colors = draw(st.lists(triple, min_size=number + 1, max_size=number + 1, unique=True))
    if draw(st.booleans()):
        colors[0] = (0, 0, 0)
    ids = [*range(number), IGNORE_INDEX]
    if remapped and not encoding.colors:
        one = st.integers(encoding.low, encoding.high)
        count = number + 1 if number < room else number
        ids = draw(st.lists(one, min_size=count, max_size=count, unique=True)) + [0] * (number + 1 - count)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = {}
    for name in ("x0", "x1", "x2", "x3"):
        size = rng.integers((2, 4), (7, 9))
        mask = rng.integers(0, number, size).astype(np.uint8)
        if with_void:
            mask[rng.random(size) < 0.3] = IGNORE_INDEX
        places = rng.permutation(mask.size)[:number]
        mask.flat[places] = np.arange(number)  # every class occurs, as in data that raise no doubts
        masks[name] = mask
    names = tuple(f"{'big ' * (index % 2)}class {index}" for index in range(number))
    return World(names, np.array(colors, np.uint8), np.array(ids), masks)


# ---- formats ------------------------------------------------------------------------------------------------
# Each writes a world below a folder and gives what to open.


def class_rows(world, root):
    with (root / "classes.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("id", "name", "r", "g", "b"))
        rows.writerows((k, name, *world.colors[k].tolist()) for k, name in enumerate(world.names))
        rows.writerow((255, "void", *world.colors[-1].tolist()))


def folders(world, root, encoding):
    for name in world.masks:
        world.image(root / "images" / f"{name}.png")
        world.write(root / "masks" / f"{name}_mask{encoding.suffix}", encoding)
    class_rows(world, root)
    return root


def split_folders(world, root, encoding):
    for k, name in enumerate(world.masks):
        split = "train" if k else "val"
        world.image(root / split / "images" / f"{name}.png")
        world.write(root / split / "masks" / f"{name}{encoding.suffix}", encoding)
    class_rows(world, root)
    return root


def scenes(world, root, encoding):
    for k, name in enumerate(world.masks):
        scene = root / ("train" if k else "val") / f"scene{k}"
        world.image(scene / "images" / f"{name}.png")
        world.write(scene / "masks" / f"{name}{encoding.suffix}", encoding)
    class_rows(world, root)
    return root


def side_by_side(world, root, encoding):
    for name in world.masks:
        world.image(root / "here" / f"{name}.jpg")
        world.write(root / "here" / f"{name}_mask{encoding.suffix}", encoding)
    class_rows(world, root / "here")
    return root / "here"


def lists(world, root, encoding):
    lines = []
    for name in world.masks:
        world.image(root / "pictures" / f"{name}.png")
        world.write(root / "truth" / f"{name}{encoding.suffix}", encoding)
        lines.append(f"/pictures/{name}.png /truth/{name}{encoding.suffix}")
    (root / "train.txt").write_text("\n".join(lines[1:]))
    (root / "val.txt").write_text(lines[0])
    class_rows(world, root)
    return root / "train.txt"


def voc(world, root, encoding):
    for name in world.masks:
        world.image(root / "JPEGImages" / f"{name}.jpg")
        world.write(root / "SegmentationClass" / f"{name}{encoding.suffix}", encoding)
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("x0\nx1")
    (folder / "val.txt").write_text("x2\nx3\n")
    rows = [*world.names, "void"]
    lines = (f"{name}:{','.join(map(str, color))}::" for name, color in zip(rows, world.colors.tolist(), strict=True))
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    return root


def described(world, root, encoding):
    """dataset.yaml: the ids in the files are any numbers."""
    for k, name in enumerate(world.masks):
        split = "train" if k else "val"
        world.image(root / "images" / split / f"{name}.png")
        world.write(root / "masks" / split / f"{name}{encoding.suffix}", encoding)
    colors, raw = world.colors.tolist(), world.raw.tolist()
    classes = {
        k: {"name": name, "color": colors[k], **({} if encoding.colors else {"ids": [raw[k]]})}
        for k, name in enumerate(world.names)
    }
    void = [colors[-1]] if encoding.colors else [raw[-1]] if raw[-1] not in raw[:-1] else []
    rows = {"train": "images/train", "val": "images/val", "classes": classes, "void": void}
    (root / "dataset.yaml").write_text(yaml.safe_dump(rows))
    return root / "dataset.yaml"


def _label_colors(world, root):
    rows = zip([*world.names, "void"], world.colors.tolist(), strict=True)
    (root / "label_colors.txt").write_text("\n".join(f"{r} {g} {b} {name}" for name, (r, g, b) in rows))


def datumaro_camvid(world, root, encoding):
    world.colors[0] = 0  # else black background would be added
    for k, name in enumerate(world.masks):
        split = "train" if k else "default"
        world.image(root / split / f"{name}.png")
        world.write(root / f"{split}annot" / f"{name}{encoding.suffix}", encoding)
    _label_colors(world, root)
    return root


def datumaro_kitti(world, root, encoding):
    for k, name in enumerate(world.masks):
        split = "train" if k else "val"
        world.image(root / split / "image_2" / f"{name}.png")
        world.write(root / split / "semantic" / f"{name}{encoding.suffix}", encoding)
    world.colors[0] = 0
    _label_colors(world, root)
    return root


def roboflow(world, root, encoding):
    raw = world.raw.tolist()
    for k, name in enumerate(world.masks):
        folder = root / ("train" if k else "valid")
        world.image(folder / f"{name}_jpg.rf.0a.jpg")
        world.write(folder / f"{name}_jpg.rf.0a_mask{encoding.suffix}", encoding)
        lines = [f"{value}, {name}" for value, name in zip(raw, world.names, strict=False)]
        void = [f"{raw[-1]}, void"] if raw[-1] not in raw[:-1] else []
        (folder / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *lines, *void]))
    return root


def mmsegmentation(world, root, encoding):
    for k, name in enumerate(world.masks):
        split = "train" if k else "val"
        world.image(root / "img_dir" / split / f"{name}.png")
        world.write(root / "ann_dir" / split / f"{name}{encoding.suffix}", encoding)
    class_rows(world, root)
    return root


def darwin(world, root, encoding):
    """class_mapping.csv with the value or the colour of each class."""
    for name in world.masks:
        world.image(root / "images" / f"{name}.jpg")
        world.write(root / "masks" / f"{name}{encoding.suffix}", encoding)
    values = [" ".join(map(str, color)) for color in world.colors.tolist()] if encoding.colors else world.raw.tolist()
    rows = list(zip([*world.names, "void"], values, strict=True))
    rows = rows[: len(set(world.raw.tolist()))]  # without void where it has no value
    lines = ["class_name,class_color", *(f"{name},{value}" for name, value in rows)]
    (root / "class_mapping.csv").write_text("\n".join(lines))
    return root


def datumaro_cityscapes(world, root, encoding):
    for k, name in enumerate(world.masks):
        place = Path("train" if k else "val", "ulm")
        world.image(root / "leftImg8bit" / place / f"{name}_leftImg8bit.png")
        world.write(root / "gtFine" / place / f"{name}_gtFine_labelIds{encoding.suffix}", encoding)
    world.colors[0] = 0
    _label_colors(world, root)
    return root


def tfrecord(world, root, encoding):
    """Written from folders."""
    folders(world, root / "folders", encoding)
    (root / "records").mkdir()
    for split in ("train", "val"):
        write_tfrecord(open_dataset(root / "folders", split), root / "records" / f"x_{split}.tfrecord")
    class_rows(world, root / "records")
    return root / "records"


def shards(kind):
    """Written from folders."""

    def write(world, root, encoding):
        folders(world, root / "folders", encoding)
        write_shards(root / "folders", root / "shards", kind=kind, size=2000)
        return root / "shards"

    return write


def webdataset(world, root, encoding):
    """As others write it: files as they are, and no index."""
    folders(world, root / "folders", encoding)
    (root / "tars").mkdir()
    for k, name in enumerate(world.masks):
        with tarfile.open(root / "tars" / f"{'train' if k else 'val'}-{k:04d}.tar", "w") as archive:
            archive.add(root / "folders" / "images" / f"{name}.png", f"{name}.png")
            archive.add(root / "folders" / "masks" / f"{name}_mask{encoding.suffix}", f"{name}.seg{encoding.suffix}")
    class_rows(world, root / "tars")
    return root / "tars"


class Format(NamedTuple):
    """write: a world below a folder. fits: the encodings it may come in. remapped: the ids may be any numbers."""

    write: object
    fits: object
    remapped: bool = False


FORMATS = {
    "folders": Format(folders, lambda e: True),
    "split folders": Format(split_folders, lambda e: True),
    "scenes": Format(scenes, lambda e: True),
    "side by side": Format(side_by_side, lambda e: True),
    "lists": Format(lists, lambda e: True),
    "VOC with labelmap.txt": Format(voc, lambda e: True),
    "dataset.yaml": Format(described, lambda e: True, remapped=True),
    "CamVid with label_colors.txt": Format(datumaro_camvid, lambda e: True),
    "KITTI with label_colors.txt": Format(datumaro_kitti, lambda e: not e.colors),
    "mmsegmentation": Format(mmsegmentation, lambda e: True),
    "Darwin": Format(darwin, lambda e: e.colors or e.low == 0, remapped=True),
    "Cityscapes with label_colors.txt": Format(datumaro_cityscapes, lambda e: not e.colors and e.suffix == ".png"),
    "TFRecord": Format(tfrecord, lambda e: True),
    "shards, tar": Format(shards("tar"), lambda e: True),
    "shards, TFRecord": Format(shards("tfrecord"), lambda e: True),
    "WebDataset": Format(webdataset, lambda e: e.suffix == ".png"),
    "Roboflow": Format(roboflow, lambda e: not e.colors and e.low == 0, remapped=True),
}


def read_back(place):
    """The masks of all splits, by the first two letters of the image's name; and the names of the classes."""
    found, names = {}, set()
    for split in open_layout(place).splits:
        dataset = open_dataset(place, split)
        names.add(dataset.labels.names)
        for index in range(len(dataset)):
            sample = dataset[index]
            found[Path(sample.name).name[:2]] = sample.label.numpy()
    assert len(names) == 1
    return found, names.pop()


def check(world, encoding, layout):
    with tempfile.TemporaryDirectory() as folder:
        found, names = read_back(layout.write(world, Path(folder), encoding))
    assert names == world.names
    assert found.keys() == world.masks.keys()
    for name, ids in world.masks.items():
        assert np.array_equal(found[name], ids), name


@pytest.mark.parametrize("name", ENCODINGS)
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_every_encoding(name, data):
    """In folders and dataset.yaml, which take them all."""
    encoding = ENCODINGS[name]
    layout = FORMATS[data.draw(st.sampled_from(["folders", "dataset.yaml"]))]
    check(data.draw(worlds(encoding, layout.remapped)), encoding, layout)


def check_format(name, data):
    layout = FORMATS[name]
    encoding = ENCODINGS[data.draw(st.sampled_from([name for name in ENCODINGS if layout.fits(ENCODINGS[name])]))]
    check(data.draw(worlds(encoding, layout.remapped)), encoding, layout)


@pytest.mark.parametrize("name", FORMATS)
@settings(FEW, max_examples=8)
@given(data=st.data())
def test_every_format(name, data):
    check_format(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@settings(FEW, max_examples=40)
@given(data=st.data())
def test_every_format_many_times(name, data):
    check_format(name, data)


# ---- shapes -------------------------------------------------------------------------------------------------


def runs(region):
    """COCO's run-length code of a mask [H,W]: background and object in turn, column by column."""
    flat = np.concatenate([[0], region.ravel(order="F").astype(int), [0]])
    ends = np.flatnonzero(np.diff(flat)).tolist()
    counts = np.diff([0, *ends, region.size] if not ends or ends[-1] != region.size else [0, *ends])
    return {"size": list(region.shape), "counts": counts.tolist()}


def packed(region):
    code = pytest.importorskip("pycocotools.mask").encode(np.asfortranarray(region.astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def rectangles(region):
    """Polygons, one around each run of a row."""
    found = []
    for y, row in enumerate(region):
        ends = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]]))).tolist()
        found += [[a, y, b, y, b, y + 1, a, y + 1] for a, b in zip(ends[::2], ends[1::2], strict=True)]
    return found


@pytest.mark.parametrize("shape", [runs, packed, rectangles])
@FEW
@given(data=st.data())
def test_shapes_in_cocos_json(shape, data):
    """The first class is the background, void is a crowd; an object may lie over a larger one."""
    world = data.draw(worlds(ENCODINGS["grey PNG"]))
    world = world._replace(names=("background", *world.names[1:]))
    first = data.draw(st.integers(0, 9))
    images, annotations = [], []
    for k, (name, ids) in enumerate(world.masks.items()):
        images.append({"id": 7 * k, "file_name": f"{name}.png", "height": ids.shape[0], "width": ids.shape[1]})
        for value in np.unique(ids).tolist():
            region = ids == value
            if value and value != IGNORE_INDEX:
                # The pixels of smaller objects may belong to larger ones, too.
                sizes = {int(other): int((ids == other).sum()) for other in np.unique(ids) if other != IGNORE_INDEX}
                less = [other for other, size in sizes.items() if other != 0 and size < sizes[value] // 2]
                if less and data.draw(st.booleans()):
                    region = region | (ids == less[0])
            if value:
                number = first + (value if value != IGNORE_INDEX else 1)
                row = {"id": len(annotations), "image_id": 7 * k, "category_id": number, "segmentation": shape(region)}
                annotations.append({**row, "iscrowd": int(value == IGNORE_INDEX)})
    categories = [{"id": first + index, "name": name} for index, name in enumerate(world.names) if index]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in world.masks:
            world.image(root / "images" / f"{name}.png")
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "instances_default.json").write_text(json.dumps(content))
        (root / "dataset.yaml").write_text("crowd: void\n")
        found, names = read_back(root)
    assert names == world.names
    for name, ids in world.masks.items():
        assert np.array_equal(found[name], ids), name


# ---- objects in the files of annotation tools -------------------------------------------------------------------


def objects(ids):
    """The classes of a mask but the first, background, each with its pixels; void is `IGNORE_INDEX`."""
    return [(value, ids == value) for value in np.unique(ids).tolist() if value]


def by_alphabet(world):
    """The world as a tool shows it that stores no order of its classes."""
    order = sorted(range(1, len(world.names)), key=lambda value: world.names[value])
    table = np.full(256, IGNORE_INDEX, np.uint8)
    table[[0, *order]] = np.arange(len(order) + 1)
    masks = {name: table[ids] for name, ids in world.masks.items()}
    return world._replace(names=("background", *(world.names[value] for value in order)), masks=masks)


def called(world, value):
    return "void" if value == IGNORE_INDEX else world.names[value]


def png_text(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def yolo(world, root):
    """Polygons in fractions; void is a class of that name."""
    for name, ids in world.masks.items():
        world.image(root / "images" / "train" / f"{name}.png")
        lines = [
            f"{(value if value != IGNORE_INDEX else len(world.names)) - 1} "
            + " ".join(repr(each / size) for each, size in zip(polygon, [*ids.shape[::-1]] * 4, strict=True))
            for value, region in objects(ids)
            for polygon in rectangles(region)
        ]
        file = root / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines))
    names = [*world.names[1:], "void"]
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "val": "images/train", "names": names}))
    return world


def labelme(world, root):
    """Polygons and masks of one group, in turn."""
    for name, ids in world.masks.items():
        world.image(root / f"{name}.png")
        shapes = []
        for value, region in objects(ids):
            label = "__ignore__" if value == IGNORE_INDEX else world.names[value]
            if value % 2:
                points = [[0, 0], [ids.shape[1] - 1, ids.shape[0] - 1]]
                data = base64.b64encode(png_text(region.astype(np.uint8))).decode()
                shapes.append({"label": label, "shape_type": "mask", "points": points, "mask": data})
            else:
                shapes += [
                    {
                        "label": label,
                        "shape_type": "polygon",
                        "points": np.reshape(each, (-1, 2)).tolist(),
                        "group_id": 1,
                    }
                    for each in rectangles(region)
                ]
        size = {"imageHeight": ids.shape[0], "imageWidth": ids.shape[1]}
        content = {"imagePath": f"{name}.png", "imageData": None, "shapes": shapes, **size}
        (root / f"{name}.json").write_text(json.dumps(content))
    return by_alphabet(world)


def via(world, root):
    """A region without a class is void."""
    content = {}
    for name, ids in world.masks.items():
        world.image(root / f"{name}.png")
        regions = [
            {
                "shape_attributes": {"name": "polygon", "all_points_x": each[::2], "all_points_y": each[1::2]},
                "region_attributes": {} if value == IGNORE_INDEX else {"kind": world.names[value]},
            }
            for value, region in objects(ids)
            for each in rectangles(region)
        ]
        content[f"{name}.png99"] = {"filename": f"{name}.png", "size": 99, "regions": regions, "file_attributes": {}}
    (root / "via_region_data.json").write_text(json.dumps(content))
    return by_alphabet(world)


def via_round(world, root):
    """A circle around each pixel, an ellipse around each run of a row, or a line around that, in turn."""
    content = []
    for name, ids in world.masks.items():
        world.image(root / f"{name}.png")
        regions = []
        for value, region in objects(ids):
            for left, top, right, *_ in rectangles(region):
                if value % 3 == 0:
                    shapes = [{"name": "circle", "cx": x + 0.5, "cy": top + 0.5, "r": 0.4} for x in range(left, right)]
                elif value % 3 == 1:
                    middle = {"cx": (left + right) / 2, "cy": top + 0.5}
                    shapes = [{"name": "ellipse", **middle, "rx": (right - left) / 2, "ry": 0.4, "theta": 0}]
                else:
                    x, y = [left, right, right, left, left], [top, top, top + 1, top + 1, top]
                    shapes = [{"name": "polyline", "all_points_x": x, "all_points_y": y}]
                named = {} if value == IGNORE_INDEX else {"kind": world.names[value]}
                regions += [{"shape_attributes": shape, "region_attributes": named} for shape in shapes]
        content.append((f"{name}.png9", {"filename": f"{name}.png", "size": 9, "regions": regions}))
    (root / "via_project.json").write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": dict(content)}))
    return by_alphabet(world)


def datumaro(world, root):
    """Masks and polygons in turn; the file lists the layers in any order, and the lowest one is drawn over."""
    items = []
    for name, ids in world.masks.items():
        world.image(root / "images" / "default" / f"{name}.png")
        rows = [{"type": "mask", "label_id": 0, "rle": packed(ids != IGNORE_INDEX), "z_order": -3}]
        values = [value for value, _ in objects(ids)]
        for layer, value in enumerate(values):
            label = {"label_id": None if value == IGNORE_INDEX else value, "z_order": layer, "group": layer}
            rest = np.isin(ids, values[layer:])  # some of it is drawn over
            if value % 2:
                rows.insert(layer % 2, {"type": "mask", "rle": packed(rest), **label})
            else:
                rows += [{"type": "polygon", "points": polygon, **label} for polygon in rectangles(rest)]
        size = {"size": [*ids.shape]}
        items.append({"id": name, "annotations": rows[::-1], "image": {"path": f"{name}.png", **size}})
    labels = [{"name": name, "parent": "", "attributes": []} for name in world.names]
    content = {"infos": {}, "categories": {"label": {"labels": labels}}, "items": items}
    (root / "annotations").mkdir()
    (root / "annotations" / "default.json").write_text(json.dumps(content))
    return world


def cvat(world, root):
    """Masks and polygons in turn; the lowest layer is drawn over. Background is a label, too."""
    shown = "".join(
        f"<label><name>{html.escape(called(world, k))}</name><color>#{k:02x}ff00</color></label>"
        for k in (*range(len(world.names)), IGNORE_INDEX)
    )
    images = []
    for k, (name, ids) in enumerate(world.masks.items()):
        world.image(root / "images" / f"{name}.png")
        height, width = ids.shape
        shapes = []
        values = [value for value, _ in objects(ids)]
        for layer, value in enumerate(values):
            said = f'label="{html.escape(called(world, value))}" z_order="{layer}"'
            rest = np.isin(ids, values[layer:])  # some of it is drawn over
            if value % 2:
                code = ",".join(map(str, runs(rest.T)["counts"]))
                shapes.append(f'<mask {said} rle="{code}" left="0" top="0" width="{width}" height="{height}"/>')
            else:
                corners = (";".join(f"{x},{y}" for x, y in np.reshape(each, (-1, 2))) for each in rectangles(rest))
                shapes += [f'<polygon {said} points="{each}"/>' for each in corners]
        size = f'width="{width}" height="{height}"'
        images.append(f'<image id="{k}" name="{name}.png" {size}>{"".join(reversed(shapes))}</image>')
    text = f"<annotations><version>1.1</version><meta><task><labels>{shown}</labels></task></meta>{''.join(images)}"
    (root / "annotations.xml").write_text(f"{text}</annotations>", encoding="utf-8")
    return world


def labelme_xml(world, root):
    """Painted masks and polygons in turn; void is a class of that name."""
    for folder in ("Annotations", "Masks"):
        (root / folder / "set").mkdir(parents=True)
    for name, ids in world.masks.items():
        world.image(root / "Images" / "set" / f"{name}.png")
        things = []
        for value, region in objects(ids):
            shapes = []
            if value % 2:
                Image.fromarray(region).save(root / "Masks" / "set" / f"{name}_mask_{value}.png")
                shapes.append(f"<segm><mask>{name}_mask_{value}.png</mask></segm>")
            else:
                for each in rectangles(region):
                    points = (f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in np.reshape(each, (-1, 2)))
                    shapes.append(f"<polygon>{''.join(points)}</polygon>")
            title = html.escape(called(world, value))
            things += [f"<object><name>{title}</name><deleted>0</deleted>{shape}</object>" for shape in shapes]
        said = f"<filename>{name}.png</filename><folder>set</folder>{''.join(things)}"
        (root / "Annotations" / "set" / f"{name}.xml").write_text(f"<annotation>{said}</annotation>", encoding="utf-8")
    return by_alphabet(world)


def supervisely(world, root):
    """Bitmaps and polygons in turn."""
    classes = [*world.names[1:], "void"]
    rows = [{"title": name, "shape": "any", "color": f"#{k + 1:06X}"} for k, name in enumerate(classes)]
    (root / "meta.json").write_text(json.dumps({"classes": rows, "tags": []}))
    (root / "ds" / "ann").mkdir(parents=True)
    for name, ids in world.masks.items():
        world.image(root / "ds" / "img" / f"{name}.png")
        drawn = []
        for value, region in objects(ids):
            title = called(world, value)
            if value % 2:
                top, left = (int(places.min()) for places in np.nonzero(region))
                data = zlib.compress(png_text(region[top:, left:].astype(np.uint8) * 255))
                bitmap = {"origin": [left, top], "data": base64.b64encode(data).decode()}
                drawn.append({"classTitle": title, "geometryType": "bitmap", "bitmap": bitmap})
            else:
                drawn += [
                    {
                        "classTitle": title,
                        "geometryType": "polygon",
                        "points": {"exterior": np.reshape(each, (-1, 2)).tolist(), "interior": []},
                    }
                    for each in rectangles(region)
                ]
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        (root / "ds" / "ann" / f"{name}.png.json").write_text(json.dumps({"size": size, "objects": drawn}))
    return world


def segments_ai(world, root):
    """Instances, two of each class, as grey or as Segments.ai stores them in colour."""
    categories = [
        {"id": 3 * value + 1, "name": called(world, value), "color": [value, 9, 9]}
        for value in (*range(1, len(world.names)), IGNORE_INDEX)
    ]
    samples = []
    for number, (name, ids) in enumerate(world.masks.items()):
        world.image(root / f"{name}.png")
        instances, rows = np.zeros(ids.shape, np.int64), []
        for value, region in objects(ids):
            for half in (0, 1):
                rows.append({"id": 300 * len(rows) + 1, "category_id": 3 * value + 1})
                part = region & (np.arange(ids.shape[1]) % 2 == half)
                instances[part] = rows[-1]["id"]
        wide = np.stack([instances & 255, instances >> 8 & 255, instances >> 16], axis=2).astype(np.uint8)
        label = wide if number % 2 else instances.astype(np.uint16)
        Image.fromarray(label).save(root / f"{name}_label_ground-truth.png")
        samples.append({"name": f"{name}.png", "labels": {"ground-truth": {"attributes": {"annotations": rows}}}})
    content = {"name": "v1.0", "dataset": {"task_attributes": {"categories": categories}, "samples": samples}}
    (root / "mine-v1.0.json").write_text(json.dumps(content))
    return world


def uploaded(world, root, name):
    """The image, as Label Studio's server calls it."""
    world.image(root / "images" / f"{name}.png")
    (root / "images" / f"{name}.png").rename(root / "images" / f"0a1b2c3d-{name}.png")


def label_studio(suffix):
    """A mask per task and tag, and the project's JSON, which names the images."""

    def write(world, root):
        tasks = []
        for number, (name, ids) in enumerate(world.masks.items(), 1):
            uploaded(world, root, name)
            tasks.append({"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{name}.png"}, "annotations": []})
            for value, region in objects(ids):
                file = root / f"task-{number}-annotation-7-by-1-tag-{called(world, value)}-0{suffix}"
                pixels = region.astype(np.uint8) * 255
                np.save(file, pixels) if suffix == ".npy" else Image.fromarray(pixels).save(file)
        (root / "project.json").write_text(json.dumps(tasks))
        return by_alphabet(world)

    return write


def label_studio_brush(world, root):
    """Strokes, each of an object."""
    tasks = []
    for number, (name, ids) in enumerate(world.masks.items(), 1):
        uploaded(world, root, name)
        results = [
            {
                "id": f"s{value}",
                "type": "brushlabels",
                "original_height": ids.shape[0],
                "original_width": ids.shape[1],
                "value": {"format": "rle", "rle": brush(region), "brushlabels": [called(world, value)]},
            }
            for value, region in objects(ids)
        ]
        image = f"/data/upload/1/0a1b2c3d-{name}.png"
        tasks.append({"id": number, "data": {"image": image}, "annotations": [{"id": 1, "result": results}]})
    (root / "project.json").write_text(json.dumps(tasks))
    return by_alphabet(world)


def label_studio_json(world, root):
    """Polygons in percent."""
    tasks = []
    for number, (name, ids) in enumerate(world.masks.items(), 1):
        uploaded(world, root, name)
        height, width = ids.shape
        results = [
            {
                "id": f"{value}-{k}",
                "type": "polygonlabels",
                "original_height": height,
                "original_width": width,
                "value": {
                    "points": (np.reshape(each, (-1, 2)) * 100 / [width, height]).tolist(),
                    "polygonlabels": [called(world, value)],
                },
            }
            for value, region in objects(ids)
            for k, each in enumerate(rectangles(region))
        ]
        image = f"/data/upload/1/0a1b2c3d-{name}.png"
        tasks.append({"id": number, "data": {"image": image}, "annotations": [{"id": 1, "result": results}]})
    (root / "project.json").write_text(json.dumps(tasks))
    return by_alphabet(world)


def hugging_face(world, root):
    """Palette masks whose colours mean nothing; the names are in id2label.json."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    columns = {"image": [], "label": []}
    for ids in world.masks.values():
        mask = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
        mask.putpalette(np.random.default_rng(ids.sum()).integers(0, 256, 768, np.uint8).tobytes())
        stream = io.BytesIO()
        mask.save(stream, "PNG")
        columns["image"].append({"bytes": png_text(np.dstack([ids] * 3)), "path": None})
        columns["label"].append({"bytes": stream.getvalue(), "path": None})
    kinds = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    datasets.Dataset.from_dict(columns, kinds).save_to_disk(root / "saved")
    (root / "saved" / "id2label.json").write_text(json.dumps(dict(enumerate(world.names))))
    return world


TOOLS = {
    "YOLO polygons": yolo,
    "labelme": labelme,
    "VIA": via,
    "VIA, circles, ellipses and lines": via_round,
    "Datumaro": datumaro,
    "CVAT": cvat,
    "LabelMe XML": labelme_xml,
    "Supervisely": supervisely,
    "Segments.ai": segments_ai,
    "Label Studio, PNG": label_studio(".png"),
    "Label Studio, NumPy": label_studio(".npy"),
    "Label Studio JSON": label_studio_json,
    "Label Studio JSON, brush": label_studio_brush,
    "Hugging Face": hugging_face,
}


def check_tool(tool, data):
    """What was drawn is what is read; void, too, in every tool's own way."""
    drawn = data.draw(worlds(ENCODINGS["grey PNG"]))
    drawn = drawn._replace(names=("background", *drawn.names[1:]))
    with tempfile.TemporaryDirectory() as folder:
        world = TOOLS[tool](drawn, Path(folder))
        saved = Path(folder, "saved")
        layout = open_layout(saved if saved.is_dir() else folder)
        assert layout.kind == tool.partition(",")[0]
        assert layout.labels.names == world.names
        names = dict(enumerate(world.masks))
        read = set()
        for sources in layout.splits.values():
            for source in sources:
                stem = Path(source.name).stem[-2:]
                name = names[int(stem)] if tool == "Hugging Face" else stem
                read.add(name)
                sample = source.read()
                ids, unknown = layout.rule.apply(sample.label)
                assert not unknown
                assert np.array_equal(ids, world.masks[name]), name
    assert read == set(world.masks)


@pytest.mark.parametrize("tool", TOOLS)
@settings(FEW, max_examples=3)
@given(data=st.data())
def test_every_tool(tool, data):
    check_tool(tool, data)


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
@settings(FEW, max_examples=60)
@given(data=st.data())
def test_every_tool_many_times(tool, data):
    check_tool(tool, data)
