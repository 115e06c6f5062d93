"""Pages that are made from others are current."""

import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import generate  # noqa: E402  (docs/generate.py)


def test_the_settings_page_is_current():
    assert (DOCS / "settings.md").read_text() == generate.settings_page(), "run `make docs`, which writes it anew"
