"""What CVAT and Datumaro write in the layouts of VOC, CamVid, Cityscapes and KITTI, in the form that they write."""

import json

import numpy as np
import pytest
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.data.dataset import open_layout
from degrid.data.formats.benchmarks.voc import VOC
from degrid.types import IGNORE_INDEX, UserError

TRUTH = np.array([[0, 0, 1, 1, 2], [0, 3, 3, 1, 2], [0, 0, 3, 0, 0]], np.uint8)
NAMES = ("background", "new asphalt", "crack", "pothole")
COLORS = ((0, 0, 0), (250, 50, 83), (0, 128, 0), (10, 20, 30))
VOC_COLORS = ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))


def put(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def put_text(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def put_image(file):
    put(file, np.full((*TRUTH.shape, 3), 90, np.uint8))


def painted(colors=COLORS):
    return np.array(colors, np.uint8)[TRUTH]


def voc(root, mask, lists, labelmap=None):
    for name in sorted({name for names in lists.values() for name in names}):
        put_image(root / "JPEGImages" / f"{name}.jpg")
        put(root / "SegmentationClass" / f"{name}.png", mask)
    for split, names in lists.items():
        put_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    if labelmap is not None:
        put_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + labelmap)
    return root


def label_map(names=NAMES, colors=COLORS):
    return "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(names, colors, strict=True))


def check(root, split="train", names=NAMES, colors=COLORS, said="", truth=TRUTH):
    dataset = open_dataset(root, split)
    assert dataset.labels.names == names
    assert dataset.labels.colors == colors
    assert dataset.rule.said == said
    assert len(dataset)
    for sample in dataset:
        assert np.array_equal(sample.label.numpy(), truth)
    return dataset


# ---- VOC: CVAT's "Segmentation mask 1.1", Datumaro's voc and voc_segmentation -------------------------------


def test_labelmap_names_the_colours(tmp_path):
    root = voc(tmp_path, painted(), {"train": ["a", "b"], "val": ["c"]}, label_map())
    check(root, said="labelmap.txt")
    check(root, "val", said="labelmap.txt")


def test_labelmap_in_the_order_of_the_alphabet(tmp_path):
    # CVAT sorts the names, so that background need not be first.
    names, colors = (NAMES[2], NAMES[0], NAMES[1], NAMES[3]), (COLORS[2], COLORS[0], COLORS[1], COLORS[3])
    root = voc(tmp_path, painted(), {"train": ["a"], "val": ["b"]}, label_map(names, colors))
    check(root, names=names, colors=colors, said="labelmap.txt", truth=np.array([1, 2, 0, 3], np.uint8)[TRUTH])


def test_labelmap_without_colours_has_those_of_voc(tmp_path):
    labelmap = "".join(f"{name}:::\n" for name in NAMES)
    root = voc(tmp_path, painted(VOC_COLORS), {"train": ["a"], "val": ["b"]}, labelmap)
    check(root, colors=VOC_COLORS, said="labelmap.txt")


def test_ids_count_the_lines_of_labelmap_and_ignored_is_void(tmp_path):
    labelmap = "background:0,0,0::\nignored:224,224,192::\n" + "".join(label_map().splitlines(keepends=True)[1:3])
    kept = NAMES[:3], COLORS[:3]
    for k, values in enumerate((TRUTH, np.array([COLORS[0], (224, 224, 192), *COLORS[1:3]], np.uint8)[TRUTH])):
        root = voc(tmp_path / str(k), values, {"train": ["a"], "val": ["b"]}, labelmap)
        check(root, "train", *kept, "labelmap.txt", np.array([0, IGNORE_INDEX, 1, 2], np.uint8)[TRUTH])


def test_one_list_called_default_is_everything(tmp_path):
    root = voc(tmp_path, painted(), {"default": [f"r{k}" for k in range(10)]}, label_map())
    train, val = check(root, said="labelmap.txt"), check(root, "val", said="labelmap.txt")
    assert sorted(source.name for source in [*train.sources, *val.sources]) == [f"r{k}" for k in range(10)]
    assert notes_of(train)[0].startswith('the data have one list, "default": 1 of ')


def test_sub_folders_and_images_that_nothing_was_drawn_on(tmp_path):
    names = ["my day/photo 1", "other/photo 1", "plain.v2", "nothing"]
    root = voc(tmp_path, painted(), {"train": names, "val": ["other/photo 1"]}, label_map())
    (root / "SegmentationClass" / "nothing.png").unlink()
    dataset = check(root, said="labelmap.txt")
    assert [source.name for source in dataset.sources] == names[:3]
    assert dataset.sources[1].image == root / "JPEGImages" / "other" / "photo 1.jpg"
    assert notes_of(dataset) == ["1 image has no mask, since the tool writes none where nothing was drawn: left out"]
    # Without the tool's file it may be a mask that was lost.
    (root / "labelmap.txt").rename(root / "classes.txt")
    (root / "classes.txt").write_text("\n".join(NAMES))
    with pytest.raises(UserError, match="1 of 4 images in the split .* have no mask"):
        open_dataset(root)


def test_own_classes_in_vocs_layout_are_not_called_as_vocs(tmp_path):
    root = voc(tmp_path / "own", TRUTH, {"train": ["a"], "val": ["b"]})
    assert open_dataset(root).labels.names == ("class 0", "class 1", "class 2", "class 3")
    with pytest.raises(UserError, match="nothing says which colour is which class"):
        open_dataset(voc(tmp_path / "colours", painted(VOC_COLORS), {"train": ["a"], "val": ["b"]}))
    # The folder or the images tell VOC itself.
    for root, name in ((tmp_path / "VOC2007", "000032"), (tmp_path / "any", "2007_000032")):
        assert open_dataset(voc(root, TRUTH, {"train": [name], "val": [name]})).labels == VOC


def test_classes_that_the_user_names_win(tmp_path):
    root = voc(tmp_path, TRUTH, {"train": ["a"], "val": ["b"]}, label_map())
    (root / "classes.csv").write_text("id,name,r,g,b\n0,w,0,0,0\n1,x,1,1,1\n2,y,2,2,2\n3,z,3,3,3\n")
    assert check(root, names=tuple("wxyz"), colors=tuple((k, k, k) for k in range(4)), said="classes.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crack:1,2::\n", r'"crack:1,2::": a colour is three whole numbers from 0 to 255; got 1, 2'),
        ("", "is empty; expected one class per line"),
        ("crack:1,2,3::\ncrack:1,2,4::\n", "labelmap.txt: class names must differ"),
    ],
)
def test_mistakes_in_labelmap(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        open_dataset(voc(tmp_path, TRUTH, {"train": ["a"], "val": ["b"]}, text))


def test_a_colour_of_two_classes_tells_nothing(tmp_path):
    labelmap = label_map(colors=(*COLORS[:2], COLORS[3], COLORS[3]))
    root = voc(tmp_path, painted(), {"train": ["a"], "val": ["b"]}, labelmap)
    with pytest.raises(UserError, match=r"has the colours .*10, 20, 30.*belong to no class"):
        open_dataset(root)[0]


# ---- CamVid -------------------------------------------------------------------------------------------------


def camvid(root, mask, subsets, label_colors):
    for subset, names in subsets.items():
        for name in names:
            put_image(root / subset / f"{name}.jpg")
            put(root / f"{subset}annot" / f"{name}.png", mask)
        lines = [f"/{subset}/{name}.jpg {subset}annot/{name}.png\n" for name in names]
        put_text(root / f"{subset}.txt", "".join(lines))
    put_text(root / "label_colors.txt", label_colors)
    return root


def color_lines(names, colors):
    return "".join(f"{' '.join(map(str, color))} {name}\n" for name, color in zip(names, colors, strict=True))


def test_camvid_with_own_classes(tmp_path):
    # The background that the tool added is not in the file.
    root = camvid(tmp_path, painted(), {"train": ["a", "b"], "val": ["c"]}, color_lines(NAMES[1:], COLORS[1:]))
    for split in ("train", "val"):
        check(root, split, said="label_colors.txt")
    # Ids (apply_colormap=False) count from the background on.
    put(root / "trainannot" / "a.png", TRUTH)
    check(root, said="label_colors.txt")


def test_subsets_as_cvat_calls_them(tmp_path):
    root = camvid(
        tmp_path, painted(), {"Train": ["a", "b"], "Validation": ["c"], "Test": ["d"]}, color_lines(NAMES, COLORS)
    )
    assert [len(check(root, split, said="label_colors.txt")) for split in ("train", "val", "test")] == [2, 1, 1]
    root = voc(tmp_path / "voc", painted(), {"Train": ["a", "b"], "Validation": ["c"]}, label_map())
    assert [len(check(root, split, said="labelmap.txt")) for split in ("train", "val")] == [2, 1]


def test_camvid_without_colours(tmp_path):
    lines = "".join(f" {name}\n" for name in NAMES[1:])
    root = camvid(tmp_path, painted(VOC_COLORS), {"default": [f"r{k}" for k in range(10)]}, lines)
    dataset = check(root, colors=VOC_COLORS, said="label_colors.txt")
    assert len(dataset) + len(check(root, "val", colors=VOC_COLORS, said="label_colors.txt")) == 10
    assert 'one list, "default"' in notes_of(dataset)[0]


def test_camvid_images_that_nothing_was_drawn_on(tmp_path):
    root = camvid(tmp_path, painted(), {"train": ["a"], "val": ["b"]}, color_lines(NAMES, COLORS))
    put_image(root / "train" / "empty.jpg")
    with (root / "train.txt").open("a") as stream:
        stream.write("/train/empty.jpg \n")
    dataset = check(root, said="label_colors.txt")
    assert [source.name for source in dataset.sources] == ["a"]
    assert notes_of(dataset) == ["1 image has no mask, since the tool writes none where nothing was drawn: left out"]


def test_camvid_itself_keeps_its_eleven_classes(tmp_path):
    table = "128 128 128\tSky\n192 128 128 VegetationMisc\n192 0 64 LaneMkgsNonDriv\n0 0 0 Void\n"
    root = camvid(tmp_path, TRUTH, {"train": ["0001TP_a"], "val": ["0001TP_b"]}, table)
    assert open_layout(root).kind == "CamVid"
    # Datumaro's export of CamVid has colours.
    put(root / "trainannot" / "0001TP_a.png", np.full((*TRUTH.shape, 3), (192, 0, 64), np.uint8))
    (root / "train.txt").unlink()
    (root / "val.txt").unlink()
    dataset = open_dataset(root)
    assert dataset.labels.names == ("Sky", "VegetationMisc", "LaneMkgsNonDriv")
    assert (dataset[0].label == 2).all()


# ---- Cityscapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["imgsFine/leftImg8bit", "leftImg8bit"])
@pytest.mark.parametrize("colored", [True, False])
def test_cityscapes_with_own_classes(tmp_path, images, colored):
    for subset, name in (("train", "a b"), ("train", "c"), ("val", "d")):
        put_image(tmp_path / images / subset / f"{name}_leftImg8bit.jpg")
        put(tmp_path / "gtFine" / subset / f"{name}_gtFine_labelIds.png", TRUTH)
        put(tmp_path / "gtFine" / subset / f"{name}_gtFine_color.png", painted())
        put(tmp_path / "gtFine" / subset / f"{name}_gtFine_instanceIds.png", TRUTH.astype(np.uint16))
    lines = color_lines(NAMES[1:], COLORS[1:]) if colored else "".join(f" {name}\n" for name in NAMES[1:])
    put_text(tmp_path / "label_colors.txt", lines)
    colors = COLORS if colored else VOC_COLORS
    train = check(tmp_path, colors=colors, said="label_colors.txt")
    assert [source.name for source in train.sources] == ["train/a b", "train/c"]
    assert len(check(tmp_path, "val", colors=colors, said="label_colors.txt")) == 1


# ---- KITTI, and dataset_meta.json ---------------------------------------------------------------------------


def kitti(root, mask):
    for name in ("a", "b"):
        put_image(root / "default" / "image_2" / f"{name}.png")
        put(root / "default" / "semantic" / f"{name}.png", mask.astype(np.uint16))
        put(root / "default" / "semantic_rgb" / f"{name}.png", painted())
        put(root / "default" / "instance" / f"{name}.png", mask.astype(np.uint16) << 8)


def test_kitti_with_own_classes(tmp_path):
    kitti(tmp_path, TRUTH)
    put_text(tmp_path / "label_colors.txt", color_lines(NAMES, COLORS))
    for split in ("train", "val"):
        check(tmp_path, split, said="label_colors.txt")
    (tmp_path / "classes.txt").write_text("w\nx\ny\nz\n")
    assert open_dataset(tmp_path).labels.names == tuple("wxyz")


@pytest.mark.parametrize("meta", [False, True])
def test_kitti_without_a_background(tmp_path, meta):
    # Datumaro adds none here: the first class has the id 0, which pixels without a label have, too.
    kitti(tmp_path, np.maximum(TRUTH, 1) - 1)
    if meta:
        put_meta(tmp_path / "dataset_meta.json", NAMES[1:], COLORS[1:])
    else:
        put_text(tmp_path / "label_colors.txt", color_lines(NAMES[1:], COLORS[1:]))
    said = "dataset_meta.json" if meta else "label_colors.txt"
    dataset = check(tmp_path, "train", NAMES[1:], COLORS[1:], said, np.maximum(TRUTH, 1) - 1)
    assert f'{said} begins with "new asphalt": Datumaro gives its id 0' in notes_of(dataset)[1]


def put_meta(file, names, colors=(), cvats=False):
    """dataset_meta.json; CVAT's copy of Datumaro adds label_categories."""
    meta = {"labels": names}
    if colors:
        meta |= {"label_map": {str(k): name for k, name in enumerate(names)}, "segmentation_colors": colors}
    put_text(file, json.dumps(meta | ({"label_categories": [(name, "") for name in names]} if cvats else {})))


# As CVAT's copy of Datumaro lists the labels, while background has the id 0 in its masks.
LISTED = tuple(NAMES[k] for k in (1, 2, 0, 3))


@pytest.mark.parametrize("listed", [LISTED, NAMES[1:]])
def test_kittis_meta_of_cvat_has_another_order_than_the_ids(tmp_path, listed):
    kitti(tmp_path, TRUTH)
    colors = [COLORS[NAMES.index(name)] for name in listed]
    put_meta(tmp_path / "dataset_meta.json", listed, colors, cvats=True)
    names = listed if "background" in listed else ("background", *listed)
    truth = np.array([names.index(name) for name in NAMES], np.uint8)[TRUTH]
    colors = tuple(COLORS[NAMES.index(name)] for name in names)
    check(tmp_path, "train", names, colors, "dataset_meta.json", truth)
    # Grey ids in semantic_rgb (apply_colormap=False) are not taken for numbers of the list.
    for name in ("a", "b"):
        put(tmp_path / "default" / "semantic_rgb" / f"{name}.png", TRUTH)
    with pytest.raises(UserError, match="has the ids 0, 1, 2, 3; expected colours, as dataset_meta.json says"):
        open_dataset(tmp_path)[0]
    # The user's own table is about the ids.
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    assert check(tmp_path, "train", NAMES, VOC_COLORS, "classes.txt")


@pytest.mark.parametrize("listed", [LISTED, NAMES[1:], NAMES])
def test_kittis_meta_of_cvat_without_colours(tmp_path, listed):
    kitti(tmp_path, TRUTH)
    for name in ("a", "b"):
        put(tmp_path / "default" / "semantic_rgb" / f"{name}.png", painted(VOC_COLORS))
    put_meta(tmp_path / "dataset_meta.json", listed, cvats=True)
    check(tmp_path, "train", NAMES, VOC_COLORS, "dataset_meta.json")
    # Other colours come from a label map, in whose order the ids are.
    put(tmp_path / "default" / "semantic_rgb" / "a.png", painted())
    with pytest.raises(UserError, match="in which order the ids are, nothing says; write classes.csv"):
        open_dataset(tmp_path)


def test_metas_without_colours_list_the_background_anywhere(tmp_path):
    root = camvid(tmp_path / "camvid", painted(VOC_COLORS), {"train": ["a"], "val": ["b"]}, "")
    (root / "label_colors.txt").unlink()
    put_meta(root / "dataset_meta.json", LISTED)
    check(root, colors=VOC_COLORS, said="dataset_meta.json")


def test_no_other_name_is_the_background_that_datumaro_adds(tmp_path):
    """A label called "bg" follows on the background that the file leaves out."""
    names = ("background", "bg", "crack", "pothole")
    lines = "".join(f" {name}\n" for name in names[1:])
    root = camvid(tmp_path, painted(VOC_COLORS), {"train": ["a"], "val": ["b"]}, lines)
    check(root, names=names, colors=VOC_COLORS, said="label_colors.txt")


def test_dataset_meta_in_vocs_layout(tmp_path):
    root = voc(tmp_path, painted(), {"train": ["a"], "val": ["b"]})
    put_meta(root / "dataset_meta.json", NAMES, COLORS)
    check(root, said="dataset_meta.json")
    (root / "dataset_meta.json").write_text("[]")
    with pytest.raises(UserError, match="expected labels, label_map and segmentation_colors"):
        open_dataset(root)


# ---- exports without the images -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "images"),
    [
        ("SegmentationClass", "JPEGImages"),
        ("defaultannot", "default"),
        ("gtFine/default", "leftImg8bit"),
        ("default/semantic", "default/image_2"),
    ],
)
def test_masks_without_images(tmp_path, masks, images):
    put(tmp_path / masks / "a_gtFine_labelIds.png", TRUTH)
    put_text(tmp_path / "label_colors.txt", color_lines(NAMES, COLORS))
    with pytest.raises(
        UserError, match=rf"{masks.partition('/default')[0]} holds masks, .* put them in .*/{images}, or"
    ):
        open_dataset(tmp_path)
