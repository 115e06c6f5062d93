"""Images of val or test that are copies of others in train, though their files differ."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from degrid.data import check_data, open_dataset
from degrid.data.formats import copies
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
    images = {f"train/images/{k}.png": photograph(each) for k, each in enumerate((scene, grey, moved[::-1]))}
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
