"""What `degrid data check` calls ready, training takes; what training refuses, check calls a problem."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from degrid.config import DataConfig, RunConfig
from degrid.data import check_data
from degrid.types import UserError
from degrid.verbs import run

IDS = np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3, 4, axis=0).repeat(4, axis=1)


def put(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


def pairs(root, masks, count=5, first=0):
    """`masks` gives the mask of image k."""
    for k in range(first, first + count):
        put(root / "images" / f"{k}.png", np.random.default_rng(k).integers(0, 256, (24, 32, 3), dtype=np.uint8))
        put(root / "masks" / f"{k}.png", masks(k))


def splits(*names):
    def make(root):
        for place, name in enumerate(names):
            pairs(root / name, lambda k: IDS, first=10 * place)

    return make


def table(text, masks=lambda k: IDS, name="classes.csv"):
    def make(root):
        pairs(root, masks)
        (root / name).write_text(text)

    return make


def faulty(change):
    def make(root):
        pairs(root, lambda k: IDS, count=8)
        change(root)

    return make


def empty_file(root):
    (root / "images" / "1.png").write_bytes(b"")


def copy_in_val(root):
    (root / "images" / "2.png").write_bytes((root / "images" / "1.png").read_bytes())
    (root / "train.txt").write_text("0\n1\n")
    (root / "val.txt").write_text("2\n")


BLOCKS = np.repeat(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 12, axis=0), 16, axis=1)
SOFT = np.asarray(Image.fromarray(BLOCKS).resize((8, 6)).resize((32, 24), Image.Resampling.BICUBIC))
COLORS = np.stack([IDS * 80, IDS * 20, IDS], axis=2)
ROWS = "id,name,r,g,b\n0,a,0,0,0\n1,b,80,20,1\n2,c,160,40,2\n"

SETS = {
    "ids": lambda root: pairs(root, lambda k: IDS),
    "black and white": lambda root: pairs(root, lambda k: BLOCKS),
    "soft edges": lambda root: pairs(root, lambda k: SOFT),
    "brightness": lambda root: pairs(root, lambda k: IDS * 85),
    "colours and no table": lambda root: pairs(root, lambda k: COLORS),
    "colours": table(ROWS, lambda k: COLORS),
    "a table and ids": table(ROWS),
    "too few names": table("a\nb\n", name="classes.txt"),
    "more names": table("a\nb\nc\nd\n", name="classes.txt"),
    "all void": lambda root: pairs(root, lambda k: np.full_like(IDS, 255)),
    "one class": lambda root: pairs(root, lambda k: np.zeros_like(IDS)),
    "ids of 16 bits": lambda root: pairs(root, lambda k: IDS.astype(np.uint16) * 1000),
    "one image": lambda root: pairs(root, lambda k: IDS, count=1),
    "train and val": splits("train", "val"),
    "train and test": splits("train", "test"),
    "only train": splits("train"),
    "only val": splits("val"),
    "an image that is empty": faulty(empty_file),
    "a mask that is missing": faulty(lambda root: (root / "masks" / "2.png").unlink()),
    "a mask of another size": faulty(lambda root: put(root / "masks" / "2.png", IDS[:8])),
    "an unknown id": table("a\nb\nc\n", lambda k: IDS + 9 * (k == 3), "classes.txt"),
    "a list": faulty(lambda root: ((root / "train.txt").write_text("0\n1\n"), (root / "val.txt").write_text("2\n"))),
    "a copy in val": faulty(copy_in_val),
    "an image that is listed twice": faulty(
        lambda root: ((root / "train.txt").write_text("0\n1\n0\n"), (root / "val.txt").write_text("2\n"))
    ),
    "two images of one name": faulty(lambda root: put(root / "images" / "0.bmp", np.zeros((24, 32, 3), np.uint8))),
    "a class that is named twice": table("a\nb\na\n", name="classes.txt"),
    "ids from 1": table("id,name\n1,a\n2,b\n3,c\n", lambda k: IDS + 1),
    "ids from 1 and background": table("id,name\n1,a\n2,b\n3,c\n", lambda k: IDS),
    "a list without its image": faulty(
        lambda root: ((root / "train.txt").write_text("0\n99\n"), (root / "val.txt").write_text("2\n"))
    ),
}


def refusal(root: Path) -> str:
    """Why training would stop because of the data: at its start, or when it comes to a sample."""
    try:
        data, _ = run.open_data(RunConfig(data=DataConfig(path=str(root))))
        for dataset in (data.train, data.val or ()):
            for index in range(len(dataset)):
                dataset[index]
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SETS)
def test_check_and_train_agree(tmp_path, name):
    SETS[name](tmp_path)
    try:
        report = check_data(tmp_path)
    except UserError as error:
        ready, said = False, str(error)
    else:
        ready, said = report.ok and "train" in report.splits, str(report)
    why = refusal(tmp_path)
    assert ready == (not why), f"check: {said}; training: {why}"


def test_both_kinds_are_among_the_sets(tmp_path):
    refused = set()
    for name, make in SETS.items():
        make(tmp_path / name)
        refused |= {name} if refusal(tmp_path / name) else set()
    assert {
        "soft edges",
        "brightness",
        "too few names",
        "an image that is empty",
        "only val",
        "a copy in val",
    } <= refused
    assert not {"ids", "black and white", "colours", "train and val", "a list"} & refused
