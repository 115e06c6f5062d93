"""Segments.ai: a release with bitmaps of instances, or the semantic bitmaps that its library exports."""

import json

import numpy as np
import pytest
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.types import UserError

# Category ids need not be without gaps: 1 is crack, 4 is pothole.
TRUTH = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
CATEGORIES = [
    {"id": 1, "name": "crack", "color": [250, 50, 83]},
    {"id": 4, "name": "pothole", "color": [0, 128, 0, 255]},
]
# Instance 7 is a pothole, 1 and 300 are cracks.
INSTANCES = np.array([[0, 300, 7], [7, 0, 1]], np.uint16)
ANNOTATIONS = [{"id": 7, "category_id": 4}, {"id": 1, "category_id": 1}, {"id": 300, "category_id": 1}]


def rgba(values):
    """An instance bitmap as the service hands it out: the lowest byte is red."""
    parts = [values % 256, values // 256, 0 * values, 0 * values + 255]
    return np.dstack(parts).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "segments" / "jane_roads" / "v1.0"
    samples = []
    for name in ("a.1", "b", "[c]", "e"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(folder / f"{name}.jpg")
        label = {"label_status": "LABELED", "attributes": {"annotations": ANNOTATIONS}}
        samples.append({"name": f"{name}.jpg", "labels": {"ground-truth": label}})
    samples.append({"name": "not here.jpg", "labels": {"ground-truth": None}})
    dataset = {"name": "roads", "task_attributes": {"categories": CATEGORIES}, "samples": samples}
    (tmp_path / "roads-v1.0.json").write_text(json.dumps({"name": "v1.0", "dataset": dataset}))
    return tmp_path


def put_labels(root, values, ending=""):
    for image in list((root / "segments" / "jane_roads" / "v1.0").glob("*.jpg")):
        Image.fromarray(values).save(image.with_name(f"{image.stem}_label_ground-truth{ending}.png"))


def check(root, truth=TRUTH):
    samples = [sample for split in ("train", "val") for sample in open_dataset(root, split)]
    assert sorted(sample.name.rpartition("/")[2] for sample in samples) == ["[c]", "a.1", "b", "e"]
    for sample in samples:
        assert np.array_equal(sample.label.numpy(), truth)
    dataset = open_dataset(root)
    assert dataset.labels.names == ("background", "crack", "pothole")
    assert dataset.labels.colors == ((0, 0, 0), (250, 50, 83), (0, 128, 0))
    assert dataset.rule.said == "roads-v1.0.json"
    return dataset


@pytest.mark.parametrize("values", [INSTANCES, rgba(INSTANCES)], ids=["16 bit", "RGBA"])
def test_instances_become_classes(root, values):
    put_labels(root, values)
    dataset = check(root)
    assert "1 samples of the release have no image or label here: left out" in notes_of(dataset)
    # What was found out about sources is kept by them.
    assert len({*dataset.sources, *open_dataset(root).sources}) == len(dataset)


def test_semantic_bitmaps_are_preferred(root):
    put_labels(root, np.zeros_like(INSTANCES))
    put_labels(root, np.array([0, 1, 4], np.uint8)[TRUTH], "_semantic")
    put_labels(root, np.full((2, 3, 3), 9, np.uint8), "_semantic_colored")
    put_labels(root, INSTANCES, "_instance")
    check(root)


def test_an_instance_that_nothing_lists(root):
    put_labels(root, INSTANCES + 1)
    with pytest.raises(UserError, match="has the instance 2, which the release file does not list"):
        open_dataset(root)[0]


def test_a_release_of_another_form_and_none(root):
    put_labels(root, INSTANCES)
    (root / "roads-v1.0.json").write_text(json.dumps({"dataset": {"samples": []}}))
    with pytest.raises(UserError, match="expected a release with categories and samples"):
        open_dataset(root)
    (root / "roads-v1.0.json").unlink()
    with pytest.raises(UserError, match=r"holds Segments.ai's label bitmaps; put the release file \(.json\) beside"):
        open_dataset(root)
