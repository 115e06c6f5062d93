"""A place for results that cannot be used is one sentence, and exit code 2."""

import pytest
from PIL import Image
from typer.testing import CliRunner

import degrid
from degrid.cli import app
from degrid.data.synthetic import LABELS
from degrid.files import atomic_write, make_folder
from degrid.types import UserError


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_a_folder_is_wanted(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / place)
    with pytest.raises(UserError, match="cannot make the folder"), atomic_write(tmp_path / place / "x"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output_places") / "model"
    degrid.save(degrid.deeplabv3("timm:test_resnet", LABELS, output_stride=16, channels=16), folder)
    return folder


@pytest.mark.parametrize("place", ["", "below"])
@pytest.mark.parametrize(
    "command",
    [
        ["train", "synthetic", "--data", "synthetic:4", "--set", "model.encoder=timm:test_resnet", "-o", "FILE"],
        ["predict", "MODEL", "IMAGE", "-o", "FILE"],
        ["eval", "MODEL", "--data", "synthetic:1", "-o", "FILE/x.json"],
        ["compare", "MODEL", "MODEL", "--data", "synthetic:1", "--draws", "2", "-o", "FILE/x.json"],
        ["export", "MODEL", "--format", "torch-export", "-o", "FILE/x.pt2"],
        ["data", "preview", "synthetic:1", "-n", "1", "-o", "FILE/x.png"],
        ["data", "export", "synthetic:1", "-o", "FILE/x.tfrecord"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_commands_whose_results_cannot_be_written(command, place, model, tmp_path):
    file, image = tmp_path / "file", tmp_path / "image.png"
    file.write_text("mine")
    Image.new("RGB", (32, 32)).save(image)
    words = {"MODEL": str(model), "IMAGE": str(image)}
    command = [words.get(word, word.replace("FILE", str(file / place))) for word in command]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UserError), result.exception
    assert "cannot make the folder" in str(result.exception)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "nowhere", "nowhere.png", "-o", "FILE"],
        ["eval", "nowhere", "--data", "synthetic:1", "-o", "FILE/x.json"],
        ["compare", "nowhere", "nowhere", "--data", "synthetic:1", "-o", "FILE/below/x.json"],
        ["convert", "nowhere", "-o", "FILE"],
        ["convert", "nowhere", "-o", "FILE/below", "--modernise"],
    ],
    ids=" ".join,
)
def test_the_place_is_checked_before_the_work(command, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    result = CliRunner().invoke(app, [word.replace("FILE", str(file)) for word in command])
    assert "cannot make the folder" in str(result.exception)
    assert [*tmp_path.iterdir()] == [file]
