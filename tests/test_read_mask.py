"""Values of label images as they are stored, for every kind of file that changes them on the way."""

import importlib
import io
import sys

import numpy as np
import pytest
from mask_writers import tiff
from PIL import Image, features
from test_data_faults import png

from degrid.data import check_data, open_dataset
from degrid.data.formats import read_mask as module
from degrid.data.formats.masks import NO_DATA, MaskReading, MaskRule
from degrid.data.formats.read_array import UnusableMaskError
from degrid.data.formats.read_mask import LossyMaskError, read_mask, read_palette
from degrid.image import read_image
from degrid.raster import tiff_header
from degrid.types import IGNORE_INDEX, LabelSpace, UserError

IDS = np.array([[0, 1, 2, 1, 0], [2, 2, 1, 0, 0], [1, 0, 0, 2, 1]])
LOSSY, BY_COLOR = MaskReading(lossy=True), MaskReading(by_color=True)


def read(tmp_path, data, name="m.tif"):
    (tmp_path / name).write_bytes(data)
    return read_mask(tmp_path / name)


def read_image_of(tmp_path, data):
    (tmp_path / "a.tif").write_bytes(data)
    return read_image(tmp_path / "a.tif")


# ---- TIFF ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_tiffs_of_few_bits_and_with_white_as_zero_give_the_stored_values(tmp_path, bits, photometric):
    """Pillow inverts values of up to 8 bits where 0 is white, and stretches those of 2 and 4 bits."""
    top = min(2**bits - 1, 60000)
    ids = np.where(IDS == 2, top, IDS % (top + 1)).astype(np.uint16 if bits == 16 else np.uint8)
    found = read(tmp_path, tiff(ids, bits=bits, photometric=photometric))
    assert np.array_equal(found, ids)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "kind", [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)] + ["float32", "float64"]
)
def test_tiffs_of_every_type_and_byte_order(tmp_path, kind, order):
    if kind in ("int64", "uint64", "float64") or (kind, order) == ("uint32", ">"):
        pytest.importorskip("rasterio")
    ids = IDS.astype(kind)
    ids[0, 0] = -2 if kind.startswith("int") else 250
    if kind == "uint32":
        ids[0, 1] = 2**31 + 5
    assert np.array_equal(read(tmp_path, tiff(ids, order=order)), ids)


def test_a_tiff_written_by_gdal_gives_what_gdal_reads(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    kinds = [
        {"nbits": 2},
        {"nbits": 4},
        {"nbits": 7},
        {"photometric": "MINISWHITE"},
        {"compress": "lzw"},
        {"tiled": True},
    ]
    kinds += [
        {"photometric": "MINISWHITE", "nbits": 4, "compress": "deflate"},
        {"sparse_ok": True},
        {"compress": "lerc"},
    ]
    kinds += [{"photometric": "MINISWHITE", "nbits": 1, "compress": "ccittfax4"}, {"driver": "COG"}]
    for options in kinds:
        ids = (
            np.zeros((64, 64), np.uint8) if "sparse_ok" in options else np.kron(IDS, np.ones((20, 15))).astype(np.uint8)
        )
        ids = np.minimum(ids, 1) if options.get("nbits") == 1 else ids
        shape = {"height": ids.shape[0], "width": ids.shape[1], "count": 1, "dtype": "uint8"}
        where = rasterio.Affine(1, 0, 7, 0, -1, 7)
        profile = {"driver": "GTiff", "transform": where, **shape, **options}
        with rasterio.open(tmp_path / "m.tif", "w", **profile) as file:
            file.write(ids, 1)
        assert np.array_equal(read_mask(tmp_path / "m.tif"), ids), options


def test_parts_that_a_tiff_does_not_store_are_not_taken_from_its_header(tmp_path, monkeypatch):
    data = tiff(IDS.astype(np.uint8), sparse=True)
    assert np.asarray(Image.open(io.BytesIO(data)))[0, :3].tolist() == [73, 73, 42]  # "II*": what Pillow reads
    with pytest.raises(UserError, match=r"a\.tif leaves out its empty parts \(SPARSE_OK of GDAL\)"):
        read_image_of(tmp_path, data)
    pytest.importorskip("rasterio")
    assert not read(tmp_path, data).any()
    monkeypatch.setattr("degrid.raster.rasterio_or_none", lambda: None)
    with pytest.raises(
        UserError, match=r"m\.tif holds 1 band of uint8, which is read with rasterio: pip install degrid"
    ):
        read_mask(tmp_path / "m.tif")


def test_check_says_where_a_tiff_may_surprise(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k, options in enumerate(({"photometric": 0}, {"nodata": "0"}, {"nodata": "255"}, {"photometric": 0}, {})):
        ids = (IDS == 2).astype(np.uint16 if k == 3 else np.uint8)
        (tmp_path / f"masks/{k}.tif").write_bytes(tiff(ids, **options))
        Image.fromarray(np.full((3, 5), 200 + k, np.uint8)).save(tmp_path / f"images/{k}.png")
    notes = [note for note in check_data(tmp_path).notes if "masks" in note and note[0].isdigit()]
    assert len(notes) == 2
    assert notes[0].startswith("1 TIFF mask in which 0 is white")
    assert "0.tif" in notes[0]
    assert notes[1].startswith('1 mask that calls the id 0 "no data"')
    assert "1.tif" in notes[1]


def test_several_pages_are_refused_but_overviews_are_none(tmp_path):
    ids = IDS.astype(np.uint8)
    with pytest.raises(UnusableMaskError, match=r"m\.tif holds 3 pages; expected one image of class ids"):
        read(tmp_path, tiff(ids == 0, ids == 1, ids == 2))
    pyramid = tiff(np.kron(ids, np.ones((2, 2), np.uint8)), ids, ids, kinds=[0, 1, 4])
    assert read(tmp_path, pyramid).shape == (6, 10)
    frames = [Image.fromarray(ids + k) for k in range(3)]
    for name, options in (("m.gif", {}), ("m.webp", {"lossless": True}), ("m.png", {"default_image": False})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        with pytest.raises(UnusableMaskError, match=rf"{name} holds 3 pages"):
            read_mask(tmp_path / name)


def test_bands_that_are_no_ids_are_named(tmp_path):
    five, three = np.dstack([IDS] * 5).astype(np.uint8), np.dstack([IDS] * 3)
    for values, said in ((five, "5 bands of uint8"), (three.astype(np.uint16), "3 bands of uint16")):
        with pytest.raises(UnusableMaskError, match=rf"m\.tif holds {said}; expected 1 band of class ids"):
            read(tmp_path, tiff(values))
    with pytest.raises(UnusableMaskError, match="holds 3 bands of uint16"):
        read(tmp_path, tiff(three.astype(np.uint16), photometric=2))  # Pillow keeps only the high bytes, all 0
    assert np.array_equal(read(tmp_path, tiff(three.astype(np.uint8), photometric=2)), three)


def test_without_rasterio_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.raster.rasterio_or_none", lambda: None)
    with pytest.raises(
        UserError, match=r"m\.tif holds 1 band of float64, .*: pip install degrid\[geo\], or save it as PNG"
    ):
        read(tmp_path, tiff(IDS.astype(np.float64)))


def test_pixels_without_data_are_void(tmp_path):
    """GDAL_NODATA, NaN, infinity and numbers that no id can be; not what may be an id, nor a value in the rule."""
    rule = MaskRule.plain(LabelSpace.of_size(3))
    lowest = float(np.finfo(np.float32).min)
    cases = [
        (np.float32, lowest, str(lowest)),
        (np.float32, lowest, None),
        (np.float32, np.nan, None),
        (np.float32, np.nan, "nan"),
        (np.float32, -np.inf, None),
        (np.float32, -9999, "-9999"),
        (np.int16, -9999, "-9999"),
        (np.uint16, 65535, "65535"),
        (np.int32, -(2**31), "-2147483648.0"),
        (np.int8, -128, "-128"),
        (np.float32, 255, "255"),
    ]
    for dtype, value, said in cases:
        stored = np.where(IDS == 2, np.array(value, dtype), IDS.astype(dtype))
        found = read(tmp_path, tiff(stored, **({"nodata": said} if said else {})))
        ids, unknown = rule.apply(found)
        assert (ids.tolist(), unknown) == (np.where(IDS == 2, IGNORE_INDEX, IDS).tolist(), {}), (dtype, value, said)
    assert np.array_equal(read(tmp_path, tiff(IDS.astype(np.uint8), nodata="0")), IDS)
    assert read(tmp_path, tiff(IDS.astype(np.int16) - 1)).min() == -1  # nothing says that -1 is no data
    for bad in (0.5, 254.9999):
        with pytest.raises(UnusableMaskError, match=r"m\.tif holds fractions, such as a map of probabilities"):
            read(tmp_path, tiff(np.where(IDS == 2, bad, IDS).astype(np.float32)))


def test_no_data_is_no_class_where_classes_are_found_in_the_masks(tmp_path):
    for k in range(4):
        for folder, data in (
            ("images", IDS.astype(np.uint8) + k),
            ("masks", np.where(IDS == 2, np.nan, IDS).astype("f4")),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{k}.tif").write_bytes(tiff(data))
    dataset = open_dataset(tmp_path)
    assert len(dataset.labels) == 2
    assert np.array_equal(dataset[0].label, np.where(IDS == 2, IGNORE_INDEX, IDS))
    report = check_data(tmp_path)
    assert report.ok
    assert any(note.startswith("4 masks with pixels that have no data (NaN") for note in report.notes)


def test_negative_ids_are_void_if_said_so(tmp_path):
    for k in range(2):
        for folder, data in (("images", IDS.astype(np.uint8) + k), ("masks", np.where(IDS == 2, -1, IDS).astype("i2"))):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{k}.tif").write_bytes(tiff(data))
    with pytest.raises(
        UserError, match=r'from -1 to 1; .*, from 0 on: write "void: \[-1\]" in .*dataset\.yaml if that'
    ):
        open_dataset(tmp_path)
    (tmp_path / "dataset.yaml").write_text("void: [-1]")
    assert np.array_equal(open_dataset(tmp_path)[0].label, np.where(IDS == 2, IGNORE_INDEX, IDS))


def test_damaged_tiffs_end_in_one_sentence(tmp_path):
    whole = tiff(IDS.astype(np.uint8), IDS.astype(np.uint8), nodata="-9999")
    for length in range(0, len(whole), 7):
        with pytest.raises(UserError, match=r"m\.tif"):
            read(tmp_path, whole[:length])
    assert tiff_header(tmp_path / "absent.tif") is None
    loop = bytearray(tiff(IDS.astype(np.uint8)))
    loop[-4:] = loop[4:8]  # the next page is the same page
    (tmp_path / "m.tif").write_bytes(loop)
    assert tiff_header(tmp_path / "m.tif").pages == 1


# ---- other kinds --------------------------------------------------------------------------------------------


def test_masks_that_were_compressed_with_loss_are_refused(tmp_path):
    grey = Image.fromarray(np.kron(IDS, np.ones((16, 16))).astype(np.uint8) * 127)
    alpha = Image.merge("RGBA", [grey, grey, grey, grey.point(lambda v: 255 - v // 2)])
    for name, image, options, kind in (
        ("a.jpg", grey, {}, "JPEG"),
        ("a.png", grey, {"format": "jpeg"}, "JPEG"),
        ("a.tif", grey, {"compression": "jpeg"}, "JPEG-compressed TIFF"),
        ("a.webp", grey, {}, "lossy WebP"),
        ("b.webp", alpha, {}, "lossy WebP"),
        ("a.jp2", grey, {"irreversible": True}, "lossy JPEG 2000"),
        *([("a.avif", grey, {}, "AVIF")] if features.check("avif") else []),
    ):
        image.save(tmp_path / name, **options)
        with pytest.raises(LossyMaskError, match=rf"{name} is an? {kind}: .*Save masks as PNG.*>= 128") as caught:
            read_mask(tmp_path / name)
        assert caught.value.kind == kind
        found = read_mask(tmp_path / name, LOSSY).astype(int)
        assert np.abs((found if found.ndim == 2 else found[..., 0]) - np.asarray(grey)).max() < 60, name
    grey.save(tmp_path / "c.jp2")
    assert np.array_equal(read_mask(tmp_path / "c.jp2"), grey)
    for image in (grey, alpha):
        image.save(tmp_path / "c.webp", lossless=True, exact=True)
        assert np.array_equal(read_mask(tmp_path / "c.webp"), np.asarray(grey.convert("RGB")))


def test_tiffs_in_the_colours_of_jpeg_are_no_masks(tmp_path):
    """Pillow writes them without a tag that it needs to read them, so that they look as if they were cut short."""
    Image.new("YCbCr", (12, 8)).save(tmp_path / "a.tif")
    for how in (MaskReading(), LOSSY):
        with pytest.raises(UserError, match=r"a.tif is a TIFF in YCbCr.*save masks as PNG, or as TIFF in RGB"):
            read_mask(tmp_path / "a.tif", how)


def test_check_tells_lossy_damaged_and_unfit_masks_apart(tmp_path):
    for k, suffix in enumerate(("webp", "tif", "png")):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (3, 5, 3), np.uint8)).save(
            tmp_path / f"images/{k}.png"
        )
        Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / f"masks/{k}.{suffix}")
    (tmp_path / "masks/1.tif").write_bytes(tiff(*[IDS.astype(np.uint8)] * 3))
    (tmp_path / "masks/2.png").write_bytes((tmp_path / "masks/2.png").read_bytes()[:50])
    problems = "\n".join(check_data(tmp_path).problems)
    assert "1 lossy WebP mask" in problems
    assert "1 mask that does not hold class ids" in problems
    assert "1 mask that cannot be read (make them again)" in problems


def test_check_notes_images_that_are_nearly_black(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for k, highest in enumerate((20, 200, 250)):
        Image.fromarray(np.linspace(0, highest, 15).astype(np.uint8).reshape(3, 5)).save(tmp_path / f"images/{k}.png")
        Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / f"masks/{k}.png")
    notes = [note for note in check_data(tmp_path).notes if "nearly black" in note]
    assert len(notes) == 1
    assert notes[0].startswith("1 image that is")
    assert notes[0].endswith("0.png (0 to 20)")


@pytest.mark.parametrize(("top", "form"), [(2, "P5"), (2, "P2"), (254, "P5"), (255, "P5"), (300, "P5"), (65535, "P5")])
def test_a_pgm_gives_the_stored_values_whatever_its_highest_is(tmp_path, top, form):
    ids = np.where(IDS == 2, top, IDS)
    body = (
        ids.astype(">u2" if top > 255 else np.uint8).tobytes()
        if form == "P5"
        else b" ".join(b"%d" % v for v in ids.flat)
    )
    assert np.array_equal(
        read(tmp_path, b"%s\n# %s\n5 3\n%d\n" % (form.encode(), b"c" * 100, top) + body, "m.pgm"), ids
    )


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "bmp", "pgm", "jp2", "mat", "npy"])
def test_files_that_are_cut_short_anywhere_end_in_one_sentence_or_in_whole_values(tmp_path, suffix):
    pytest.importorskip("scipy")
    whole, file = tmp_path / f"whole.{suffix}", tmp_path / f"m.{suffix}"
    ids = np.random.default_rng(0).integers(0, 9, (12, 20), np.uint8)
    if suffix == "npy":
        np.save(whole, ids)
    elif suffix == "mat":
        importlib.import_module("scipy.io").savemat(whole, {"a": ids})
    else:
        Image.fromarray(ids).save(whole, **({"lossless": True} if suffix == "webp" else {}))
    data, refused = whole.read_bytes(), 0
    for length in range(0, len(data), max(1, len(data) // 60)):
        file.write_bytes(data[:length])
        try:
            read_mask(file)
        except UserError as error:
            refused += 1
            assert file.name in str(error)  # noqa: PT017
    assert refused > 40


def test_gifs_give_colours_or_grey_values_since_programs_renumber_their_palette(tmp_path):
    grey = np.where(IDS == 2, 200, IDS * 7).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "m.gif")
    assert np.array_equal(read_mask(tmp_path / "m.gif"), grey)
    table = np.array([[0, 0, 0], [250, 0, 0], [0, 0, 250]], np.uint8)
    picture = Image.fromarray(IDS.astype(np.uint8) + 4)
    picture.putpalette(np.vstack([np.full((4, 3), 99, np.uint8), table]).tobytes())
    picture.save(tmp_path / "m.gif")
    with Image.open(tmp_path / "m.gif") as stored:
        assert np.asarray(stored).max() == 2  # 0 to 2, not 4 to 6
    assert np.array_equal(read_mask(tmp_path / "m.gif"), table[IDS])
    black = Image.fromarray((IDS == 2).astype(np.uint8))
    black.putpalette([0, 0, 0, 255, 255, 255])
    black.save(tmp_path / "m.gif")
    assert np.array_equal(read_mask(tmp_path / "m.gif"), np.where(IDS == 2, 255, 0))


def test_arrays_of_numpy(tmp_path):
    for values in (
        IDS,
        IDS > 0,
        IDS.astype(np.uint16),
        IDS.astype(float),
        IDS[None],
        IDS[..., None].astype(np.uint8),
        np.asfortranarray(IDS),
        IDS.astype(">i4") - 1,
    ):
        np.save(tmp_path / "m.npy", values)
        assert np.array_equal(read_mask(tmp_path / "m.npy"), values.squeeze()), values.dtype
    colors = np.dstack([IDS] * 3).astype(np.uint8)
    np.save(tmp_path / "m.npy", colors)
    assert np.array_equal(read_mask(tmp_path / "m.npy"), colors)
    np.save(tmp_path / "m.npy", np.where(IDS == 2, np.nan, IDS))
    assert (read_mask(tmp_path / "m.npy") == NO_DATA).sum() == (IDS == 2).sum()
    for values, said in (
        (np.array([{"a": 1}]), "holds Python objects"),
        (IDS * 0.3, "holds fractions"),
        (np.stack([IDS] * 4), r"is an array \[4, 3, 5\] of int64; .*array\.argmax\(0\)"),
        (np.eye(3, dtype=np.uint8)[IDS % 3], r"is an array \[3, 5, 3\] of uint8; .*array\.argmax\(-1\)"),
        (IDS[0], r"is an array \[5\] of int64"),
        (IDS.astype(complex), "holds complex128"),
        (IDS.astype(str), "holds <U"),
    ):
        np.save(tmp_path / "m.npy", values, allow_pickle=True)
        with pytest.raises(UnusableMaskError, match=rf"m\.npy {said}"):
            read_mask(tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", IDS)
    whole = (tmp_path / "m.npy").read_bytes()
    for data in (whole[:60], whole[:-9], b"", b"\x93NUMPY"):
        with pytest.raises(UserError, match=r"m\.npy"):
            read(tmp_path, data, "m.npy")
    with pytest.raises(UserError, match=r"no such image: .*n\.npy"):
        read_mask(tmp_path / "n.npy")


def test_archives_of_arrays(tmp_path):
    """One array [H,W] or colours, whatever it is called; not several, and no Python objects."""
    place = tmp_path / "m.npz"
    for save in (np.savez, np.savez_compressed):
        save(place, IDS)
        assert np.array_equal(read_mask(place), IDS)
    np.savez(place, mask=IDS, scale=2.0, names=np.array(["a"]))
    assert np.array_equal(read_mask(place), IDS)
    np.savez(place, image=IDS, label=IDS)
    with pytest.raises(UnusableMaskError, match=r"m\.npz holds image \[3, 5\], label \[3, 5\]; expected one array"):
        read_mask(place)
    np.savez(place, np.array([[{}, {}]]))
    with pytest.raises(UnusableMaskError, match=r"m\.npz holds Python objects"):
        read_mask(place)
    np.savez(place, IDS)
    whole = place.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PK\3\4", whole.replace(IDS.tobytes(), IDS.tobytes()[::-1])):
        place.write_bytes(data)
        with pytest.raises(UserError, match=r"m\.npz is damaged or cut short"):
            read_mask(place)


def test_arrays_of_matlab(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    for values in (IDS.astype(np.uint8), IDS.astype(float), IDS > 0):
        savemat(tmp_path / "m.mat", {"LabelMap": values, "note": "by hand", "scale": 2.0})
        assert np.array_equal(read_mask(tmp_path / "m.mat"), values)
    savemat(tmp_path / "m.mat", {"a": IDS, "b": IDS})
    with pytest.raises(UnusableMaskError, match=r"m\.mat holds a \[3, 5\], b \[3, 5\]; expected one array"):
        read_mask(tmp_path / "m.mat")
    whole = (tmp_path / "m.mat").read_bytes()
    (tmp_path / "m.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"m\.mat"):
        read_mask(tmp_path / "m.mat")
    (tmp_path / "m.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF")
    with pytest.raises(UnusableMaskError, match=r"m\.mat is of MATLAB's version 7\.3"):
        read_mask(tmp_path / "m.mat")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"m\.mat is a file of MATLAB, which is read with scipy: pip install scipy"):
        read_mask(tmp_path / "m.mat")


def test_what_only_transparency_tells_apart_is_refused(tmp_path):
    clear = np.where(IDS == 2, 0, 255).astype(np.uint8)
    ids = IDS.astype(np.uint8)
    for value in (0, 255):
        same = np.full_like(ids, value)
        Image.fromarray(np.dstack([same] * 3 + [clear])).save(tmp_path / "m.png")
        with pytest.raises(UnusableMaskError, match=r"m\.png has transparent and opaque pixels of the same colour"):
            read_mask(tmp_path / "m.png")
        Image.fromarray(np.dstack([same, clear])).save(tmp_path / "m.png")
        with pytest.raises(UnusableMaskError, match=r"m\.png has transparent and opaque pixels of the same colour"):
            read_mask(tmp_path / "m.png")
    told = np.dstack([ids * 40] * 3)
    for alpha in (clear, np.zeros_like(clear), np.full_like(clear, 255), np.where(IDS == 0, 0, 9).astype(np.uint8)):
        Image.fromarray(np.dstack([told, alpha])).save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png"), told)
    partly = np.where(IDS == 0, np.arange(15).reshape(3, 5) % 2 * 255, 255).astype(
        np.uint8
    )  # clear black, opaque black
    Image.fromarray(np.dstack([told, partly])).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), told)


def test_palettes_give_their_indices_or_their_colours(tmp_path):
    picture = Image.fromarray(IDS.astype(np.uint8))
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 200])
    for transparency in (0, bytes([0, 255, 128])):
        picture.save(tmp_path / "m.png", transparency=transparency)
        assert np.array_equal(read_mask(tmp_path / "m.png"), IDS)
        table = np.array([[9, 9, 9], [200, 0, 0], [0, 0, 200]])
        assert np.array_equal(read_mask(tmp_path / "m.png", BY_COLOR), table[IDS])
        assert np.array_equal(read_palette(tmp_path / "m.png")[:3], table)
    picture.save(tmp_path / "m.tif")
    assert np.array_equal(read_mask(tmp_path / "m.tif"), IDS)
    assert np.array_equal(read_mask(tmp_path / "m.tif", BY_COLOR), table[IDS])
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", BY_COLOR), IDS)
    assert read_palette(tmp_path / "m.png") is None
    assert read_palette(tmp_path / "absent.png") is None


def test_colours_of_16_bits_are_refused(tmp_path):
    data = bytearray(png(8, [[0, 1, 2]]))
    data[24:26] = 16, 2  # depth and colour type; nothing else is looked at
    with pytest.raises(UnusableMaskError, match="a.png has colours of 16 bits; expected one channel of class ids"):
        module.mask_values(Image.new("RGB", (3, 1)), "a.png", bytes(data))
