"""Label Studio's brush labels, one file per annotation, tag and class, as its converter writes them."""

import json

import numpy as np
import pytest
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.types import UserError

# Of 0 background, 1 crack, 2 old pothole; both in one task.
TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [0, 0, 2, 0]], np.uint8)


def put_mask(folder, white, label, task, annotation=11, by="annex@b.org", count=0, ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"task-{task}-annotation-{annotation}-by-{by}-tag-{label}-{count}.{ending}"
    values = np.where(white, 255, 0).astype(np.uint8)
    if ending == "npy":
        np.save(file, values)
    else:
        Image.fromarray(values).save(file)


def put_image(file, size=TRUTH.shape):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(file)


@pytest.fixture(params=["png", "npy"])
def root(tmp_path, request):
    for task in range(1, 7):
        put_image(tmp_path / "images" / f"{task:08x}-street {task}.jpg")
        labels = ((1, "crack"), (2, "old pothole")) if task < 4 else ((1, "crack"),)
        for value, label in labels:
            put_mask(tmp_path / "brush", value == TRUTH, label, task, by="3" if task % 2 else "", ending=request.param)
    tasks = [
        {"id": task, "data": {"n": 3, "image": f"/data/upload/1/{task:08x}-street%20{task}.jpg"}}
        for task in range(1, 7)
    ]
    (tmp_path / "project-1.json").write_text(json.dumps(tasks))
    return tmp_path


def samples(root):
    return [sample for split in ("train", "val") for sample in open_dataset(root, split)]


def check(root):
    found = {int(sample.name[-1]): sample for sample in samples(root)}
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    for task, sample in found.items():
        assert np.array_equal(sample.label.numpy(), TRUTH if task < 4 else TRUTH == 1)


def test_masks_of_one_task_are_joined(root):
    dataset = open_dataset(root)
    assert dataset.labels.names == ("background", "crack", "old pothole")
    assert dataset.rule.said == "project-1.json"
    assert "pixels without a label are background; where labels overlap, the smaller one counts" in notes_of(dataset)
    check(root)


@pytest.mark.parametrize("image", ["s3://bucket/in/street {}.jpg", "/data/local-files/?d=in%2Fstreet%20{}.jpg"])
def test_other_addresses_and_the_short_json(root, image):
    (root / "project-1.json").write_text(json.dumps([{"id": k, "image": image.format(k)} for k in range(1, 7)]))
    check(root)


def test_images_called_after_the_tasks(root):
    (root / "project-1.json").unlink()
    with pytest.raises(UserError, match="Label Studio's task 1 has no image called after it; add the project's JSON"):
        open_dataset(root)
    for task in range(1, 7):
        next((root / "images").glob(f"*{task}.jpg")).rename(root / "images" / f"task-{task}.jpg")
    check(root)
    put_image(root / "other" / "2.jpg")
    with pytest.raises(UserError, match="task 2 has 2 image called after it"):
        open_dataset(root)


def test_an_image_that_is_not_there(root):
    next((root / "images").glob("*4.jpg")).unlink()
    with pytest.raises(UserError, match="task 4 has no image called 00000004-street 4.jpg; expected one"):
        open_dataset(root)


def test_the_last_annotation_counts_and_strokes_of_one_class_are_joined(tmp_path):
    for task in (1, 2):
        put_image(tmp_path / f"{task}.png")
        put_mask(tmp_path, TRUTH == 0, "crack", task, annotation=9)
        put_mask(tmp_path, TRUTH == 1, "crack", task, annotation=10)
        put_mask(tmp_path, TRUTH == 2, "crack", task, annotation=10, count=1)
    put_image(tmp_path / "3.png")
    said = "1 image has no mask, since Label Studio writes none where nothing was drawn: left out"
    assert said in notes_of(open_dataset(tmp_path))
    assert "2 tasks have several annotations: the last of each counts" in notes_of(open_dataset(tmp_path))
    for sample in samples(tmp_path):
        assert np.array_equal(sample.label.numpy(), TRUTH > 0)


def test_the_smaller_label_lies_on_top(tmp_path):
    for task in (1, 2):
        put_image(tmp_path / f"{task}.png")
        put_mask(tmp_path, TRUTH == 1, "a-small", task)
        put_mask(tmp_path, TRUTH >= 0, "large", task)
    for sample in samples(tmp_path):
        assert np.array_equal(sample.label.numpy(), np.where(TRUTH == 1, 1, 2))


def test_the_users_table_and_void(root):
    (root / "classes.txt").write_text("old pothole\ncrack\n")
    dataset = open_dataset(root)
    assert dataset.labels.names == ("old pothole", "crack")
    found = {int(sample.name[-1]): sample.label.numpy() for sample in samples(root)}
    # The table has no background: what is not labelled is void.
    assert np.array_equal(found[1], np.array([255, 1, 0], np.uint8)[TRUTH])
    (root / "classes.txt").write_text("background\ncrack\n")
    with pytest.raises(UserError, match=r'classes.txt has no class "old pothole", which project-1.json has'):
        open_dataset(root)


def test_masks_of_another_size(tmp_path):
    for task in (1, 2):
        put_image(tmp_path / f"{task}.png")
        put_mask(tmp_path, TRUTH == 1, "a", task)
        put_mask(tmp_path, np.zeros((2, 2), bool), "b", task)
    with pytest.raises(UserError, match=r"expected a grey mask of the size of .*-a-0.png, 4x3; got the shape"):
        samples(tmp_path)
