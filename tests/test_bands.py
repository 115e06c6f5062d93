"""Images of more than 8 bits: the range of values that become 0 to 255, kept by the model."""

import json
import tracemalloc

import mask_writers
import numpy as np
import pytest
import torch
from PIL import Image

import degrid
from degrid.bands import find_bands, is_plain, read_scene, read_values, to_bytes
from degrid.data import bands_in, check_data, open_dataset
from degrid.image import read_image
from degrid.types import RGB, Bands, UserError

TINY = {
    "model.encoder": "timm:test_resnet",
    "model.pretrained": False,
    "model.channels": 16,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.eval_every": 2,
    "data.crop": "33,33",
    "train.precision": "float32",
    "train.device": "cpu",
}


def ramp(high, kind, shape=(40, 50)):
    """From 0 on the left to `high` on the right."""
    return np.linspace(0, high, shape[1])[None].repeat(shape[0], 0).astype(kind)


def dataset(folder, images, ending="png"):
    for index, image in enumerate(images):
        for name, pixels in (("images", image), ("masks", np.arange(image.shape[1])[None].repeat(len(image), 0) % 2)):
            file = folder / name / f"{index}.{ending if name == 'images' else 'png'}"
            file.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels.astype(np.uint8) if name == "masks" else pixels).save(file)
    return folder


@pytest.mark.parametrize(
    ("values", "bands", "expected"),
    [
        ([0, 2000, 4095, 9000], Bands(3, ((0, 4095),)), [0, 125, 255, 255]),
        ([-1000, -160, 41, 240], Bands(3, ((-160, 240),)), [0, 0, 128, 255]),
        ([0.0, 0.5, np.nan, np.inf], Bands(3, ((0, 1),)), [0, 128, 0, 255]),
        ([0, 257, 65535, 128], Bands(3, "bytes"), [0, 1, 255, 0]),
    ],
)
def test_values_go_through_the_range(values, bands, expected):
    kind = np.float32 if isinstance(values[0], float) else np.int32
    found = to_bytes(np.array(values, kind)[None, :, None], bands, "here")
    assert found.dtype == np.uint8
    assert found.shape == (1, 4, 3)
    assert (found == np.array(expected)[None, :, None]).all()


def test_each_channel_has_its_own_range():
    values = np.array([[[100, 100, 100]]], np.uint16)
    assert to_bytes(values, Bands(3, ((0, 100), (0, 200), (100, 200))), "here").ravel().tolist() == [255, 128, 0]
    with pytest.raises(UserError, match="expected 1 pair of values or 3"):
        to_bytes(values, Bands(3, ((0, 1), (0, 1))), "here")


def test_the_range_of_a_file_leaves_out_half_a_percent_at_each_end():
    values = np.arange(10_001, dtype=np.int32).reshape(1, -1, 1)
    found = to_bytes(values, Bands(1, "file"), "here").ravel()
    expected = np.rint(((np.arange(10_001) - 50) / 9900 * 255).clip(0, 255))
    assert np.abs(found - expected).max() <= 1  # percentiles are those of a sample of the pixels
    assert found[0] == 0
    assert found[-1] == 255


@pytest.mark.parametrize(("kind", "ending"), [("uint16", "png"), ("uint16", "tif"), ("int16", "tif"), ("int32", "tif")])
def test_grey_files_are_read_as_stored(tmp_path, kind, ending):
    values = ramp(3000, kind)
    if kind.startswith("int"):
        values = values - 1000
    if kind == "int16":
        rasterio = pytest.importorskip("rasterio", reason="writes int16, which Pillow does not")
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", width=50, height=40, count=1, dtype=kind, transform=AFFINE
        ) as file:
            file.write(values.astype(kind)[None])
    else:
        Image.fromarray(values).save(tmp_path / f"a.{ending}")
    found = read_values(tmp_path / f"a.{ending}")
    assert (found[..., 0] == values).all()
    assert not is_plain(tmp_path / f"a.{ending}")


AFFINE = (1.0, 0.0, 5.0, 0.0, -1.0, 9.0)


def test_arrays_are_images_of_any_type(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 7, 5)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    assert (read_values(tmp_path / "a.npy") == values).all()
    np.save(tmp_path / "b.npy", values[None])
    with pytest.raises(UserError, match=r"holds \[1, 6, 7, 5\] of float32; expected numbers \[H,W\] or \[H,W,C\]"):
        read_values(tmp_path / "b.npy")


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "LA", "RGBA", "CMYK"])
def test_images_of_eight_bits_stay_as_they_are(tmp_path, mode):
    pixels = np.random.default_rng(1).integers(0, 255, (9, 8, 3), dtype=np.uint8)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(pixels).convert(mode).save(file)
    assert is_plain(file)
    assert (read_scene(file).pixels == read_image(file)).all()
    if mode not in ("CMYK",):
        assert (to_bytes(read_values(file), RGB, file) == read_image(file)).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (ramp(4095, np.uint16), ((0, 0),)),
        (ramp(65535, np.uint16), "bytes"),
        (ramp(1.0, np.float32), "bytes"),
        (ramp(0.2, np.float32), ((0, 0),)),
        (ramp(400, np.int32) - 200, ((0, 0),)),
        (ramp(100, np.uint8), "bytes"),
    ],
)
def test_a_range_is_found_where_values_use_little_of_theirs(values, expected):
    found, note = find_bands([values[..., None]], Bands(0, "auto"))
    if expected == "bytes":
        assert found == RGB
        assert not note
        return
    low, high = np.percentile(values, (0.5, 99.5))
    assert found.range == ((pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5)),)
    assert "model.range" in note


def test_training_finds_the_range_and_the_model_keeps_it(tmp_path):
    rng = np.random.default_rng(2)
    data = dataset(
        tmp_path / "data", [ramp(3000, np.uint16) + rng.integers(0, 900, (40, 50), np.uint16) for _ in range(6)]
    )
    run = degrid.train(data=data, settings=TINY, out=tmp_path / "run")
    assert any("become 0 to 255" in note for note in run.notes)
    model = degrid.load(run.folder)
    ((low, high),) = model.bands.range
    assert 0 <= low < 200
    assert 3500 < high < 3900
    assert json.loads((run.folder / "run.json").read_text())["config"]["model"]["range"] == [low, high]
    # Prediction, of a file and of its values, sees what training saw.
    trained = open_dataset(data, bands=model.bands)[0]
    file = data / "images" / f"{trained.name}.png"
    predictor = degrid.Predictor(model, "cpu", "float32")
    assert (predictor.predict(file).image == trained.image.permute(1, 2, 0).numpy()).all()
    assert (predictor(np.asarray(Image.open(file))) == predictor(file)).all()
    assert (predictor(Image.open(file)) == predictor(file)).all()
    assert trained.image.float().std() > 50
    scores = degrid.evaluate(run.folder, data, "train", device="cpu")
    truth = degrid.evaluate(run.folder, open_dataset(data, bands=model.bands), device="cpu")
    assert scores.confusion == truth.confusion


def test_a_range_that_is_given_wins(tmp_path):
    data = dataset(tmp_path / "data", [ramp(3000, np.uint16)] * 4)
    model = degrid.deeplabv3plus("timm:test_resnet", 2, channels=16, range=(0, 4095))
    assert model.bands == Bands(3, ((0, 4095),))
    degrid.save(model, tmp_path / "model")
    assert degrid.load(tmp_path / "model").bands == model.bands
    opened = open_dataset(data, bands=Bands(3, ((0, 4095),)))
    assert bands_in(opened).range == ((0, 4095),)
    assert int(opened[0].image.max()) == round(3000 / 4095 * 255)
    for wrong in ((5, 1), (0, 1, 2), "no"):
        with pytest.raises(UserError, match="model.range"):
            degrid.deeplabv3plus("timm:test_resnet", 2, range=wrong)


def test_a_model_without_a_range_reads_as_before(tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(ramp(4095, np.uint16)).save(file)
    predictor = degrid.Predictor(degrid.deeplabv3plus("timm:test_resnet", 2, channels=16), "cpu")
    assert (predictor.predict(file).image == read_image(file)).all()
    assert read_image(file).max() == 16


def test_the_check_says_what_training_will_do(tmp_path):
    data = dataset(tmp_path / "data", [ramp(1000 + 200 * index, np.uint16) for index in range(6)])
    report = check_data(data)
    assert report.ok
    assert any("become 0 to 255" in note for note in report.notes)
    assert not any("nearly black" in note for note in report.notes)
    plain = dataset(tmp_path / "plain", [ramp(200 + index, np.uint8) for index in range(6)])
    assert not any("become" in note for note in check_data(plain).notes)
    assert torch.equal(open_dataset(plain)[0].image, open_dataset(plain, bands=RGB)[0].image)


def tiff(file, values):
    """Write values [C,H,W]."""
    import rasterio

    count, height, width = values.shape
    file.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        file, "w", driver="GTiff", width=width, height=height, count=count, dtype=values.dtype, transform=AFFINE
    ) as opened:
        opened.write(values)


def five_bands(folder, count=6, size=(40, 48)):
    """The third and fifth band tell the classes apart, the others are noise of other ranges."""
    rng = np.random.default_rng(3)
    for index in range(count):
        ids = (np.arange(size[1]) >= 10 + 4 * index)[None].repeat(size[0], 0)
        scale = np.array([1, 10, 100, 1000, 3])[:, None, None]
        values = (
            scale * rng.integers(0, 10, (5, *size))
            + np.where(ids, scale * 10, 0) * np.eye(5)[[2, 4]].sum(0)[:, None, None]
        )
        tiff(folder / "images" / f"{index}.tif", values.astype(np.uint16))
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids.astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    return folder


def test_of_seven_bands_pillow_says_nothing(tmp_path, caplog):
    """It would log an error for each file that it is asked to open."""
    for index in range(3):
        tiff(tmp_path / "images" / f"{index}.tif", np.random.default_rng(index).integers(0, 256, (7, 8, 9), np.uint8))
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray((np.arange(72) % 3).astype(np.uint8).reshape(8, 9)).save(tmp_path / "masks" / f"{index}.png")
    report = check_data(tmp_path, processes=1)
    assert report.ok, report.problems
    assert open_dataset(tmp_path)[0].image.shape[0] == 7
    assert not caplog.records


def test_five_bands_are_trained_on_and_predicted(tmp_path, drawn):
    data = five_bands(tmp_path / "data")
    report = check_data(data)
    assert report.ok, report.problems
    run = degrid.train(data=data, settings=TINY, out=tmp_path / "run")
    model = degrid.load(run.folder)
    assert model.bands.count == 5
    assert len(model.bands.range) == 5
    assert [round(high) for _, high in model.bands.range] == [9, 90, 1900, 9000, 57]
    file = data / "images" / "0.tif"
    predictor = degrid.Predictor(model, "cpu", "float32")
    prediction = predictor.predict(file)
    assert prediction.image.shape == (40, 48, 5)
    assert (predictor(read_values(file)) == prediction.ids).all()
    result = degrid.predict(run.folder, data / "images", tmp_path / "out", device="cpu", precision="float32")
    assert result.images == 6
    assert (np.asarray(Image.open(tmp_path / "out" / "0.tif")) == prediction.ids).all()
    grey = tmp_path / "grey.tif"
    tiff(grey, np.zeros((2, 40, 48), np.uint16))
    with pytest.raises(UserError, match=r"grey.tif has 2 bands; expected 5"):
        predictor(grey)
    again = degrid.train(
        data=data, init=run.folder, settings={**TINY, "model.encoder": "timm:test_resnet"}, out=tmp_path / "again"
    )
    assert degrid.load(again.folder).bands == model.bands


def test_two_bands_of_bytes(tmp_path):
    """As of radar, in two polarisations; Pillow takes the second for nothing, or refuses the file."""
    values = np.random.default_rng(0).integers(0, 256, (2, 40, 48), np.uint8)
    by_gdal, by_hand, transparent = (tmp_path / f"{name}.tif" for name in ("gdal", "hand", "transparent"))
    tiff(by_gdal, values)
    by_hand.write_bytes(mask_writers.tiff(values.transpose(1, 2, 0)))
    Image.fromarray(values.transpose(1, 2, 0)).save(transparent)
    for file in (by_gdal, by_hand):
        assert not is_plain(file)
        assert (read_scene(file, Bands(2, "bytes")).pixels == values.transpose(1, 2, 0)).all()
    assert is_plain(transparent)
    assert (read_scene(transparent).pixels == values[0][..., None]).all()


def test_images_of_other_numbers_of_bands_are_refused(tmp_path):
    data = five_bands(tmp_path / "data")
    tiff(data / "images" / "3.tif", np.zeros((4, 40, 48), np.uint16))
    problems = check_data(data).problems
    assert len(problems) == 1
    assert "1 image that does not fit the others" in problems[0]
    assert "has 4 bands; expected 5" in problems[0]
    with pytest.raises(UserError, match="the images have 4 or 5 bands; expected the same number in all"):
        open_dataset(data)


@pytest.mark.parametrize(
    "encoder",
    [
        "timm:resnet10t",
        "caffe:resnet50",
        pytest.param("slim:resnet_v2_50", marks=pytest.mark.slow),
        "timm:mobilenetv3_small_050",
    ],
)
def test_pretrained_stems_give_equal_channels_what_they_gave_before(tmp_path, encoder):
    from safetensors.torch import save_file

    from degrid.models import EncoderSettings, build_encoder

    torch.manual_seed(0)
    known = build_encoder(encoder, EncoderSettings())
    inner = getattr(known, "net", known)
    save_file({key: value.contiguous() for key, value in inner.state_dict().items()}, tmp_path / "a.safetensors")
    stem = next(key for key, value in inner.state_dict().items() if value.ndim == 4)
    expected = inner.state_dict()[stem]
    for count in (1, 2, 6):
        made = build_encoder(encoder, EncoderSettings(pretrained=str(tmp_path / "a.safetensors"), in_channels=count))
        state = getattr(made, "net", made).state_dict()
        found = state[stem]
        if count == 1:
            assert torch.allclose(found, expected.sum(1, keepdim=True))
        else:
            for channel in range(count):
                assert torch.allclose(found[:, channel], expected[:, channel % 3] * 3 / count)
        assert len(made.preprocess.mean) == len(made.preprocess.std) == count
        if count in (1, 6):  # the same sum over equal channels
            assert torch.allclose(found.sum(1), expected.sum(1), atol=1e-6)
        others = [key for key in state if key != stem]
        assert all(torch.equal(state[key], inner.state_dict()[key]) for key in others)


def test_blue_comes_first_where_the_weights_want_it_so():
    from degrid.models import EncoderSettings, build_encoder

    model = degrid.deeplabv3("caffe:resnet50", 2, channels=8, in_channels=5)
    assert build_encoder("caffe:resnet50", EncoderSettings(in_channels=5)).preprocess.bgr
    image = torch.arange(5.0).reshape(1, 5, 1, 1).expand(1, 5, 33, 33)
    order = (model._normalised(image) * model.std + model.mean)[0, :, 0, 0]
    assert order.round().tolist() == [2, 1, 0, 3, 4]


def test_grey_may_be_a_single_channel(tmp_path):
    data = dataset(tmp_path / "data", [ramp(200 + index, np.uint8) for index in range(4)])
    opened = open_dataset(data, bands=Bands(1, "auto"))
    assert opened[0].image.shape == (1, 40, 50)
    assert torch.equal(opened[0].image[0], open_dataset(data)[0].image[0])
    model = degrid.deeplabv3plus("timm:test_resnet", 2, channels=16, in_channels=1)
    assert degrid.Predictor(model, "cpu")(np.zeros((40, 50), np.uint8)).shape == (40, 50)
    colors = np.zeros((4, 5, 3), np.uint8)
    colors[:] = (200, 100, 50)
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    grey = read_scene(tmp_path / "rgb.png", Bands(1)).pixels
    assert set(grey.ravel().tolist()) == {124}  # 0.299 R + 0.587 G + 0.114 B


@pytest.mark.parametrize("count", [1, 5])
def test_transforms_keep_every_band(monkeypatch, count):
    from degrid.data import TrainTransform
    from degrid.kernels import resample as kernel
    from degrid.types import Sample

    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (count, 50, 60), np.uint8)
    sample = Sample(torch.from_numpy(image), torch.zeros(50, 60, dtype=torch.uint8), "a")
    transform = TrainTransform((40, 40))
    found = transform(sample, np.random.default_rng(1)).image
    for band in range(count):  # each as if it were one of three equal ones
        alone = Sample(sample.image[band : band + 1].repeat(3, 1, 1), sample.label, "a")
        expected = transform(alone, np.random.default_rng(1)).image
        assert (found[band].int() - expected[0].int()).abs().max() <= 0
    place = ((30, 31), (-2.5, 1.25), (0.7, 1.3), tuple(range(count)))
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    compiled = kernel.resample(pixels, *place)
    monkeypatch.setattr(kernel, "can_import_numba", lambda: False)
    assert (kernel.resample(pixels, *place) == compiled).all()
    jittery = TrainTransform((40, 40), jitter=(0.5, 0.5, 0.5, 0.2))
    assert jittery(sample, np.random.default_rng(1)).image.shape == (count, 40, 40)


@pytest.mark.slow
def test_a_network_of_five_bands_is_exported_with_them(tmp_path):
    pytest.importorskip("onnxruntime", reason="runs the file")
    torch.manual_seed(0)
    model = degrid.deeplabv3plus(
        "timm:test_resnet", 3, channels=16, in_channels=5, range=tuple(float(n) for n in range(10))
    ).eval()
    result = degrid.export(model, tmp_path / "a.onnx", format="onnx")
    from degrid.model_folder import open_model

    opened = open_model(result.name)
    assert opened.bands == model.bands
    values = np.random.default_rng(0).integers(0, 12, (40, 44, 5)).astype(np.uint16)
    ids = degrid.Predictor(opened, "cpu")(values)
    assert (ids == degrid.Predictor(model, "cpu", "float32")(values)).mean() > 0.999
    assert degrid.describe(model).multiply_adds > 0


@pytest.mark.parametrize("high", [1.0, 5.0])
def test_a_list_may_name_arrays(tmp_path, high):
    values = np.random.default_rng(6).uniform(0, high, (20, 30, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    Image.fromarray((np.arange(30)[None].repeat(20, 0) % 2).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "train.txt").write_text("a.npy a.png\n")
    opened = open_dataset(tmp_path / "train.txt")
    image = opened[0].image.permute(1, 2, 0).numpy()
    if high == 1:
        assert opened.bands == RGB
        assert (image == np.rint(values * 255)).all()
    assert np.abs(image - values / high * 255).max() < 3
    assert (read_scene(tmp_path / "a.npy", opened.bands).pixels == image).all()


@pytest.mark.parametrize(("kind", "kept"), [(np.float32, ((0.0, 250.0),)), (np.uint16, "bytes"), (np.float32, "bytes")])
def test_large_images_become_bytes_in_parts(kind, kept):
    """Beside the bytes themselves little memory is taken, whatever the size; the values are those of each row alone."""
    values = np.random.default_rng(0).random((1200, 1000, 3), np.float32)
    values = (values * 300).astype(kind) if kind != np.float32 or kept != "bytes" else values
    bands = Bands(3, kept)
    tracemalloc.start()
    found = to_bytes(values, bands, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * found.nbytes + (30 << 20)
    assert (found[::100] == np.concatenate([to_bytes(row[None], bands, "x") for row in values[::100]])).all()
