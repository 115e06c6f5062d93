"""The field's words as types, shared by every part of degrid. Imports no torch at run time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

IGNORE_INDEX = 255
"""The one void label. Datasets map every void or foreign id to it; losses and metrics never count it."""

MSC_SCALES = (0.75, 0.5)
"""DeepLab v2's multi-scale input: the scales beside the image as it is (arXiv 1606.00915 section 4.1.2)."""


class UserError(ValueError):
    """Something the user gave cannot be used: one clear sentence on what was expected, what came, what to do.

    The command line prints the sentence and exits with code 2, without a traceback.
    """


class ConversionError(UserError):
    """A file of another framework is damaged, or holds something that cannot be converted; names file and place."""


@dataclass(frozen=True)
class Progress:
    """How far a long piece of work has come.

    Attributes:
        task: what is being done, such as "predicting".
        done: items finished.
        total: items in all, None where nobody knows.
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
"""Called as a long piece of work goes on: `print`, a progress bar, a notebook's widget."""

Tell = Callable[[str], None]
"""Called with a sentence for people: what was decided for them, or how a run is doing."""


@dataclass(frozen=True)
class Sample:
    """One image with its label.

    image: uint8 [3,H,W], RGB, 0-255.
    label: uint8 [H,W], train ids 0..C-1 or IGNORE_INDEX.
    name: identifies the image inside its dataset, with sub-folders, without extension ("city/frame_0001").
    """

    image: Tensor
    label: Tensor
    name: str


@dataclass(frozen=True)
class Batch:
    """Samples of one size.

    image: uint8 [N,3,H,W], RGB; label: int64 [N,H,W]; names: N strings.
    """

    image: Tensor
    label: Tensor
    names: tuple[str, ...]


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset or model: one name and one RGB colour (0-255) per train id.

    Raises:
        UserError: no class, more than 255, a name twice, or another number of colours than names.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_INDEX:
            raise UserError(f"expected 1 to {IGNORE_INDEX} classes, got {len(self.names)}")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise UserError(f"class names must differ from each other; named twice: {', '.join(twice)}")
        if len(self.colors) != len(self.names):
            raise UserError(f"expected one colour per class ({len(self.names)}), got {len(self.colors)}")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_size(cls, num_classes: int) -> LabelSpace:
        """Names "class 0".. and the VOC colours, for when nothing else is known."""
        return cls(tuple(f"class {i}" for i in range(num_classes)), voc_palette(num_classes))


def voc_palette(num_colors: int) -> tuple[tuple[int, int, int], ...]:
    """The first colours of PASCAL VOC: the bits of the id, from high to low, spread over R, G, B."""
    colors = []
    for index in range(num_colors):
        rgb, rest = [0, 0, 0], index
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colors.append((rgb[0], rgb[1], rgb[2]))
    return tuple(colors)


class Dataset(Protocol):
    """Anything indexable that yields samples; sizes may differ from sample to sample."""

    labels: LabelSpace

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Preprocess:
    """How a network's weights want their input: (channels - mean) / std on the 0-255 scale.

    mean, std: one value per channel **in the order the network reads**, so BGR first where `bgr` is set.
    """

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    bgr: bool = False


@dataclass(frozen=True)
class ConfidenceBin:
    """The pixels whose predicted class has a probability in one interval.

    pixels: how many they are. confidence: mean probability of the predicted class, accuracy: share of them that is
    right; both 0..1, None without a pixel.
    """

    pixels: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, at dataset level: every number comes from counts over all images.

    All scores are in 0..1. A class that is neither in truth nor in prediction has IoU None and is left out
    of the means; `num_classes_counted` says how many were counted. ece (expected calibration error) and reliability
    (its bins, of equal width from 0 to 1) are None unless asked for.
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
        from dataclasses import asdict

        return asdict(self)
