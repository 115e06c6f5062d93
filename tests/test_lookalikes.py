"""Images of val or test that are copies of others in train, though their files differ."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, open_dataset
from degrid.data.formats import copies
from degrid.data.formats.photographs import photographs
from degrid.data.synthetic import draw_scene
from degrid.types import UserError


def scenes(root, images):
    """A data set of images uint8 [H,W,3] by their places below it, without classes."""
    for name, pixels in images.items():
        file = root / name
        for place in (file, root / name.replace("images", "masks")):
            place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file, quality=75)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[40:] = 1
        Image.fromarray(mask).save((root / name.replace("images", "masks")).with_suffix(".png"))
    return root


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("name", ["2", "other"])
def test_copies_in_another_format_are_in_two_splits(tmp_path, suffix, name, monkeypatch):
    """The check finds them under any name; so does training, but of large data only those of the same name."""
    pixels = [draw_scene(np.random.default_rng(k), 90, 120)[0] for k in range(6)]
    images = {f"train/images/{k}.png": pixels[k] for k in range(4)}
    root = scenes(tmp_path, {**images, "val/images/4.png": pixels[4], f"val/images/{name}{suffix}": pixels[2]})
    (problem,) = check_data(root).problems
    assert problem.startswith(f"1 of 2 images of val is in train, too, such as {root}/val/images/{name}{suffix} (a ")
    assert f"(a copy of {root}/train/images/2.png, stored in another format or compressed once more)" in problem
    assert check_data(root, accept=["splits-overlap"]).ok
    refused = pytest.raises(UserError, match=r"1 of 2 images of val is in train, too.*\[splits-overlap\]")
    with refused:
        open_dataset(root, accept=())
    monkeypatch.setattr(copies, "_MOST_BYTES", 1000)
    with refused if name == "2" else contextlib.nullcontext():
        open_dataset(root, accept=())


def test_photographs_that_are_alike_are_no_copies(tmp_path):
    """Another one of the same place: with noise of its own, with something new in it, or moved by a few pixels."""
    rng = np.random.default_rng(0)
    scene = draw_scene(np.random.default_rng(3), 120, 160)[0].astype(float)

    def photograph(pixels):
        return np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)

    changed = scene.copy()
    changed[50:62, 70:82] += 60
    moved = np.roll(scene, 5, axis=1)
    grey = np.full((120, 160, 3), 120.0)
    images = {
        f"train/images/{k}.png": photograph(each)
        for k, each in enumerate((scene, grey, np.roll(scene[::-1], 9, axis=0)))
    }
    images |= {f"val/images/{k}.png": photograph(each) for k, each in enumerate((changed, grey, moved))}
    assert check_data(scenes(tmp_path, images)).problems == []


def test_16_bit_copies_are_compared_by_their_own_range(tmp_path):
    values = [draw_scene(np.random.default_rng(k), 90, 120)[0][..., 0].astype(np.uint16) * 8 for k in range(4)]
    root = scenes(
        tmp_path, {f"{split}/images/{k}.png": values[k] for split, k in (("train", 0), ("train", 1), ("val", 2))}
    )
    assert check_data(root).ok
    open_dataset(root, accept=())
    Image.fromarray(values[1]).save(root / "val" / "images" / "2.png", compress_level=1)
    (problem,) = check_data(root).problems
    assert "(a copy of" in problem
    with pytest.raises(UserError, match=r"\(a copy of"):
        open_dataset(root, accept=())


def test_turned_and_mirrored_copies(tmp_path):
    """Under any names, and compressed once more; photographs of squares, too, whose size does not tell."""
    pixels = [draw_scene(np.random.default_rng(k), 90, 90)[0] for k in range(9)]
    images = {f"train/images/{k}.png": each for k, each in enumerate(pixels[:8])}
    turned = [np.rot90(mirrored, k) for k in range(4) for mirrored in (pixels[k], pixels[k + 4][:, ::-1])]
    images |= {f"val/images/v{k}.jpg": each for k, each in enumerate([*turned, pixels[8]])}
    root = scenes(tmp_path, images)
    (problem,) = check_data(root).problems
    assert problem.startswith("8 of 9 images of val are in train, too, such as ")
    (root / "val/images/v0.jpg").unlink()
    (problem,) = check_data(root).problems
    assert problem.startswith("7 of 8 images of val are in train, too")
    assert f"v1.jpg (a copy of {root}/train/images/4.png, turned or mirrored)" in problem
    with pytest.raises(UserError, match=r"turned or mirrored.*splits-overlap"):
        open_dataset(root, accept=())


def names(root, split):
    return [source.name.rpartition("/")[2] for source in open_dataset(root, split).sources]


CHANGES = ("", "_flip", "_aug1", "_rot90")
COPIES = ["a", "a_flip", "a_aug1", "a_rot90", "b", "aug_2_b", "b_hflip_r180", "b - Copy (2)", "c_fliplr", "c_rot_270"]


def test_changed_copies_by_their_names():
    assert photographs(COPIES) == ["a"] * 4 + ["b"] * 4 + ["c"] * 2
    folders = ["original/q", "augmented/q", "augmented/q_noise", "x/a", "y/a", "y/a_crop_3", "z/a_crop_3"]
    assert photographs(folders) == ["original/q"] * 3 + ["x/a", "y/a", "y/a", "z/a_crop_3"]
    others = ["2024_aug_01", "2024_aug_02", "apple_rot_001", "apple_rot_002", "field_crop", "copy", "a_2", "aug_1"]
    assert photographs(others) == others


def test_own_changed_copies_are_divided_together_and_told_where_they_are_not(tmp_path):
    """Noise of their own, so that nothing but the names says it."""
    rng = np.random.default_rng(0)
    pixels = {f"{n}{change}": rng.integers(0, 255, (90, 120, 3), np.uint8) for n in range(12) for change in CHANGES}
    root = scenes(tmp_path / "one", {f"images/{name}.png": each for name, each in pixels.items()})
    found = {split: {name.partition("_")[0] for name in names(root, split)} for split in ("train", "val")}
    assert found["train"]
    assert found["val"]
    assert not found["train"] & found["val"]
    report = check_data(root)
    assert report.ok
    assert any(note.endswith("changed copies of one image, as the names say, stay together") for note in report.notes)
    (root / "train.txt").write_text("\n".join(name for name in pixels if name != "3_flip"))
    (root / "val.txt").write_text("3_flip\n")
    (problem,) = check_data(root).problems
    assert f"3_flip.png (a copy of {root}/images/3.png, changed, as the names say)" in problem
    with pytest.raises(UserError, match=r"as the names say.*splits-overlap"):
        open_dataset(root, accept=())


def test_copies_of_the_only_image(tmp_path):
    rng = np.random.default_rng(0)
    pixels = {f"images/road{change}.png": rng.integers(0, 255, (90, 120, 3), np.uint8) for change in CHANGES}
    root = scenes(tmp_path, pixels)
    assert names(root, "train") == names(root, "val") == ["road", "road_aug1", "road_flip", "road_rot90"]
    assert any("all images are changed copies of one" in note for note in check_data(root).notes)


def test_the_same_names_in_two_splits_are_two_images(tmp_path):
    rng = np.random.default_rng(0)
    images = [f"{split}/images/{k}{change}.png" for split in ("train", "val") for k in range(3) for change in CHANGES]
    root = scenes(tmp_path, {name: rng.integers(0, 255, (90, 120, 3), np.uint8) for name in images})
    assert check_data(root).problems == []
