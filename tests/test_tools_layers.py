"""Datumaro's own JSON, its COCO export of everything, and the XML of LabelMe, in the form that the tools write."""

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from test_tools_polygons import CAR, HEIGHT, SIGN, TRUTH, WIDTH, check, coco, prepared, put_image, put_json, put_text

from degrid.data import check_data, notes_of, open_dataset
from degrid.types import IGNORE_INDEX, UserError

NAMES = ("background", "car", "sign")
COLORS = ((0, 0, 0), (250, 50, 83), (10, 20, 30))


# ---- Datumaro's own JSON ------------------------------------------------------------------------------------


def row(kind, label, **values):
    return {"id": 0, "type": kind, "attributes": {}, "group": 0, "label_id": label, "z_order": 0, **values}


def packed(mask):
    code = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": code["size"], "counts": code["counts"].decode()}


def datumaro(root, splits, rows=None, names=NAMES, colors=COLORS, size=True):
    """annotations/SPLIT.json and images/SPLIT/NAME.png of the objects."""
    rows = rows or [row("mask", 1, rle=packed(CAR_PIXELS)), row("polygon", 2, points=SIGN, z_order=1)]
    for split, ids in splits.items():
        items = []
        for name in ids:
            file = f"{name.replace('/', '_')}.png"
            put_image(root / "images" / split / file)
            shape = {"size": [HEIGHT, WIDTH]} if size else {}
            items.append({"id": name, "annotations": rows, "image": {"path": file, **shape}})
        shown = [{"label_id": k, "r": r, "g": g, "b": b} for k, (r, g, b) in enumerate(colors)]
        content = {
            "dm_format_version": "1.0",
            "infos": {},
            "categories": {
                "label": {"labels": [{"name": name, "parent": "", "attributes": []} for name in names]},
                **({"mask": {"colormap": shown}} if colors else {}),
            },
            "items": items,
        }
        put_json(root / "annotations" / f"{split}.json", content)
    return root


CAR_PIXELS = np.zeros((HEIGHT, WIDTH), bool)
CAR_PIXELS[1:4, 1:5] = True


def test_datumaros_json(tmp_path):
    root = datumaro(tmp_path / "set", {"train": ["a", "sub/b c"], "val": ["d"]}, size=False)
    dataset = check(root, kind="Datumaro")
    assert [source.name for source in dataset.sources] == ["images/train/a", "images/train/sub_b c"]
    assert dataset.labels.colors == COLORS
    assert len(check(root, "val")) == 1
    assert check_data(root).ok
    prepared(root, tmp_path / "out")
    check(root / "annotations" / "train.json", "val", kind="Datumaro")


def test_datumaros_layers_then_size(tmp_path):
    # The car is the larger one, but on a higher layer; of one layer the smaller is on top.
    both = row("polygon", 1, points=CAR), row("polygon", 2, points=SIGN)
    above = np.where(CAR_PIXELS, 1, TRUTH)
    for number, (layers, truth) in enumerate([((1, 0), above), ((0, 1), TRUTH), ((3, 3), TRUTH)]):
        rows = [{**one, "z_order": layer} for one, layer in zip(both, layers, strict=True)]
        for order in (1, -1):
            check(datumaro(tmp_path / f"{number}{order}", {"default": "abcdef"}, rows[::order]), truth=truth)


def test_datumaros_other_kinds(tmp_path):
    rows = [
        row("mask", 1, rle=packed(CAR_PIXELS), group=1),
        row("bbox", 1, bbox=[0, 0, 6, 5], group=1),
        row("bbox", 2, bbox=[6, 0, 2, 2], group=2),
        row("ellipse", 2, points=[0, 4, 2, 6]),
        row("points", 2, points=[1, 1]),
        {"id": 0, "type": "label", "label_id": 1},
    ]
    truth = np.where(CAR_PIXELS, 1, 0)
    truth[0:2, 6:8] = IGNORE_INDEX  # a box alone; that of the mask's group says nothing more
    truth[4:6, 0:2] = 2
    dataset = check(datumaro(tmp_path, {"train": ["a"], "val": ["b"]}, rows), truth=truth)
    notes = notes_of(dataset)
    assert "boxes without an outline of their group are void, except where an object is drawn" in notes
    assert "shapes without an area are left out: 2 of the kind points" in notes


def test_datumaro_without_background_and_colours(tmp_path):
    rows = [row("mask", 0, rle=packed(CAR_PIXELS)), row("polygon", 1, points=SIGN), row("polygon", None, points=SIGN)]
    truth = np.where(TRUTH == 2, IGNORE_INDEX, TRUTH)  # of two of one size the later one counts, here without a class
    check(datumaro(tmp_path, {"default": "abcdef"}, rows, NAMES[1:], ()), truth=truth)


def test_datumaros_crowds_are_asked_for(tmp_path):
    rows = [
        {**row("mask", 1, rle=packed(CAR_PIXELS)), "attributes": {"is_crowd": True}},
        row("polygon", 2, points=SIGN),
    ]
    root = datumaro(tmp_path, {"train": ["a"], "val": ["b"]}, rows)
    (problem,) = check_data(root).problems
    assert "2 of 4 annotations crowds" in problem
    put_text(root / "dataset.yaml", "crowd: instance\n")
    check(root)


def test_damaged_datumaro_files(tmp_path):
    root = datumaro(tmp_path, {"train": ["a"], "val": ["b"]}, [row("bbox", 1, bbox=[0, 0, 2, 2])])
    with pytest.raises(UserError, match=r"train.json: the shapes are 2 of the kind bbox, and no outlines"):
        open_dataset(root)
    put_json(root / "annotations" / "train.json", {"categories": {"label": 3}, "items": [{"annotations": 1}]})
    with pytest.raises(UserError, match=r"train.json: expected Datumaro's categories, and items with annotations"):
        open_dataset(root)


# ---- Datumaro's COCO export of everything -------------------------------------------------------------------


def test_a_coco_export_of_everything_is_read_from_its_instances(tmp_path):
    for split in ("train", "val"):
        put_image(tmp_path / "images" / split / "a.png")
        for kind in ("instances", "stuff"):
            coco(tmp_path / "annotations" / f"{kind}_{split}.json", ["a.png"])
        categories = [{"id": 1, "name": "car", "isthing": 0}, {"id": 2, "name": "sign", "isthing": 0}]
        segments = {"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1}]}
        images = [{"id": 1, "file_name": "a.png"}]
        panoptic = {"images": images, "annotations": [segments], "categories": categories}
        put_json(tmp_path / "annotations" / f"panoptic_{split}.json", panoptic)
        folder = tmp_path / "annotations" / f"panoptic_{split}"
        folder.mkdir()
        Image.fromarray(np.stack([TRUTH % 2, TRUTH * 0, TRUTH * 0], axis=-1)).save(folder / "a.png")
    dataset = check(tmp_path, kind="COCO polygons")
    assert any(
        "panoptic_train.json beside it has the same categories and is not read" in note for note in notes_of(dataset)
    )
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}.json").unlink()
    check(tmp_path, names=NAMES[1:], truth=np.where(TRUTH == 1, 0, IGNORE_INDEX), kind="COCO panoptic")


def test_coco_files_without_annotations(tmp_path):
    put_image(tmp_path / "a.png")
    put_json(tmp_path / "image_info_train.json", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(UserError, match=r"image_info_train.json lists images without a single annotation"):
        open_dataset(tmp_path)


# ---- LabelMe's XML ------------------------------------------------------------------------------------------


def thing(name, corners=(), mask="", deleted="0", kind=""):
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in zip(corners[::2], corners[1::2], strict=True))
    shape = f"<segm><mask>{mask}</mask></segm>" if mask else f"<polygon><username>me</username>{points}</polygon>"
    kind = kind and f"<type>{kind}</type>"
    return f"<object><name>\n{name}\n</name><deleted>{deleted}</deleted><id>0</id>{kind}{shape}</object>"


def labelme(root, folder, names, things, size=True):
    """Annotations/FOLDER/NAME.xml and Images/FOLDER/NAME.png of the objects."""
    for name in names:
        put_image(root / "Images" / folder / f"{name}.png")
        said = f"<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize>" if size else ""
        text = (
            f"<annotation><filename>{name}.png</filename><folder>{folder}</folder>{said}{''.join(things)}</annotation>"
        )
        put_text(root / "Annotations" / folder / f"{name}.xml", text)
    return root


def test_labelmes_xml(tmp_path):
    things = [thing("sign", SIGN), thing("car", CAR), thing("car", [0, 0, 8, 0, 8, 6, 0, 6], deleted="1")]
    labelme(tmp_path / "set", "train", ["a", "test 1"], things)
    root = labelme(tmp_path / "set", "val", ["c"], things, size=False)
    # An image that is called as a split is none.
    assert len(check(root, kind="LabelMe XML")) == 2
    assert len(check(root, "val")) == 1
    prepared(root, tmp_path / "out")


def test_labelmes_painted_masks_and_boxes(tmp_path):
    things = [
        thing("car", mask="a_mask_0.png"),
        thing("sign", SIGN),
        thing("sign", [6, 0, 8, 0, 8, 2, 6, 2], kind="bounding_box"),
    ]
    root = labelme(tmp_path, "users/me", ["a", "b", "c"], things)
    folder = root / "Masks" / "users" / "me"
    folder.mkdir(parents=True)
    Image.fromarray(CAR_PIXELS.astype(np.uint8)[..., None].repeat(3, -1) * np.uint8([0, 9, 0])).save(
        folder / "a_mask_0.png"
    )
    truth = TRUTH.copy()
    truth[0:2, 6:8] = IGNORE_INDEX
    dataset = check(root, truth=truth, kind="LabelMe XML")
    assert "boxes are void, except where an object is drawn" in notes_of(dataset)
    Image.fromarray(CAR_PIXELS[:2]).save(folder / "a_mask_0.png")
    with pytest.raises(UserError, match=r"a_mask_0.png is 8x2 pixels, the image is 8x6"):
        open_dataset(root)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><filename>a.png</filename><object>", "a.xml is not valid XML, or cut short"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation><filename>a.png</filename></annotation>', "defines entities"),
        (
            "<annotation><filename>a.png</filename><object><polygon><pt><x>one</x></pt></polygon></object></annotation>",
            "expected LabelMe's filename, folder, and objects",
        ),
    ],
)
def test_damaged_labelme_files(tmp_path, text, message):
    put_image(tmp_path / "Images" / "a.png")
    put_text(tmp_path / "Annotations" / "a.xml", text)
    with pytest.raises(UserError, match=message):
        open_dataset(tmp_path)


def test_vocs_boxes_are_not_labelmes(tmp_path):
    put_image(tmp_path / "JPEGImages" / "a.png")
    box = "<object><name>a</name><bndbox><xmin>1</xmin></bndbox></object>"
    put_text(tmp_path / "Annotations" / "a.xml", f"<annotation><filename>a.png</filename>{box}</annotation>")
    with pytest.raises(UserError, match="no images with masks found"):
        open_dataset(tmp_path)
