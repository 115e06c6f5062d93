"""Pictures of every kind, and what is written."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from degrid import image as image_module
from degrid.data.formats.shapes.drawn import shown_size
from degrid.image import (
    UnreadKindError,
    color_table,
    open_image,
    overlay_classes,
    palette_image,
    read_image,
    read_jpeg,
    to_array,
)
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


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_shapes_are_drawn_at_the_size_at_which_an_image_is_shown(tmp_path, suffix, orientation):
    """Pillow turns a TIFF when it opens it, and others when it is asked to."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"a{suffix}", exif=exif)
    size = (6, 4) if orientation == 6 else (4, 6)
    assert shown_size(tmp_path / f"a{suffix}") == size == read_image(tmp_path / f"a{suffix}").shape[:2]


def photo(height=37, width=53, seed=0):
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    return Image.fromarray((np.asarray(coarse) * 0.9 + rng.integers(0, 25, (height, width, 3))).astype(np.uint8))


@pytest.mark.parametrize(
    "how",
    [
        {"quality": 90},
        {"quality": 30, "subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 2},
        {"optimize": True, "comment": b"Exif"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(37, 53), (1, 1), (16, 9)])
def test_jpegs_have_pillows_pixels(tmp_path, how, size):
    photo(*size).save(tmp_path / "a.jpg", **how)
    found = read_jpeg(tmp_path / "a.jpg")
    assert found.flags.c_contiguous
    assert np.array_equal(found, to_array(open_image(tmp_path / "a.jpg")))


def test_other_jpegs_are_left_to_pillow(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo().save(tmp_path / "turned.jpg", exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    photo().save(tmp_path / "turned_by_xmp.jpg", xmp=xmp)
    photo().convert("L").save(tmp_path / "grey.jpg")
    photo().convert("CMYK").save(tmp_path / "four.jpg")
    photo().save(tmp_path / "png.jpg", "png")
    for file in tmp_path.iterdir():
        assert read_jpeg(file) is None, file
        assert np.array_equal(read_image(file), to_array(open_image(file))), file
    upright = to_array(photo())
    assert np.abs(read_image(tmp_path / "turned_by_xmp.jpg")[::-1, ::-1].astype(int) - upright).mean() < 10
    exif[0x0112] = 1
    photo().save(tmp_path / "upright.jpg", exif=exif)
    assert read_jpeg(tmp_path / "upright.jpg") is not None
    photo().save(tmp_path / "a.png")
    assert read_jpeg(tmp_path / "a.png") is None


def test_jpegs_without_simplejpeg_or_too_large_for_it(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.jpg")
    expected = read_jpeg(tmp_path / "a.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 53 - 1)  # Pillow's limit: beyond, it warns; beyond twice, refuses
        assert read_jpeg(tmp_path / "a.jpg") is None
    monkeypatch.setattr(image_module, "_simplejpeg", lambda: None)
    assert read_jpeg(tmp_path / "a.jpg") is None
    assert np.array_equal(read_image(tmp_path / "a.jpg"), expected)
    with pytest.raises(UserError, match="no such image"):
        read_image(tmp_path / "b.jpg")


def test_a_damaged_jpeg_is_refused_as_pillow_refuses_it(tmp_path):
    """Cut short anywhere, and with single bytes changed: the same pixels, or the same message."""
    rng, stream = np.random.default_rng(0), io.BytesIO()
    photo().save(stream, "jpeg", quality=80)
    whole = stream.getvalue()
    damaged = [whole[:length] for length in range(0, len(whole), 23)]
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] = rng.integers(256)
        damaged.append(bytes(changed))

    def outcome(read):
        try:
            return read(tmp_path / "a.jpg").tolist()
        except UserError as error:
            return str(error)

    outcomes = []
    for data in damaged:
        (tmp_path / "a.jpg").write_bytes(data)
        outcomes.append(outcome(lambda file: to_array(open_image(file))))
        assert outcome(read_image) == outcomes[-1]
    refused = sum(isinstance(each, str) for each in outcomes)
    assert 20 < refused < len(outcomes) - 20


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


def test_large_images_are_read_without_a_warning_and_refused_beyond_the_limit(tmp_path, monkeypatch):
    """Pillow warns of images above its limit and refuses those of twice its size; warnings are errors here."""
    pixels = np.random.default_rng(3).integers(0, 256, (20, 10, 3), dtype=np.uint8)
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})):
        Image.fromarray(pixels).save(tmp_path / name, **options)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert np.array_equal(read_image(tmp_path / name), pixels)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
        with pytest.raises(UserError, match=rf"{name} has 10x20 = 0 million pixels; .*cut it into tiles"):
            read_image(tmp_path / name)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert np.array_equal(read_image(tmp_path / name), pixels)


def test_sound_files_that_pillow_cannot_read_are_not_called_damaged(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    for count, dtype in ((5, "uint8"), (3, "uint16"), (1, "float64")):
        where = rasterio.Affine(1, 0, 7, 0, -1, 7)
        shape = {"height": 4, "width": 6, "count": count, "dtype": dtype, "transform": where}
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **shape) as file:
            file.write(np.zeros((count, 4, 6), dtype))
        said = f"{count} band{'s' if count > 1 else ''} of {dtype}"
        with pytest.raises(
            UnreadKindError, match=rf"a\.tif holds {said}, which is not read as a picture: save it with"
        ):
            read_image(tmp_path / "a.tif")
    Image.new("RGB", (6, 4)).save(tmp_path / "a.tif", tiffinfo={})
    data = bytearray((tmp_path / "a.tif").read_bytes())
    place = data.index(struct.pack("<HHI", 259, 3, 1)) + 8  # the compression, which becomes WebP
    data[place : place + 2] = struct.pack("<H", 50001)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(UnreadKindError, match=r"a\.tif is a TIFF compressed as WebP, and is not read as a picture"):
        read_image(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:20])
    with pytest.raises(UserError, match=r"a\.tif is damaged or cut short"):
        read_image(tmp_path / "a.tif")


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


@pytest.mark.parametrize(
    "error", [RuntimeError("no planes"), TypeError("no number"), Image.DecompressionBombError("huge")]
)
def test_whatever_error_of_a_decoder_shows_damage(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def load(image):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(UserError, match=rf"a\.png is damaged or cut short: {error}"):
        open_image(tmp_path / "a.png")
