"""degrid.predict and degrid.predict_each: the same files and ids as `degrid predict`, from Python."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.data.synthetic import SyntheticScenes
from degrid.engine.inference.fast_network import FastNetwork
from degrid.engine.inference.predictor import activation_bytes
from degrid.files import read_json
from degrid.types import Progress, UserError


def cli(*words):
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, UserError | SystemExit):
        raise done.exception
    return done


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    degrid.save(degrid.deeplabv3("timm:test_resnet", 21, channels=8), folder)
    return folder


def test_a_network_without_a_range_says_that_twelve_bits_are_black_to_it(model, tmp_path, caplog):
    values = np.random.default_rng(1).integers(0, 4096, (32, 32), np.uint16)
    Image.fromarray(values).save(tmp_path / "dim.png")
    Image.fromarray(values * 16).save(tmp_path / "full.png")
    remarks = degrid.predict(model, tmp_path, tmp_path / "out", device="cpu").remarks
    assert len(remarks) == 1
    assert remarks[0].startswith("nearly black for the network: 1 image of more than 8 bits, such as ")
    assert f"{tmp_path / 'dim.png'}, since the model has no range" in remarks[0]
    assert not caplog.messages
    assert len(list(degrid.predict_each(model, tmp_path / "*.png", device="cpu"))) == 2
    predictor = degrid.Predictor(degrid.load(model), device="cpu")
    for image in ("full.png", "dim.png", "dim.png"):
        predictor(tmp_path / image)
    said = [f"nearly black for the network: {tmp_path / 'dim.png'}, since the model has no range"] * 2
    assert [message[: len(said[0])] for message in caplog.messages] == said
    degrid.Predictor(degrid.load(model), device="cpu")(Image.fromarray(values))
    assert caplog.messages[2].startswith("nearly black for the network: the image, since")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, name in enumerate(("a.png", "sub/b.png", "sub/c.jpg")):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50 + index, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


WAYS = {
    "plain": ([], {}),
    "logits": (["--save-logits"], {"files": degrid.ResultFiles(logits=True)}),
    "no overlay": (["--no-overlay"], {"files": degrid.ResultFiles(overlay=False)}),
    "voc": (
        ["--format", "voc", "--voc-comp", "comp5"],
        {"files": degrid.ResultFiles("voc", voc_competition="comp5")},
    ),
    "options": (
        ["--scales", "0.75,1", "--flip", "--window", "32x32", "--overlap", "0.25", "--fusion", "max", "--crf"],
        {"options": degrid.InferenceOptions((0.75, 1.0), True, "max", (32, 32), 0.25, None, degrid.CRF())},
    ),
    "memory": (["--memory", "8GiB"], {"options": degrid.InferenceOptions(memory=8 << 30)}),
    "multi-scale": (["--msc"], {"multi_scale": True}),
    "bfloat16": (["--precision", "bfloat16"], {"precision": "bfloat16"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_verb_writes_what_the_command_writes(model, photos, tmp_path, way):
    words, settings = WAYS[way]
    done = cli("predict", model, photos, "-o", tmp_path / "command", "--device", "cpu", *words)
    assert done.exit_code == 0, done.output
    seen = []
    found = degrid.predict(model, photos, tmp_path / "verb", device="cpu", progress=seen.append, **settings)
    command, verb = contents(tmp_path / "command"), contents(tmp_path / "verb")
    assert len(command) >= 4
    if way == "voc":  # the archive holds the time it was made at
        command.pop("results.tgz"), verb.pop("results.tgz")
    assert verb == command
    assert (found.images, found.failures, found.out) == (3, (), tmp_path / "verb")
    assert f"computed in {found.precision}" in done.output
    assert found.written.replace(str(tmp_path / "verb"), str(tmp_path / "command")) in done.output
    assert seen == [Progress("predicting", count, 3) for count in (1, 2, 3)]


def test_logits_are_exact_unless_told_otherwise(model, photos, tmp_path):
    found = degrid.predict(model, photos / "a.png", tmp_path, device="cpu", files=degrid.ResultFiles(logits=True))
    assert found.precision == "float32"
    exact = degrid.Predictor(degrid.load(model), "cpu", "float32", once=True).predict(photos / "a.png")
    np.testing.assert_array_equal(np.load(tmp_path / "a.logits.npy"), exact.logits)
    done = cli("predict", model, photos, "-o", tmp_path, "--device", "cpu", "--save-logits")
    assert "computed in float32\n" in done.output
    done = cli("predict", model, photos, "-o", tmp_path, "--device", "cpu", "--save-logits", "--precision", "bfloat16")
    assert "computed in bfloat16\n" in done.output


def test_logits_that_cannot_be_written_are_failures_and_not_forgotten(model, tmp_path, limit_of_maps):
    large = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    for name, pixels in (("large", large), ("small", large[:64, :64])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    options = degrid.InferenceOptions(memory=3 * activation_bytes(degrid.load(model), (128, 128)))
    files = degrid.ResultFiles(logits=True)
    found = degrid.predict(model, tmp_path, tmp_path / "out", device="cpu", options=options, files=files)
    assert found.images == 1
    assert "large.png is too large for its logits" in found.failures[0]
    assert (tmp_path / "out" / "small.logits.npy").exists()
    assert not (tmp_path / "out" / "large.png").exists()


def test_a_single_image_is_predicted_by_the_network_itself(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("degrid.engine.inference.fast_network._folded", None)  # no copy is made
    found = degrid.predict(model, photos / "a.png", tmp_path, device="cpu", files=degrid.ResultFiles(logits=True))
    assert found.precision == "float32"
    pixels = torch.from_numpy(np.array(Image.open(photos / "a.png"))).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = degrid.load(model)(pixels)
    # Another memory layout rounds otherwise.
    np.testing.assert_allclose(np.load(tmp_path / "a.logits.npy"), logits[0], rtol=1e-4, atol=1e-7)


def test_each_gives_what_the_files_hold_and_writes_nothing(model, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    degrid.predict(model, [photos / "sub", photos / "a.png"], "out", device="cpu", precision="float32")
    before = contents(tmp_path)
    each = degrid.predict_each(model, [photos / "sub", photos / "a.png"], device="cpu", precision="float32")
    assert contents(tmp_path) == before
    found = dict(each)
    assert list(found) == ["b", "c", "a"]
    for name, ids in found.items():
        assert ids.dtype == np.uint8
        np.testing.assert_array_equal(ids, np.asarray(Image.open(tmp_path / "out" / f"{name}.png")))
    assert contents(tmp_path) == before


def test_each_is_lazy(model, photos):
    calls = []

    class Counting(nn.Module):
        def forward(self, image):
            calls.append(tuple(image.shape[-2:]))
            return torch.zeros(1, 2, *image.shape[-2:])

    each = degrid.predict_each(Counting(), photos, device="cpu", precision="float32")
    assert calls == []
    for seen in ({(40, 50)}, {(40, 50), (40, 51)}):  # an image may be run several times, but none before its turn
        next(each)
        assert set(calls) == seen
    assert len(list(each)) > 0


def test_a_network_of_any_kind(photos, tmp_path):
    class Own(nn.Module):
        def forward(self, image):
            return torch.stack([image[:, 0].float(), 255 - image[:, 0].float()], 1)

    found = degrid.predict(Own(), photos / "a.png", tmp_path, device="cpu")
    assert found.images == 1
    assert read_json(tmp_path / "summary.json", "summary")["classes"] == ["class 0", "class 1"]
    expected = (np.asarray(Image.open(photos / "a.png"))[..., 0] < 127.5).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), expected)
    with pytest.raises(UserError, match="SegmentationNetwork"):
        degrid.predict(Own(), photos / "a.png", tmp_path, files=degrid.ResultFiles("voc"))
    with pytest.raises(UserError, match="--msc"):
        degrid.predict(Own(), photos / "a.png", tmp_path, multi_scale=True)


def test_the_users_network_keeps_its_own_scales(photos, tmp_path, model):
    network = degrid.load(model)
    degrid.predict(network, photos / "a.png", tmp_path, device="cpu", multi_scale=True)
    assert network.scales == ()


def test_of_many_images_that_cannot_be_used_the_message_shows_ten(model, photos, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes((photos / "a.png").read_bytes())
    for number in range(13):
        (tmp_path / "in" / f"bad{number}.jpg").write_bytes(b"no image")
    done = cli("predict", model, tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    message = str(done.exception)
    assert (message.count("bad"), message.endswith("; and 3 more")) == (10, True)
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text())["failures"]) == 13
    before = set(threading.enumerate())
    with pytest.raises(UserError, match="bad"):
        list(degrid.predict_each(model, tmp_path / "in", device="cpu"))
    assert set(threading.enumerate()) <= before  # nothing reads on


def test_an_image_that_cannot_be_used_is_a_failure_and_no_error(model, photos, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "b.png").write_bytes((photos / "a.png").read_bytes())
    found = degrid.predict(model, tmp_path / "in", tmp_path / "out", device="cpu")
    assert (found.images, len(found.failures)) == (1, 1)
    assert "a.jpg" in found.failures[0]
    assert "1 image: masks" in found.written
    done = cli("predict", model, tmp_path / "in", "-o", tmp_path / "again", "--device", "cpu")
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "1 of 2 images could not be used: " + found.failures[0]
    found = degrid.predict(model, tmp_path / "in", tmp_path / "voc", device="cpu", files=degrid.ResultFiles("voc"))
    assert found.written == ""
    assert not (tmp_path / "voc" / "results.tgz").exists()
    with pytest.raises(UserError, match=r"a\.jpg"):
        list(degrid.predict_each(model, tmp_path / "in", device="cpu"))
    failures = []
    names = [
        name
        for name, _ in degrid.predict_each(
            model, tmp_path / "in", device="cpu", on_failure=lambda name, error: failures.append((name, str(error)))
        )
    ]
    assert names == ["b"]
    assert failures[0][0] == "a"


def test_mistakes_show_before_anything_is_written(model, photos, tmp_path):
    for settings, message in (
        ({"files": degrid.ResultFiles(logits=True), "options": degrid.InferenceOptions(flip=True)}, "--save-logits"),
        ({"precision": "float64"}, 'unknown precision "float64"'),
    ):
        with pytest.raises(UserError, match=message):
            degrid.predict(model, photos, tmp_path / "out", device="cpu", **settings)
    for kind, settings, message in (
        ("png", {}, 'unknown format "png". Known: ids, voc, cityscapes'),
        ("voc", {"logits": True}, "only what the benchmark or tool takes"),
    ):
        with pytest.raises(UserError, match=message):
            degrid.ResultFiles(kind, **settings)
    with pytest.raises(UserError, match="no such file, folder or pattern"):
        degrid.predict_each(model, tmp_path / "nowhere.png")
    assert not (tmp_path / "out").exists()


def half_frozen():
    """A network in training mode whose batch norm was put in evaluation mode by itself; and its modules' modes."""

    class Floats(nn.Module):
        def forward(self, image):
            return image.float()

    classes = len(SyntheticScenes.labels)
    network = nn.Sequential(Floats(), nn.Conv2d(3, classes, 3, padding=1), nn.BatchNorm2d(classes), nn.Dropout())
    network.train()[2].eval()
    return network, [module.training for module in network.modules()]


def test_a_network_of_ones_own_keeps_the_modes_of_all_its_modules(photos, tmp_path):
    network, modes = half_frozen()
    assert modes == [True, True, True, False, True]

    def kept():
        return [module.training for module in network.modules()] == modes

    degrid.predict(network, photos / "a.png", tmp_path, device="cpu")
    assert kept()
    degrid.evaluate(network, "synthetic:1", device="cpu", measures=degrid.Measures(boundary=False))
    assert kept()
    degrid.compare([network, network], "synthetic:1", device="cpu", draws=2)
    assert kept()
    each = degrid.predict_each(network, photos, device="cpu")
    assert kept()  # also if nothing is ever asked for
    next(each)
    assert not network[3].training
    each.close()
    assert kept()
    assert len(list(degrid.predict_each(network, photos, device="cpu"))) == 3
    assert kept()


def test_modes_are_put_back_after_errors(photos, tmp_path):
    network, modes = half_frozen()
    (tmp_path / "a.png").write_bytes(b"no image")
    for call in (
        lambda: degrid.predict(network, photos, tmp_path / "out", device="cpu", precision="float64"),
        lambda: degrid.predict_each(network, photos, device="cpu", precision="float64"),
        lambda: list(degrid.predict_each(network, tmp_path, device="cpu")),
        lambda: degrid.evaluate(network, degrid.open_dataset("synthetic:0", "val"), device="cpu"),
    ):
        with pytest.raises(UserError):
            call()
        assert [module.training for module in network.modules()] == modes


def test_no_images_are_an_error(model, tmp_path):
    with pytest.raises(UserError, match="is taken for the model, and no images come after it"):
        degrid.predict(model, [], tmp_path / "out")
    with pytest.raises(UserError, match="no images"):
        degrid.predict_each(model, iter(()))
    assert not (tmp_path / "out").exists()


def test_messages_name_the_argument_beside_the_option(photos, tmp_path):
    with pytest.raises(UserError, match=r"--msc \(multi_scale=True\)"):
        degrid.predict(nn.Identity(), photos, tmp_path, multi_scale=True)
    options = degrid.InferenceOptions(flip=True)
    with pytest.raises(UserError, match=r"--save-logits \(ResultFiles.logits\)"):
        degrid.predict(nn.Identity(), photos, tmp_path, options=options, files=degrid.ResultFiles(logits=True))


def test_agreement_on_all_pixels_is_said_in_words():
    network = FastNetwork(nn.Identity(), torch.device("cpu"), "bfloat16", "half_pixel")
    for agreement, words in (
        (1.0, "(all pixels of"),
        (0.99999, "(at least 99.99 % of"),
        (0.9968, "at least 99.68 % of"),
    ):
        network.agreement = agreement
        assert words in str(network)
