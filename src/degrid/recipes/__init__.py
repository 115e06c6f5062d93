"""Complete settings of published or proven experiments: a recipe is a function that returns a RunConfig."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from degrid import catalog, config
from degrid.recipes.camvid import camvid
from degrid.recipes.folder import folder
from degrid.recipes.synthetic import synthetic
from degrid.types import UserError

RECIPES: dict[str, Callable[[], config.RunConfig]] = {
    "folder": folder,
    "synthetic": synthetic,
    "camvid": camvid,
}


def load(name: str) -> config.RunConfig:
    """A recipe by name, "module:function" of the user's own, or the config in a run.json or other JSON file.

    Raises:
        UserError: neither a recipe nor a file; or settings that do not exist.
    """
    path = Path(name)
    if name not in RECIPES and (path.suffix == ".json" or path.is_file()):
        from degrid.files import read_json

        values = read_json(path, "settings file")
        if isinstance(values, dict) and "config" in values:  # a run.json holds more than the settings
            values = values["config"]
        return config.from_dict(config.RunConfig, values)
    found = catalog.lookup(RECIPES, name, "recipe")()
    if not isinstance(found, config.RunConfig):
        raise UserError(f'recipe "{name}" returned {type(found).__name__}; expected a degrid.config.RunConfig')
    return found
