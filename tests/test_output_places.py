"""A place for results that cannot be used is one sentence, and exit code 2."""

import pytest
from typer.testing import CliRunner

from degrid.cli import app
from degrid.files import atomic_write, make_folder
from degrid.types import UserError


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_a_folder_is_wanted(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / place)
    with pytest.raises(UserError, match="cannot make the folder|could not write"), atomic_write(tmp_path / place / "x"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_training_into_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    command = ["train", "synthetic", "--data", "synthetic:4", "--set", "model.encoder=timm:test_resnet"]
    result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "file")])
    assert isinstance(result.exception, UserError)
    assert "cannot make the folder" in str(result.exception)
    assert (tmp_path / "file").read_text() == "mine"
