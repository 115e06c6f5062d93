"""How a Hugging Face dataset is named: hf:NAME_OR_FOLDER?key=value&..."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from degrid.lookup import did_you_mean
from degrid.types import UserError

PREFIX = "hf:"
"""The prefix of a dataset's name or folder."""
_OPTIONS = ("image", "mask", "config", "revision", "streaming")


@dataclass(frozen=True)
class Address:
    """Where a dataset is: NAME_OR_FOLDER?key=value&...

    Attributes:
        name: on the hub, or a folder.
        options: image and mask: columns; config and revision: of a dataset on the hub; streaming: how many samples of
            each split are fetched, instead of everything.
    """

    name: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, written: str) -> Address:
        """The address in what follows "hf:".

        Raises:
            UserError: no name, or an unknown option.
        """
        name, _, query = written.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for key, value in options.items():
            if key not in _OPTIONS or not value:
                raise UserError(
                    f'hf:{written}: expected options such as "?mask=annotation&config=small", got "{key}={value}".'
                    f"{did_you_mean(key, _OPTIONS)} Known: {', '.join(_OPTIONS)}"
                )
        count = options.get("streaming", "1")
        if not (count.isdecimal() and int(count) > 0):
            raise UserError(f"hf:{written}: streaming: expected the number of samples to fetch, got {count}")
        if not name:
            raise UserError(f"expected {PREFIX}NAME_OR_FOLDER, such as {PREFIX}segments/sidewalk-semantic")
        return cls(name, options)

    @property
    def folder(self) -> Path | None:
        """The folder; None for a name on the hub."""
        place = Path(self.name).expanduser()
        return place if place.is_dir() else None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}"

    def absolute(self) -> str:
        """The same dataset from any working directory."""
        query = "&".join(f"{key}={value}" for key, value in self.options.items())
        return PREFIX + (str(self.folder.absolute()) if self.folder else self.name) + (query and f"?{query}")
