"""What an exported file says about its network, and which images it takes. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from degrid.arguments import check_fields
from degrid.files import parse_json
from degrid.lookup import counted, unknown
from degrid.types import RESIZES, RGB, Bands, LabelSpace, UserError
from degrid.version import VERSION

INPUTS = ("uint8", "float32")
Classes = tuple[tuple[str, tuple[int, int, int]], ...]


FIXED = "a fixed number of images and a fixed size (--batch, --size; takes=ImageInput(...)) may help"
"""Advice for networks that cannot be written for all of them."""


@dataclass(frozen=True)
class ImageInput:
    """What a file takes: images [N,3,H,W] (or of other bands), 0-255.

    type: of the pixels, "uint8" or "float32".
    size: height and width, for a file that takes images of this size only; None: any.
    batch: the number of images, for a file that takes exactly this many; None: any, but one where there is a `size`.

    Raises:
        UserError: an unknown type, or a size or number below 1.
    """

    type: str = "uint8"
    size: tuple[int, int] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.type not in INPUTS:
            raise unknown("input", self.type, INPUTS)
        if min(*(self.size or (1, 1)), 1 if self.batch is None else self.batch) < 1:
            raise UserError(f"a file takes at least one image of one pixel; got size {self.size}, batch {self.batch}")

    def __str__(self) -> str:
        many = "any number of images" if self.fixed_batch is None else counted(self.fixed_batch, "image")
        return f"{many} of {f'{self.size[0]}x{self.size[1]}' if self.size else 'any size'}"

    @property
    def fixed_batch(self) -> int | None:
        """The number of images, or None for any."""
        return 1 if self.batch is None and self.size else self.batch

    def shape(self, traced: tuple[int, ...]) -> tuple[int, ...]:
        """N, channels, H, W that the file takes: those of `traced` where it takes any."""
        return (self.fixed_batch or traced[0], traced[1], *(self.size or traced[2:]))


@dataclass(frozen=True)
class Facts:
    """What a file says about its network.

    classes: name and colour of each. output: "ids", uint8 [N,H,W] at the image's size, or "logits", float32 [N,C,h,w].
    input: type of the pixels, RGB [N,3,H,W], 0-255: "uint8" or "float32". resize: how logits are enlarged. version: of
    degrid. size: height and width of the images that it takes, one unless `batch` says more; None if any. batch: the
    number of images that it takes; None if any. bands: how image files become its input.
    """

    classes: Classes
    output: str
    input: str
    resize: str
    version: str
    kind: str = "model"
    size: tuple[int, int] | None = None
    batch: int | None = None
    bands: Bands = RGB

    def __post_init__(self) -> None:
        check_fields(self)
        if self.output not in ("ids", "logits") or self.input not in ("uint8", "float32"):
            raise UserError(f"an exported model from {self.input} to {self.output} is not known")

    @property
    def labels(self) -> LabelSpace:
        """The classes."""
        return LabelSpace(tuple(name for name, _ in self.classes), tuple(color for _, color in self.classes))

    @classmethod
    def of(cls, takes: ImageInput, classes: Classes, output: str, resize: str, bands: Bands) -> Facts:
        """The facts of a file that this version of degrid writes."""
        return cls(classes, output, takes.type, resize, VERSION, size=takes.size, batch=takes.batch, bands=bands)

    @property
    def takes(self) -> ImageInput:
        """Which images the file takes."""
        return ImageInput(self.input, self.size, self.batch)

    @classmethod
    def read(cls, text: str | None, path: Path) -> Facts:
        """The facts in the JSON of a file.

        Raises:
            UserError: there is none, or it has another form.
        """
        try:
            values = parse_json(text or "")
            bands = values.pop("bands", None)
            found = cls(**values, bands=Bands.of(bands) if bands else RGB)
            if found.labels and found.resize in RESIZES:
                return found
            raise ValueError(f"resize {found.resize}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            message = f"{path} was not written by degrid export: it does not say its classes and output"
            raise UserError(message) from error

    def to_json(self) -> str:
        """ASCII; what is as always is left out, so that earlier versions can read it."""
        usual = {"size": None, "batch": None, "bands": asdict(RGB)}
        values = {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}
        return json.dumps(values, ensure_ascii=True)
