"""The code of the pages runs: Python blocks in order, and the commands beside them."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_docs import blocks
from torch import nn
from typer.testing import CliRunner

import degrid
from degrid.analysis import gridding_score
from degrid.cli import app

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    yield tmp_path
    sys.modules.pop("my_parts", None)


def shortened(code: str) -> str:
    """Fewer steps and images: what runs is the same."""
    code = re.sub(r'("train\.(?:steps|eval_every)": )\d+', r"\g<1>2", code)
    code = re.sub(r'"synthetic(:\d+)?", "test"', '"synthetic:8", "test"', code)
    code = re.sub(r'"synthetic:\d+", split', '"synthetic:8", split', code)
    code = code.replace('degrid.train("synthetic"', 'degrid.train("synthetic", data="synthetic:4"')
    return code.replace("range(20)", "range(2)")


def run_blocks(name: str, shorten: Callable[[str], str] = shortened) -> dict[str, Any]:
    """Run the Python blocks of a page one after another, as a reader would; returns their variables."""
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks((DOCS / name).read_text(), "python")):
        exec(compile(shorten(block), f"{name}, block {number + 1}", "exec"), names)
    return names


def run_command(line: str) -> str:
    """A command of a page on fewer steps and images."""
    program, *words = shlex.split(line, comments=True)
    if program == "python":
        exec(words[1], {})
        return ""
    if words[0] == "train":
        data = [] if "--data" in words else ["--data", "synthetic:4"]
        steps = words.index("--steps") if "--steps" in words else None
        words = words if steps is None else [*words[:steps], *words[steps + 2 :]]
        fast = ["train.steps=2", "train.eval_every=2", "train.batch_size=2", "data.crop=64,64", "train.device=cpu"]
        if "model.encoder=" not in line:
            fast.append("model.encoder=my_parts:TinyEncoder")
        words += [*data, "--quiet", *(part for setting in fast for part in ("--set", setting))]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


@pytest.mark.slow
def test_tutorial(folder):
    run_blocks("tutorial.md")
    assert {file.name for file in folder.glob("*.png")} >= {"scene.png", "fields.png", "prediction.png"}
    assert (folder / "results" / "photo.overlay.jpg").exists()


@pytest.mark.long
def test_tutorial_as_it_is_written(folder):
    names = run_blocks("tutorial.md", shorten=str)
    assert gridding_score(names["plain"], 2) > 0.9
    assert gridding_score(names["smooth"], 2) < 0.1
    assert names["scores"].miou > 0.7
    assert names["comparison"].scores[0].miou > 0.7


def test_the_operator_of_the_page_smooths(folder):
    names = {"model": nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2))}
    first, last = blocks((DOCS / "operators.md").read_text(), "python")
    exec(first, names)
    assert str(names["report"]).startswith("gaussian: smoothed 1 dilated convolutions (1 of rate 2)")
    exec(last, names)
    conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)
    image = torch.rand(1, 3, 9, 9)
    plain = conv(image)
    model = nn.Sequential(conv)
    degrid.smooth_dilated_convs(model, names["Doubled"], factor=3.0)
    torch.testing.assert_close(model(image), 3 * plain)


@pytest.mark.slow
def test_the_encoder_of_the_page_is_dilated(capsys):
    (block,) = blocks((DOCS / "encoders.md").read_text(), "python")
    exec(block, {})
    assert capsys.readouterr().out.startswith("features at strides 2, 4, 8, 8, 8: 2 layers no longer")


@pytest.mark.slow
def test_train_from_python(folder):
    names = run_blocks("train_from_python.md")
    assert Path("runs/ssc/model/model.safetensors").exists()
    assert names["ids"].shape == (144, 192)
    assert Path("my_model/config.json").exists()


@pytest.mark.slow
def test_own_parts(folder):
    text = (DOCS / "own_parts.md").read_text()
    (folder / "my_parts.py").write_text("\n\n".join(blocks(text, "python")))
    for name, content in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)
    for block in blocks(text, "bash"):
        for line in block.splitlines():
            run_command(line)
    assert Path("runs/tracked/losses.csv").read_text().startswith("1,")


@pytest.mark.slow
def test_gridding(folder):
    names = run_blocks("gridding.md")
    assert (names["report"].networks, {layer.networks for layer in names["report"].layers}) == (1, {4})
    assert 2 in names["seen"].scores
