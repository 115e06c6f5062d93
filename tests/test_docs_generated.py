"""Pages that are made from others are current."""

import json
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402  (docs/generate.py)


def test_the_settings_page_is_current():
    assert (DOCS / "settings.md").read_text() == generate.settings_page(), "run `make docs`, which writes it anew"


def test_the_page_of_encoders_is_current():
    assert (DOCS / "encoders.md").read_text() == generate.encoders_page(), "run `make docs`, which writes it anew"


def test_the_table_of_runtimes_is_current():
    assert (DOCS / "export.md").read_text() == generate.export_page(), "run `make docs`, which writes it anew"


def test_the_notebook_is_current():
    assert (DOCS / "tutorial.ipynb").read_text() == generate.notebook_text(), "run `make docs`, which writes it anew"


def test_the_notebook_has_the_code_and_words_of_its_page():
    page = (DOCS / "tutorial.md").read_text()
    cells = json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip() for block in generate.python_blocks(page)]
    words = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "# Tutorial" in words
    assert "tutorial.ipynb" not in words
    assert "```" not in words
    assert len({cell["id"] for cell in cells}) == len(cells)


def test_shell_blocks_become_cells():
    cells = generate.notebook("Words.\n\n```bash\ndegrid info a\ndegrid plot a\n```\n")["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == [
        ("markdown", "Words."),
        ("code", "!degrid info a\n!degrid plot a"),
    ]
