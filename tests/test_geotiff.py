"""GeoTIFFs: pixels without data, and predictions for the same place on the map."""

import struct
import warnings

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

import degrid
from degrid.bands import LargeScene, Scene, no_data_of, open_scene, read_scene, without_data
from degrid.data import check_data, open_dataset
from degrid.engine.inference.options import InferenceOptions
from degrid.raster import is_on_map, read_bands, tiff_header
from degrid.types import IGNORE_INDEX, Bands, UserError
from degrid.verbs.find_images import is_result

PLACE = {"crs": CRS.from_epsg(32632), "transform": Affine(10, 0, 500_000, 0, -10, 5_200_000)}


def write(file, values, **more):
    """A GeoTIFF in tiles of values [C,H,W]."""
    file.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16}
    profile = {**PLACE, **tiles, "width": width, "height": height, "count": count, "dtype": values.dtype, **more}
    with rasterio.open(file, "w", driver="GTiff", **profile) as opened:
        opened.write(values)
    return file


def network(count=3, **settings):
    torch.manual_seed(0)
    return degrid.deeplabv3plus("timm:test_resnet", 3, channels=16, in_channels=count, **settings).eval()


@pytest.mark.parametrize("layout", [{}, {"tiled": False}, {"tiled": False, "blockysize": 5}], ids=str)
@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_a_map_without_all_of_its_parts_is_damaged(tmp_path, layout, interleave):
    """GDAL reads zeros in place of what is missing, for minutes where the header claims a huge image."""
    values = np.arange(3 * 40 * 48, dtype=np.uint16).reshape(3, 40, 48)
    file = write(tmp_path / "a.tif", values, interleave=interleave, **layout)
    header = tiff_header(file)
    assert (header.size, header.complete) == ((48, 40), True)
    assert (read_bands(file) == values).all()
    sound, height = file.read_bytes(), struct.pack("<HHIH", 257, 3, 1, 40)
    assert sound.count(height) == 1
    file.write_bytes(sound.replace(height, struct.pack("<HHIH", 257, 3, 1, 20_000)))
    assert not tiff_header(file).complete
    for read in (read_bands, lambda file: LargeScene(file, Bands(3, ((0, 200),)))):
        with pytest.raises(UserError, match="cut short: it lists fewer strips or tiles than an image of 48x20000"):
            read(file)


@pytest.mark.parametrize(
    ("kind", "no_data"), [("uint8", 0), ("uint16", 65535), ("int16", -9999), ("float32", -3.4e38), ("float32", np.nan)]
)
def test_pixels_without_data_are_black_and_void(tmp_path, kind, no_data):
    rng = np.random.default_rng(0)
    values = rng.integers(1, 200, (3, 32, 48)).astype(kind)
    values[:, :8, :] = no_data
    values[0, 20, 20] = no_data  # one band alone does not count
    file = write(tmp_path / "images" / "a.tif", values, nodata=no_data)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((32, 48), np.uint8)).save(tmp_path / "masks" / "a.png")
    expected = np.zeros((32, 48), bool)
    expected[:8] = True
    scene = read_scene(file, Bands(3, ((0, 200),)))
    assert (scene.empty == expected).all()
    assert (scene.pixels[:8] == 0).all()
    rest = np.rint(values.transpose(1, 2, 0)[8:, 21:].astype(float) / 200 * 255)
    assert np.abs(scene.pixels[8:, 21:] - rest).max() <= 1
    dataset = open_dataset(tmp_path)
    label = dataset[0].label.numpy()
    assert (label == np.where(expected, IGNORE_INDEX, 1)).all()
    if dataset.bands.range != "bytes":
        assert all(0 <= low < high <= 200 for low, high in dataset.bands.range)  # not of what is no data
    report = check_data(tmp_path)
    assert report.splits["train"].void_pixels == expected.sum()
    noted = [note for note in report.notes if "have no data" in note]
    assert [note.split(" with ")[0] for note in noted] == ["2 images"]  # in train and val
    assert noted[0].endswith(str(file))


def test_what_counts_as_without_data():
    values = np.array([[[1, 1], [1, 2], [np.nan, np.nan]]], np.float32)
    assert without_data(values, 1.0).tolist() == [[True, False, False]]
    assert without_data(values, float("nan")).tolist() == [[False, False, True]]
    assert without_data(np.array([[[255, 255]]], np.uint8), -9999.0).tolist() == [[False]]


def test_a_map_is_predicted_as_a_map(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3000, (4, 64, 80)).astype(np.uint16)
    values[:, :, 60:] = 0
    file = write(tmp_path / "maps" / "a.tif", values, nodata=0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "maps" / "plain.tif")
    model = network(4, range=(0, 3000))
    result = degrid.predict(model, file, tmp_path / "out", device="cpu", precision="float32")
    assert result.images == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.tif", "a.overlay.jpg", "summary.json"}
    with rasterio.open(tmp_path / "out" / "a.tif") as opened:
        assert opened.crs == PLACE["crs"]
        assert opened.transform == PLACE["transform"]
        assert opened.nodata == IGNORE_INDEX
        assert opened.profile["tiled"]
        ids = opened.read(1)
        colors = opened.colormap(1)
    assert [colors[value][:3] for value in range(3)] == list(model.labels.colors)
    assert (ids[:, 60:] == IGNORE_INDEX).all()
    assert ids[:, :60].max() < 3
    predictor = degrid.Predictor(model, "cpu", "float32")
    assert (predictor(file) == ids).all()
    scene = Scene(read_scene(file, model.bands).pixels)
    assert (predictor(scene)[:, :60] == ids[:, :60]).all()
    # Palette images are ids to whoever reads them as labels, and results of degrid are no images.
    assert (np.asarray(Image.open(tmp_path / "out" / "a.tif")) == ids).all()
    assert is_result(tmp_path / "out" / "a.tif")


def test_a_map_whose_file_says_no_more_than_its_coordinate_system(tmp_path):
    """As after editing by a program that does not know the other tags."""
    values = np.zeros((3, 40, 48), np.uint8)
    with warnings.catch_warnings(action="ignore"):
        file = write(tmp_path / "a.tif", values, transform=Affine.identity())
    assert is_on_map(file)
    degrid.predict(network(), file, tmp_path / "out", device="cpu")
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / "out" / "a.tif") as opened:
        assert (opened.crs, opened.transform) == (PLACE["crs"], Affine.identity())


def test_a_tiff_without_a_place_gives_a_png(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "plain.tif")
    assert not is_on_map(tmp_path / "plain.tif")
    assert no_data_of(tmp_path / "plain.tif") is None
    degrid.predict(network(), tmp_path / "plain.tif", tmp_path / "out", device="cpu")
    assert (tmp_path / "out" / "plain.png").exists()


def test_a_result_beside_its_map_replaces_nothing(tmp_path):
    values = np.random.default_rng(2).integers(0, 255, (3, 40, 40)).astype(np.uint8)
    file = write(tmp_path / "a.tif", values)
    before = file.read_bytes()
    for _ in range(2):
        degrid.predict(network(), tmp_path, tmp_path, device="cpu")
        assert file.read_bytes() == before
        assert (tmp_path / "a.tif.tif").exists()
    assert not (tmp_path / "a.tif_2.tif").exists()


@pytest.fixture
def small_limit(monkeypatch):
    """Images of more than 2,000 pixels count as too large for one."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.parametrize("bands", [Bands(4, ((0, 3000),)), Bands(4, "file"), Bands(4, "bytes")])
@pytest.mark.parametrize("no_data", [None, 0])
def test_large_maps_are_read_part_by_part(tmp_path, small_limit, bands, no_data):
    rng = np.random.default_rng(3)
    values = rng.integers(1, 3000, (4, 200, 150)).astype(np.uint16)
    values[:, 50:90, 20:100] = 0
    file = write(tmp_path / "a.tif", values, nodata=no_data)
    model = network(4)
    model.bands = bands
    options = InferenceOptions(window=(96, 64), overlap=0.5)
    predictor = degrid.Predictor(model, "cpu", "float32", options)
    scene = open_scene(file, bands, 1 << 30)
    assert isinstance(scene, LargeScene)
    found = predictor.predict(scene)
    whole = predictor.predict(read_scene(file, bands))
    assert (found.ids == whole.ids).all()
    if no_data is not None:
        assert (found.ids[50:90, 20:100] == IGNORE_INDEX).all()
    result = degrid.predict(model, file, tmp_path / "out", device="cpu", precision="float32", options=options)
    assert not result.failures
    with rasterio.open(tmp_path / "out" / "a.tif") as opened:
        assert (opened.read(1) == whole.ids).all()
        assert opened.crs == PLACE["crs"]
    for wrong in (InferenceOptions(flip=True, window=(96, 64)), InferenceOptions(scales=(0.5,), window=(96, 64))):
        failed = degrid.predict(model, file, tmp_path / "none", device="cpu", options=wrong)
        assert "leave out scales, flips and CRF" in failed.failures[0]


def test_only_the_rows_of_one_row_of_windows_are_read_at_once(tmp_path, small_limit, monkeypatch):
    file = write(tmp_path / "a.tif", np.random.default_rng(4).integers(0, 255, (3, 400, 70)).astype(np.uint8))
    read: list[tuple[int, int]] = []
    rows = LargeScene.rows
    monkeypatch.setattr(LargeScene, "rows", lambda self, *at: (read.append(at), rows(self, *at))[1])
    predictor = degrid.Predictor(network(), "cpu", "float32", InferenceOptions(window=(128, 64)))
    assert predictor(open_scene(file, Bands(), 1 << 30)).shape == (400, 70)
    assert [first for first, _ in read] == [0, *(last for _, last in read[:-1])]  # each row once
    assert read[-1][1] == 400
    assert max(last - first for first, last in read) == 128


def test_large_images_show_how_far_their_windows_have_come(tmp_path, small_limit, monkeypatch):
    model, seen = network(), []
    file = write(tmp_path / "a.tif", np.random.default_rng(4).integers(0, 255, (3, 400, 70)).astype(np.uint8))
    options = InferenceOptions(window=(128, 64), overlap=0.25)
    for large, rows in ((400 * 70, [96, 192, 272, 400]), (400 * 70 + 1, [])):
        monkeypatch.setattr("degrid.engine.inference.predictor._LARGE", large)
        degrid.predict(model, file, tmp_path / "out", device="cpu", options=options, progress=seen.append)
        assert [str(each) for each in seen] == [*(f"rows of pixels {row}/400" for row in rows), "predicting 1/1"]
        seen.clear()


def test_windows_read_large_maps_in_parts_with_the_same_values(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.bands._IN_PARTS", 1000)
    rng = np.random.default_rng(6)
    colors = write(tmp_path / "colors.tif", rng.integers(0, 255, (3, 90, 70)).astype(np.uint8), photometric="RGB")
    deep = write(tmp_path / "deep.tif", rng.normal(0, 9, (3, 90, 70)).astype(np.float32), tiled=False, nodata=-9999)
    given = Bands(3, ((-20.0, 20.0),))
    for file, bands in ((colors, Bands()), (colors, given), (deep, given)):
        scene, whole = open_scene(file, bands, 1 << 30, windows=True), read_scene(file, bands)
        assert isinstance(scene, LargeScene)
        parts = [scene.rows(first, first + 45) for first in (0, 45)]
        assert (np.concatenate([part.pixels for part in parts]) == whole.pixels).all()
        assert isinstance(open_scene(file, bands, 1 << 30), Scene)
    for bands in (Bands(3, "file"), Bands(3, "bytes")):  # depends on the values of the whole
        assert isinstance(open_scene(deep, bands, 1 << 30, windows=True), Scene)
    Image.new("RGB", (70, 90)).save(tmp_path / "turned.tif", tiffinfo={274: 3})
    assert isinstance(open_scene(tmp_path / "turned.tif", Bands(), 1 << 30, windows=True), Scene)
    model, found = network(), []
    options = InferenceOptions(window=(64, 64))
    for most in (1000, 10_000):
        monkeypatch.setattr("degrid.bands._IN_PARTS", most)
        found += [
            ids for _, ids in degrid.predict_each(model, colors, device="cpu", precision="float32", options=options)
        ]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "P4", "I;16"])
def test_windows_read_large_pngs_in_parts_with_the_same_values(tmp_path, monkeypatch, mode):
    monkeypatch.setattr("degrid.bands._IN_PARTS", 1000)
    monkeypatch.setattr("degrid.bands.PART", 1)
    monkeypatch.setattr("degrid.bands._TILE", 16)
    pixels = np.random.default_rng(7).integers(0, 255, (90, 70, 4), np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 250)
    elif mode.startswith("P"):
        image = image.convert("RGB").quantize(9 if mode == "P4" else 200)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    for bands in (Bands(), Bands(1, ((0.0, 200.0),))):
        scene, whole = (
            open_scene(tmp_path / "a.png", bands, 1 << 30, windows=True),
            read_scene(tmp_path / "a.png", bands),
        )
        assert isinstance(scene, LargeScene)
        assert scene.size == (90, 70)
        found = [scene.rows(*rows).pixels for rows in ((0, 16), (16, 50), (50, 90))]
        assert (np.concatenate(found) == whole.pixels).all()
    assert isinstance(open_scene(tmp_path / "a.png", Bands(), 1 << 30), Scene)
    assert isinstance(open_scene(tmp_path / "a.png", Bands(3, "file"), 1 << 30, windows=True), Scene)


def test_pngs_that_others_turn_or_convert_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.bands._IN_PARTS", 1000)
    pixels = np.random.default_rng(8).integers(0, 255, (60, 70, 3), np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    profile = {"driver": "PNG", "width": 70, "height": 60, "count": 3, "dtype": "uint16"}
    with rasterio.open(tmp_path / "deep.png", "w", transform=PLACE["transform"], **profile) as opened:
        opened.write(pixels.transpose(2, 0, 1).astype(np.uint16) * 257)
    for name in ("turned", "deep"):
        assert isinstance(open_scene(tmp_path / f"{name}.png", Bands(), 1 << 30, windows=True), Scene)


def test_other_large_images_need_memory(tmp_path, small_limit):
    pixels = np.random.default_rng(5).integers(0, 255, (60, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    scene = open_scene(tmp_path / "a.png", Bands(), 50_000)
    assert isinstance(scene, LargeScene)
    assert (scene.rows(0, 60).pixels == pixels).all()
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    assert (open_scene(tmp_path / "a.bmp", Bands(), 1 << 20).pixels == pixels).all()
    with pytest.raises(UserError, match=r"has 70x60 pixels, which takes .* GiB to decode; .* are free"):
        open_scene(tmp_path / "a.bmp", Bands(), 50_000)
    result = degrid.predict(network(), tmp_path / "a.bmp", tmp_path / "out", device="cpu")
    assert result.images == 1


@pytest.mark.parametrize(
    ("kind", "bands", "high"), [("uint16", 3, 65535), ("float32", 3, 1), ("float64", 1, 1), ("float32", 1, 1)]
)
def test_values_that_fill_their_range_stay_as_they_are(tmp_path, kind, bands, high):
    """They need no range found in the data, and are no picture to Pillow either."""
    made = {}
    for k in range(3):
        values = np.random.default_rng(k).permutation(np.linspace(0, high, 2000 * bands)).astype(kind)
        made[str(k)] = values.reshape(bands, 40, 50)
        write(tmp_path / f"images/{k}.tif", made[str(k)])
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray((np.arange(2000).reshape(40, 50) % 2).astype(np.uint8)).save(tmp_path / f"masks/{k}.png")
    assert check_data(tmp_path).ok
    found = open_dataset(tmp_path, accept=())
    expected = np.rint(made[found.sources[0].name] * (255 / high)).astype(int)
    assert np.abs(found.arrays(0).image.astype(int) - expected).max() <= 1
    place = tmp_path / f"images/{found.sources[0].name}.tif"
    assert (read_scene(place).pixels.transpose(2, 0, 1) == found.arrays(0).image).all()


def test_arrays_with_their_channels_first_are_told(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 40, 50), np.uint8))
    with pytest.raises(UserError, match=r"\[3, 40, 50\], which seems to have its channels first: save array.transpose"):
        read_scene(tmp_path / "a.npy", Bands(50, "bytes"))
    np.save(tmp_path / "a.npy", np.zeros((40, 50, 3), np.uint8))
    assert read_scene(tmp_path / "a.npy").pixels.shape == (40, 50, 3)


def test_complex_numbers_are_told(tmp_path):
    file = write(tmp_path / "a.tif", np.ones((1, 16, 16), np.complex64))
    with pytest.raises(UserError, match=r"a\.tif holds complex numbers, which no network reads"):
        read_scene(file, Bands(1, "auto"))
