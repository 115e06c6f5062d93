"""Folds of a cross-validation: one is kept for validation, and none is mixed with another."""

import json

import pytest
from test_folder_names import found, lines, pair

from degrid.data import check_data

NAMES = [f"a{k}" for k in range(6)]


def parts(number, inside):
    """The names of a fold, or of all others."""
    return lines(name for k, name in enumerate(NAMES) if (k % 3 == number) == inside)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"folds.csv": "image,fold\n" + lines(f"{name}.png,{k % 3}" for k, name in enumerate(NAMES))},
            "folds.csv divides the images into 3 folds: 0 is kept for validation",
        ),
        (
            {"train_folds.csv": "file_name;kfold\n" + lines(f"{n}.png;{float(k % 3)}" for k, n in enumerate(NAMES))},
            "train_folds.csv divides the images into 3 folds: 0.0 is kept for validation",
        ),
        (
            {f"{s}_fold{n}.txt": parts(n, s == "val") for n in range(3) for s in ("train", "val")},
            "the splits are those of train_fold0.txt, val_fold0.txt, one of 3 folds",
        ),
        (
            {f"fold_{n}_{s}.txt": parts(n, s == "val") for n in range(3) for s in ("train", "val")},
            "the splits are those of fold_0_train.txt, fold_0_val.txt, one of 3 folds",
        ),
        (
            {f"fold_{n}/{s}.txt": parts(n, s == "val") for n in range(3) for s in ("train", "val")},
            "the lists are those of fold_0, not of fold_1, fold_2",
        ),
        (
            {
                "splits_final.json": json.dumps(
                    [{s: parts(n, s == "val").split() for s in ("train", "val")} for n in range(3)]
                )
            },
            "the splits are those of splits_final.json, of which the first of 3 folds counts",
        ),
    ],
)
def test_the_first_fold_is_kept_for_validation(tmp_path, files, said):
    for k, name in enumerate(NAMES):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png", k)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    splits = found(tmp_path)
    assert {split: sorted(numbers) for split, numbers in splits.items()} == {"train": [1, 2, 4, 5], "val": [0, 3]}
    assert any(said in note for note in check_data(tmp_path).notes)


@pytest.mark.parametrize("form", ["fold{n}/images/{k}.png fold{n}/masks/{k}.png", "images/f/{k}.png masks/f/{k}.png"])
def test_folds_in_folders(tmp_path, form):
    images, masks = (part.replace("/f/", "/Fold-{n}/") for part in form.split())
    for k in range(6):
        pair(tmp_path / images.format(n=k // 2 + 1, k=k), tmp_path / masks.format(n=k // 2 + 1, k=k), k)
    assert found(tmp_path) == {"train": [2, 3, 4, 5], "val": [0, 1]}
    assert any("1 is kept for validation, 2 other folds are trained on" in note for note in check_data(tmp_path).notes)


def test_numbers_that_are_no_folds(tmp_path):
    for k, name in enumerate(NAMES):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png", k)
    (tmp_path / "folds.csv").write_text(
        "image,fold\n" + lines(f"{name}.png,{'ab'[k % 2]}" for k, name in enumerate(NAMES))
    )
    assert any("folds.csv is not read" in note for note in check_data(tmp_path).notes)
