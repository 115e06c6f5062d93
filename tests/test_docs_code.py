"""The code of the pages runs: Python blocks in order, and the commands beside them."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from test_docs import blocks
from typer.testing import CliRunner

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


def run_blocks(name: str) -> dict[str, object]:
    """Run the Python blocks of a page one after another, as a reader would."""
    names: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(blocks((DOCS / name).read_text(), "python")):
        exec(compile(shortened(block), f"{name}, block {number + 1}", "exec"), names)
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
        fast = ("train.steps=2", "train.eval_every=2", "train.batch_size=2", "data.crop=64,64", "train.device=cpu")
        words += [*data, "--quiet", *(part for setting in fast for part in ("--set", setting))]
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.output


def test_tutorial(folder):
    run_blocks("tutorial.md")
    assert {file.name for file in folder.glob("*.png")} >= {"scene.png", "fields.png", "prediction.png"}
    assert (folder / "results" / "photo.overlay.jpg").exists()


def test_train_from_python(folder):
    names = run_blocks("train_from_python.md")
    assert Path("runs/ssc/model/model.safetensors").exists()
    assert names["ids"].shape == (144, 192)
    assert Path("my_model/config.json").exists()


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
