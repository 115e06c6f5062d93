"""Roboflow's semantic masks: images and masks side by side in one folder per split."""

import numpy as np
import pytest
from PIL import Image

from degrid.data import notes_of, open_dataset
from degrid.types import UserError

MASK = np.array([[0, 1, 2, 255]], np.uint8)
TABLE = "Pixel Value, Class\n0, background\n1, crack\n2, old pothole, filled\n"


@pytest.fixture
def root(tmp_path):
    for split, number in (("train", 6), ("valid", 3), ("test", 2)):
        folder = tmp_path / split
        folder.mkdir()
        for k in range(number):
            name = f"IMG_{split}{k}_jpg.rf.0123456789abcdef"
            Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(folder / f"{name}.jpg")
            Image.fromarray(MASK).save(folder / f"{name}_mask.png")
        (folder / "_classes.csv").write_text(TABLE)
    return tmp_path


def test_splits_and_classes(root):
    for split, folder, number in (("train", "train", 6), ("val", "valid", 3), ("test", "test", 2)):
        dataset = open_dataset(root, split)
        expected = [f"{folder}/IMG_{folder}{k}_jpg.rf.0123456789abcdef" for k in range(number)]
        assert [source.name for source in dataset.sources] == expected
        assert dataset.labels.names == ("background", "crack", "old pothole, filled")
        assert dataset.rule.said == "_classes.csv"
        assert not notes_of(dataset)
        assert np.array_equal(dataset[0].label.numpy(), MASK)


def test_an_archive_that_unpacks_into_a_folder(root):
    inner = root / "my export" / "roads.v2i.png-mask-semantic"
    inner.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (root / split).rename(inner / split)
    (root / "my export" / "README.dataset.txt").write_text("roads\n")
    for split, number in (("train", 6), ("val", 3), ("test", 2)):
        dataset = open_dataset(root, split)
        assert len(dataset) == number
        assert dataset.labels.names == ("background", "crack", "old pothole, filled")


def test_values_need_not_be_in_order(root):
    for split in ("train", "valid", "test"):
        (root / split / "_classes.csv").write_text("Pixel Value, Class\n2, crack\n0, void\n1, pothole\n")
    dataset = open_dataset(root)
    assert dataset.labels.names == ("crack", "pothole")
    assert dataset[0].label.tolist() == [[255, 1, 0, 255]]


def test_splits_are_kept_without_the_table(root):
    for split in ("train", "valid", "test"):
        (root / split / "_classes.csv").unlink()
    assert [len(open_dataset(root, split)) for split in ("train", "val", "test")] == [6, 3, 2]
    Image.fromarray(np.zeros((1, 4, 3), np.uint8)).save(root / "more.jpg")
    Image.fromarray(MASK).save(root / "more_mask.png")
    assert notes_of(open_dataset(root))[0] == "1 image is in none of the splits"


def test_tables_that_disagree_or_are_of_another_form(root):
    (root / "valid" / "_classes.csv").write_text(TABLE.replace("crack", "hole"))
    with pytest.raises(UserError, match="test/_classes.csv and .*valid/_classes.csv name different classes"):
        open_dataset(root)
    (root / "test" / "_classes.csv").write_text("id,name\n0,a\n")
    with pytest.raises(UserError, match="expected the columns Pixel Value, Class; got id, name"):
        open_dataset(root)
    (root / "test" / "_classes.csv").write_text("Pixel Value, Class\nx, a\n")
    with pytest.raises(UserError, match='expected whole numbers as values of pixels, got "x"'):
        open_dataset(root)
