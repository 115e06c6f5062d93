"""Mistakes in an evaluation: one sentence, exit code 2, nothing half-written."""

import pytest
import torch
from PIL import Image
from test_run import cli, process

import degrid
from degrid.data import SyntheticScenes


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Scenes with a list of their own for each split, so that it is known which images are scored."""
    root = tmp_path_factory.mktemp("photos")
    scenes = SyntheticScenes("train", 5, (72, 96))
    for sub in ("images", "masks"):
        (root / sub).mkdir()
    for k in range(5):
        sample = scenes[k]
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(root / "images" / f"p{k}.png")
        Image.fromarray(sample.label.numpy()).save(root / "masks" / f"p{k}.png")
    (root / "classes.txt").write_text("\n".join(scenes.labels.names))
    (root / "train.txt").write_text("p0\np1\n")
    (root / "val.txt").write_text("p2\np3\np4\n")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    degrid.save(degrid.deeplabv3("timm:test_resnet", SyntheticScenes.labels, channels=8), folder)
    return folder


def refused(message, *words):
    """Exit code 2 and one line that holds the message."""
    code, output = cli(*words)
    assert code == 2
    assert message in output
    assert output.startswith("degrid: ")
    assert len(output.strip().splitlines()) == 1
    return output


@pytest.fixture
def copied(photos, tmp_path):
    import shutil

    return shutil.copytree(photos, tmp_path / "data")


def test_the_data_are_scored_without_mistakes(model, photos):
    code, output = cli("eval", model, "--data", photos)
    assert code == 0, output
    assert "(3 images" in output


@pytest.mark.parametrize("extra", [[], ["--calibration"], ["--flip"], ["--window", "64x64"]])
def test_a_scale_that_leaves_less_than_one_feature(model, photos, tmp_path, extra):
    words = ["eval", model, "--data", photos, "--scales", "0.2,1", "-o", tmp_path / "s.json", *extra]
    output = refused("scale 0.2 makes the image of 96x72 pixels 19x14, less than one feature of stride 16", *words)
    assert "leave that scale out" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scales", "message"), [("0", "factors above 0"), ("1,-1", "factors above 0"), ("1,big", "expected numbers")]
)
def test_scales_that_are_none(model, photos, scales, message):
    refused(message, "eval", model, "--data", photos, "--scales", scales)


def test_an_empty_split(model, copied, tmp_path):
    words = ["eval", model, "--data", copied, "-o", tmp_path / "s.json"]
    refused('"test"', *words, "--split", "test")
    (copied / "val.txt").write_text("\n")
    refused("val.txt is empty", *words)
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_damaged_file_in_the_middle(model, copied, tmp_path, folder):
    file = copied / folder / "p3.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    out = tmp_path / "scores.json"
    output = refused("p3.png", "eval", model, "--data", copied, "--calibration", "--worst", 1, "-o", out)
    assert "damaged or cut short" in output
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_an_image_that_vanishes_in_the_middle(model, copied):
    (copied / "train.txt").write_text("p0\n")
    (copied / "val.txt").write_text("p2\np1\np4\np3\n")  # three images are read before the first is done
    dataset = degrid.open_dataset(copied, "val")
    seen = []

    def remove(index, sample, ids):
        seen.append(index)
        (copied / "images" / "p3.png").unlink(missing_ok=True)

    network = degrid.load(model).train()
    with pytest.raises(degrid.UserError, match=r"p3\.png"):
        degrid.evaluate(network, dataset, on_image=remove)
    assert seen == [0, 1, 2]
    assert network.training  # as it was before


@pytest.mark.slow
def test_as_a_process_it_is_one_line_on_the_error_stream(model, copied):
    (copied / "images" / "p3.png").write_text("not an image")
    done = process("eval", model, "--data", copied)
    assert done.returncode == 2
    assert done.stderr.startswith("degrid: ")
    assert "p3.png is not an image" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "mIoU" not in done.stdout


def test_an_unknown_loss(photos, tmp_path):
    words = ["train", "--data", photos, "-o", tmp_path / "run"]
    refused('unknown loss "cross_entrpy". Did you mean "cross_entropy"', *words, "--set", "train.loss=cross_entrpy")
    refused('unknown loss "mse"', *words, "--set", "train.loss=dice+mse")
    assert not (tmp_path / "run").exists()
