"""Pictures of every kind, and what is written."""

import numpy as np
import pytest
from PIL import Image

from degrid.image import color_table, open_image, overlay_classes, palette_image, read_image
from degrid.types import LabelSpace, UserError

LABELS = LabelSpace(("sky", "road", "pole"), ((0, 0, 255), (128, 128, 128), (255, 255, 0)))


def test_rgb_is_exact(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for suffix in ("png", "bmp", "tif", "webp"):
        file = tmp_path / f"a.{suffix}"
        Image.fromarray(pixels).save(file, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(read_image(file), pixels), suffix


def test_other_kinds_become_rgb(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    rgb = np.repeat(grey[..., None], 3, axis=2)
    images = {
        "grey": Image.fromarray(grey),
        "grey alpha": Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey // 2)]),
        "rgba": Image.fromarray(np.dstack([rgb, grey // 2])),
        "16 bit": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette": Image.fromarray(rgb).convert("P", palette=Image.Palette.ADAPTIVE, colors=16),
    }
    for name, image in images.items():
        image.save(tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png"), rgb), name
    for name, image in (
        ("dark 16 bit", Image.fromarray((grey.astype(np.uint16) * 257) // 240)),
        ("fractions", Image.fromarray(grey.astype(np.float32) / 255)),
        ("float 0-255", Image.fromarray(grey.astype(np.float32))),
    ):
        image.save(tmp_path / "a.tif")
        expected = (grey.astype(int) * 257 // 240 / 257).round() if "dark" in name else grey
        assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], expected), name
    palette = images["palette"]
    palette.save(tmp_path / "t.png", transparency=bytes([0] + [255] * 15))
    assert np.array_equal(read_image(tmp_path / "t.png"), rgb)
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[..., 0], np.where(grey > 100, 255, 0))
    cmyk = Image.new("CMYK", (4, 3), (0, 255, 255, 0))
    cmyk.save(tmp_path / "c.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "c.jpg").astype(int) - (254, 0, 0)).max() <= 3


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path, orientation, turn):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(pixels, turn))


def test_damage_is_named(tmp_path):
    file = tmp_path / "a.jpg"
    with pytest.raises(UserError, match=r"no such image: .*a\.jpg"):
        read_image(file)
    file.write_bytes(b"not an image at all")
    with pytest.raises(UserError, match=r"a\.jpg is not an image"):
        read_image(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.jpg is not an image"):
        read_image(file)
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png"):
        whole = tmp_path / f"b.{suffix}"
        Image.fromarray(noise).save(whole)
        data = whole.read_bytes()
        whole.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=rf"b\.{suffix} is damaged or cut short"):
            open_image(whole)


def test_palette_png_holds_ids_and_colours(tmp_path):
    ids = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
    palette_image(ids, LABELS).save(tmp_path / "m.png")
    again = Image.open(tmp_path / "m.png")
    assert again.mode == "P"
    assert np.array_equal(np.asarray(again), ids)
    assert np.array_equal(np.asarray(again.convert("RGB")), color_table(LABELS)[ids])
    assert np.asarray(again.convert("RGB"))[0, 2].tolist() == [255, 255, 0]


def test_overlay_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = overlay_classes(image, np.array([[0, 2, 255]], np.uint8), LABELS, alpha=0.5)
    assert mixed.tolist() == [[[50, 50, 178], [178, 178, 50], [100, 100, 100]]]
    full = overlay_classes(np.full((1, 1, 3), 255, np.uint8), np.array([[2]], np.uint8), LABELS, alpha=1.0)
    assert full.tolist() == [[[255, 255, 0]]]
