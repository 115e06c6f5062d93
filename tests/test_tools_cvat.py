"""CVAT's own XML, "CVAT for images 1.1", as its exporter writes it."""

import numpy as np
import pytest
from test_tools_polygons import CAR, HEIGHT, SIGN, TRUTH, WIDTH, check, prepared, put_image, put_text

from degrid.data import check_data, notes_of, open_dataset
from degrid.types import IGNORE_INDEX, UserError

LABELS = (("background", "#000000"), ("car", "#c06060"), ("sign", "#0000ff"))


def points(numbers):
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in zip(numbers[::2], numbers[1::2], strict=True))


def polygon(label, numbers, z_order=0):
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points(numbers)}" z_order="{z_order}"/>'


OBJECTS = (polygon("car", CAR), polygon("sign", SIGN))


def export(file, names, objects=OBJECTS, labels=LABELS, subsets=(), task=""):
    """What CVAT writes for a task, or with subsets for a project. objects: of each image."""
    shown = "".join(
        f"<label><name>{name}</name><color>{color}</color><type>any</type><attributes></attributes></label>"
        for name, color in labels
    )
    images = "".join(
        f'<image id="{k}" name="{name}" {f"""subset="{subsets[k]}" task_id="1" """ if subsets else ""}'
        f'width="{WIDTH}" height="{HEIGHT}">{"".join(objects)}<tag label="car" source="manual"></tag></image>'
        for k, name in enumerate(names)
    )
    kind = "project" if subsets else "task"
    put_text(
        file,
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"<meta><{kind}><id>1</id><subset>{task}</subset><labels>{shown}</labels></{kind}></meta>{images}</annotations>",
    )


def test_a_task(tmp_path):
    names = [f"a/{k}.png" for k in range(6)]
    export(tmp_path / "annotations.xml", names)
    for name in names:
        put_image(tmp_path / "images" / name)
    dataset = check(tmp_path, kind="CVAT")
    assert dataset.labels.colors == ((0, 0, 0), (192, 96, 96), (0, 0, 255))
    assert len(dataset) + len(check(tmp_path, "val")) == 6
    assert check_data(tmp_path).ok
    check(tmp_path / "annotations.xml")
    prepared(tmp_path, tmp_path / "drawn")


def test_the_subsets_of_a_project_are_splits(tmp_path):
    """Its images lie in a folder for each subset, and may have one name."""
    export(tmp_path / "annotations.xml", ["a.png", "a.png"], subsets=("Train", "Validation"))
    for subset in ("Train", "Validation"):
        put_image(tmp_path / "images" / subset / "a.png")
    for split, folder in (("train", "Train"), ("val", "Validation")):
        (source,) = check(tmp_path, split).sources
        assert source.image.parent.name == folder


def test_tasks_in_folders_with_subsets(tmp_path):
    for folder, subset in (("one", "Train"), ("two", "Test")):
        export(tmp_path / folder / "annotations.xml", ["a.png"], task=subset)
        put_image(tmp_path / folder / "images" / "a.png")
    assert [len(check(tmp_path, split)) for split in ("train", "test")] == [1, 1]


def test_layers_and_every_kind_of_shape(tmp_path):
    """The higher layer is on top, though it is larger; runs go row by row; rectangles are objects."""
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[0:2, 0:3] = 2
    label[0, 1] = 1
    label[3:5, 1:7] = 1
    label[2:6, 7] = 2
    export(
        tmp_path / "annotations.xml",
        ["a.png"],
        (
            polygon("sign", [1, 3, 2, 3, 2, 4, 1, 4]),
            polygon("car", [1, 3, 7, 3, 7, 5, 1, 5], z_order=2),
            '<mask label="sign" source="manual" occluded="0" rle="0, 1, 1, 4" left="0" top="0" width="3" height="2" '
            'z_order="0"><attribute name="x">1</attribute></mask>',
            '<box label="car" occluded="0" xtl="1.00" ytl="0.00" xbr="2.00" ybr="1.00" z_order="-1"/>',
            # turned by a right angle: 4 high and 1 wide around (7.5, 4)
            '<box label="sign" occluded="0" xtl="5.50" ytl="3.50" xbr="9.50" ybr="4.50" rotation="90.00"/>',
            '<points label="car" points="1.00,1.00" z_order="0"/>',
        ),
    )
    put_image(tmp_path / "a.png")
    data = check(tmp_path, truth=label)
    assert "shapes without an area are left out: 1 of the kind points" in notes_of(data)


def test_ellipses(tmp_path):
    """The pixels whose centres are inside. Turned by 90 degrees, an ellipse has its radii swapped."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for written, rx, ry in (('rx="2" ry="2"', 2, 2), ('rx="1" ry="3" rotation="90.00"', 3, 1)):
        export(tmp_path / "a.xml", ["a.png"], (f'<ellipse label="car" cx="4.00" cy="3.00" {written} z_order="0"/>',))
        put_image(tmp_path / "a.png")
        inside = ((x - 4) / rx) ** 2 + ((y - 3) / ry) ** 2 <= 1
        check(tmp_path, truth=inside.astype(np.uint8))


def test_without_background_and_with_void(tmp_path):
    """Labels that are not in the list of labels come last; images without objects are background."""
    export(tmp_path / "a.xml", ["a.png"], (*OBJECTS, polygon("void", [0, 5, 8, 5, 8, 6, 0, 6])), LABELS[1:2])
    put_image(tmp_path / "a.png")
    truth = TRUTH.copy()
    truth[5] = IGNORE_INDEX
    check(tmp_path, truth=truth)
    export(tmp_path / "a.xml", ["a.png"], (), LABELS)
    with pytest.raises(UserError):
        open_dataset(tmp_path, "nosplit")
    data = check(tmp_path, truth=np.zeros_like(TRUTH))
    assert "1 image has no object: background all over" in notes_of(data)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        (('<box label="car" xtl="1" ytl="1" xbr="3" ybr="3"/>',), "and no outlines: boxes"),
        (('<polygon label="car"/>',), "cannot be drawn: KeyError.'points'"),
        (('<mask label="car" rle="1, 2" left="0" top="0" width="2" height="2"/>',), "2x2 pixels add up to 3"),
        (("<polygon/>",), "expected CVAT's images, each with name, width, height and shapes"),
    ],
)
def test_damage_is_one_sentence(tmp_path, objects, message):
    export(tmp_path / "a.xml", ["a.png"], objects)
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=message):
        _ = [sample.label for sample in open_dataset(tmp_path, "train")]


def test_tracks_of_a_video_say_what_to_export(tmp_path):
    put_text(tmp_path / "a.xml", '<annotations><version>1.1</version><track id="0" label="car"></track></annotations>')
    put_image(tmp_path / "a.png")
    with pytest.raises(UserError, match='export "CVAT for images 1.1"'):
        open_dataset(tmp_path, "train")
