"""Types that every part of degrid shares. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

IGNORE_INDEX = 255
"""The void label. Datasets map every void or unlisted id to it; losses and metrics never count it."""

RESIZES = ("half_pixel", "align_corners", "tf_legacy")
"""Bilinear conventions. half_pixel: pixel centres at i + 0.5, PyTorch's default and ours. align_corners: the corner
pixels' centres meet, Caffe's Interp and early PyTorch. tf_legacy: TensorFlow 1, source = i * in / out."""

PRECISIONS = ("auto", "float32", "bfloat16")
"""Number formats of a network's arithmetic; auto: what the machine is fast in, where it is exact enough."""

MSC_SCALES = (0.75, 0.5)
"""Multi-scale input of DeepLab v2: the scales beside 1 (arXiv 1606.00915 section 4.1.2)."""


class UserError(ValueError):
    """The user's input cannot be used. The message is one sentence: what was expected, what was given, what to do.

    The command line prints it and exits with code 2, without a traceback.
    """


class OtherProcessError(UserError):
    """Another process of the job failed, so that this one cannot continue."""


class ConversionError(UserError):
    """A file of another framework is damaged or cannot be converted; the message names the file and the position."""


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work has come.

    Attributes:
        task: what is being done, such as "predicting".
        done: items finished.
        total: items in all; None if unknown.
        status: what to show beside it, such as "loss 0.412"; may be empty.
    """

    task: str
    done: int
    total: int | None = None
    status: str = ""

    def __str__(self) -> str:
        total = "" if self.total is None else f"/{self.total}"
        return f"{self.task} {self.done}{total}" + (f": {self.status}" if self.status else "")


OnProgress = Callable[[Progress], None]
"""Called as long work advances: `print`, a progress bar, a notebook's widget."""

Tell = Callable[[str], None]
"""Called with a sentence for the user: a decision made on their behalf, or how a run is doing."""


@dataclass(frozen=True)
class Sample:
    """One image with its label.

    Attributes:
        image: uint8 [C,H,W], 0-255; RGB where C is 3.
        label: uint8 [H,W], train ids 0..C-1 or IGNORE_INDEX.
        name: of the image within its dataset, with sub-folders and without extension ("city/frame_0001").
    """

    image: Tensor
    label: Tensor
    name: str


@dataclass(frozen=True)
class ArraySample:
    """A `Sample` of arrays, where PyTorch is not needed."""

    image: np.ndarray
    label: np.ndarray
    name: str


AnySample = Sample | ArraySample


@dataclass(frozen=True)
class Batch:
    """Samples of one size.

    Attributes:
        image: uint8 [N,C,H,W], 0-255; RGB where C is 3.
        label: int64 [N,H,W], train ids 0..C-1 or IGNORE_INDEX.
        names: of the N samples.
    """

    image: Tensor
    label: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset or model: one name and one RGB colour (0-255) per train id.

    Raises:
        UserError: no class, more than 255, a repeated name, unequal numbers of colours and names, or an invalid name or
            colour.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_INDEX:
            raise UserError(f"expected 1 to {IGNORE_INDEX} classes, got {len(self.names)}")
        if not all(isinstance(name, str) for name in self.names):
            raise UserError(f"class names are text; got {', '.join(repr(name) for name in self.names)}")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(f"class names must differ from each other; named twice: {', '.join(twice)}")
        if len(self.colors) != len(self.names):
            raise UserError(f"expected one colour per class ({len(self.names)}), got {len(self.colors)}")
        if wrong := [color for color in self.colors if not _is_color(color)]:
            raise UserError(f"a colour is three whole numbers from 0 to 255, got {wrong[0]!r}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_size(cls, num_classes: int) -> LabelSpace:
        """The names "class 0", "class 1", ... and the VOC colours, for when nothing else is known."""
        return cls(tuple(f"class {i}" for i in range(num_classes)), voc_palette(num_classes))


def _is_color(value: Any) -> bool:
    parts = value if isinstance(value, tuple | list) else ()
    return len(parts) == 3 and all(isinstance(part, Integral) and 0 <= int(part) <= 255 for part in parts)


def voc_palette(num_colors: int) -> tuple[tuple[int, int, int], ...]:
    """The first colours of PASCAL VOC: the bits of the id, from high to low, spread over R, G, B."""

    def value(index: int, channel: int) -> int:
        return sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))

    return tuple((value(index, 0), value(index, 1), value(index, 2)) for index in range(num_colors))


@runtime_checkable
class Dataset(Protocol):
    """Anything indexable that gives samples, whose sizes may differ."""

    labels: LabelSpace

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class AnyDataset(Protocol):
    """A `Dataset` of samples of tensors or of arrays."""

    labels: LabelSpace

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> AnySample: ...


@dataclass(frozen=True)
class Preprocess:
    """How a network's weights expect their input: (channels - mean) / std on the 0-255 scale.

    Attributes:
        mean: one value per channel, in the order in which the network reads them: blue first where `bgr` is set.
        std: likewise.
        bgr: whether the network reads blue, green, red instead of red, green, blue; of more channels the first three.
    """

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    bgr: bool = False

    def of_channels(self, count: int) -> Preprocess:
        """The same for another number of channels: repeated in turn; their average for a single one.

        Raises:
            UserError: neither 1, 3 nor `count` values are there.
        """
        if len(self.mean) == len(self.std) == count:
            return self
        if {len(self.mean), len(self.std)} - {1, 3}:
            raise UserError(
                f"model.mean and model.std: expected {count} values each, one per channel, got {len(self.mean)} and "
                f"{len(self.std)}"
            )

        def fitted(values: tuple[float, ...]) -> tuple[float, ...]:
            if count == 1:
                return (sum(values) / len(values),)
            return tuple(values[channel % len(values)] for channel in range(count))

        return Preprocess(fitted(self.mean), fitted(self.std), self.bgr)


@dataclass(frozen=True)
class Bands:
    """How image files become what a network reads, uint8 [count,H,W].

    Attributes:
        count: channels; 3: RGB, where grey becomes three equal ones; 0: to be found in the data.
        range: pairs of values that become 0 and 255, one pair for all channels or one for each; "file": of each file
            its own; "bytes": 8-bit values stay, those of 16 bits are divided by 257, fractions from 0 to 1 are
            multiplied by 255; "auto": to be found in the data.
    """

    count: int = 3
    range: tuple[tuple[float, float], ...] | str = "bytes"

    @classmethod
    def of(cls, values: dict[str, Any]) -> Bands:
        """The object with these plain values, such as those of `dataclasses.asdict` that went through JSON."""
        given = values["range"]
        pairs = given if isinstance(given, str) else tuple((float(low), float(high)) for low, high in given)
        return cls(int(values["count"]), pairs)


RGB = Bands()


@dataclass(frozen=True)
class ConfidenceBin:
    """The pixels whose predicted class has a probability in one interval.

    Attributes:
        pixels: their number.
        confidence: mean probability of the predicted class, 0 to 1; None without pixels.
        accuracy: fraction of them that are right, 0 to 1; None without pixels.
    """

    pixels: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation of a whole dataset: every number comes from counts over all images.

    All scores are from 0 to 1. A class that is neither in the truth nor in a prediction has IoU None and is left out of
    the means; `num_classes_counted` is the number of the others. ece (expected calibration error) and reliability (its
    bins, of equal width from 0 to 1) are None unless requested.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    boundary_iou: float | None
    class_names: tuple[str, ...]
    class_iou: tuple[float | None, ...]
    class_accuracy: tuple[float | None, ...]
    class_boundary_iou: tuple[float | None, ...] | None
    class_pixels: tuple[int, ...]
    num_classes_counted: int
    num_images: int
    confusion: tuple[tuple[int, ...], ...] = field(repr=False)
    ece: float | None = None
    reliability: tuple[ConfidenceBin, ...] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
