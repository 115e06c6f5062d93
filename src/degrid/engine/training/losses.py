"""Losses over the valid pixels, of single pixels and of whole regions, and their table of names.

Where they can, they ask for no number and make nothing whose size depends on the values, since a GPU would be waited
for: pixels and classes that do not count take part with a weight of 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from degrid.engine.ranks import rank_and_count, rows_of_all, summed_over_ranks
from degrid.lookup import keywords, lookup, make_part, settings_for
from degrid.types import IGNORE_INDEX, UserError


class Loss(ABC):
    """A loss over several micro-batches: the sum of their totals over the sum of their weights.

    Weights depend on the labels alone, so that every micro-batch's gradient can be divided by the final sum. Void
    pixels count in neither; a micro-batch without valid pixels has total, weight and gradient 0, never NaN. Of several
    processes each has a part of every micro-batch; their totals, weights and gradients are added up.
    """

    @property
    def joins(self) -> bool:
        """Whether processes exchange something for it: all then need the same number of micro-batches."""
        return False

    @abstractmethod
    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The loss of one micro-batch times its weight, a scalar.

        Args:
            logits: float32 or float64 [N,C,H,W].
            label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
            class_weights: [C], of the logits' type, or None if all classes count alike.
        """

    @abstractmethod
    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """How much the micro-batch counts, a float scalar >= 0."""


class PixelLoss(Loss):
    """A loss whose weight is that of the valid pixels."""

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of valid pixels, or the sum of their classes' weights."""
        return _pixel_weights(label, class_weights).sum()


@dataclass(frozen=True)
class CrossEntropy(PixelLoss):
    """-log of the true class's probability: the mean over valid pixels, weighted by the weight of the true class.

    label_smoothing: e; the target is 1 - e + e/C for the true class and e/C for the others (Szegedy et al. 2016, arXiv
    1512.00567 section 7), class weights acting on it as in `torch.nn.functional.cross_entropy`.
    """

    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        return _cross_entropy(logits, label, class_weights, self.label_smoothing, "sum")


@dataclass(frozen=True)
class Focal(PixelLoss):
    """-(1 - p)^focal_gamma log p for the true class's probability p: pixels that are already right count less.

    The mean over valid pixels, weighted by the weight of the true class (the paper's alpha_t).
    Source: Lin et al. 2017, arXiv 1708.02002, equations 4 and 5, with softmax instead of sigmoid.
    """

    focal_gamma: float = 2.0

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        surprise = _cross_entropy(logits, label, None, 0.0, "none")
        # 1 - p without cancellation; the bound keeps the power's slope finite at p = 1 where focal_gamma is below 1.
        miss = (-torch.expm1(-surprise)).clamp(min=torch.finfo(surprise.dtype).eps)
        losses = miss**self.focal_gamma * surprise
        return losses.sum() if class_weights is None else (losses * _per_pixel(label, class_weights)).sum()


@dataclass(frozen=True)
class HardPixels(Loss):
    """Online hard example mining: the mean cross-entropy of each micro-batch's hardest valid pixels.

    ohem_share: the fraction of valid pixels, of all processes together, that is kept, rounded up: those of the largest
    (weighted) cross-entropy.
    label_smoothing: see `CrossEntropy`.
    Source: Shrivastava et al. 2016, arXiv 1604.03540, for boxes; for pixels the online bootstrapping of Wu et al. 2016,
    arXiv 1605.06885.
    """

    ohem_share: float = 0.25
    label_smoothing: float = 0.0

    @property
    def joins(self) -> bool:
        """See `Loss.joins`."""
        return True

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over the pixels that are kept; see `Loss.total`."""
        losses = _cross_entropy(logits, label, class_weights, self.label_smoothing, "none")
        # Void pixels have the smallest possible loss, 0, so none takes a valid pixel's place.
        return (losses * _among_largest(losses.detach(), self._kept(_valid_of_all(label)))).sum()

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The number of pixels kept, times the mean weight of all valid ones.

        Which pixels are kept depends on the logits, so their own weights are not known beforehand; with a fraction of 1
        this is the weight of `CrossEntropy`.
        """
        valid = _valid_of_all(label)
        return _pixel_weights(label, class_weights).sum() * (self._kept(valid) / valid.clamp(min=1)).float()

    def _kept(self, valid: Tensor) -> Tensor:
        return (self.ohem_share * valid.double()).ceil()


def _among_largest(values: Tensor, count: Tensor) -> Tensor:
    """How far each value counts among the largest `count` of all processes, in the shape of `values`.

    1 above the count-th largest value, 0 below it; where several equal it, all have the same share of what is left.
    That value is found byte by byte: as float32, numbers of 0 or more are in the order of their bits, whose first is 0.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # -0 becomes 0
    level, left, alike = bits.new_zeros(()), count, count
    for shift in (24, 16, 8, 0):
        digits = (bits >> shift) & 255
        if shift < 24:
            digits = digits.masked_fill(bits >> (shift + 8) != level, 256)
        counts = summed_over_ranks(_counts(digits, 257))[: 128 if shift == 24 else 256]
        least = counts.flip(0).cumsum(0).flip(0)  # how many have this byte or a greater one
        digit = ((least >= left).sum() - 1).clamp(min=0)
        alike = counts.take(digit)
        left = left - (least.take(digit) - alike)
        level = ((level << 8) | digit).int()
    return (bits > level).to(values.dtype) + (bits == level).to(values.dtype) * (left / alike.clamp(min=1))


def _counts(numbers: Tensor, size: int) -> Tensor:
    """How often each of 0..size-1 occurs; `torch.bincount` would search for the largest."""
    one = torch.ones((), dtype=torch.int64, device=numbers.device)
    return one.new_zeros(size).scatter_add_(0, numbers.flatten().long(), one.expand(numbers.numel()))


@dataclass(frozen=True)
class GeneralisedCrossEntropy(PixelLoss):
    """(1 - p^q) / q for the true class's probability p: between cross-entropy (q = 0) and 1 - p (q = 1).

    A pixel whose label is wrong pulls less than with cross-entropy, since its gradient is weighted by p^q. The mean
    over valid pixels, weighted by the weight of the true class.

    q: above 0, at most 1.
    Source: Zhang & Sabuncu 2018, arXiv 1805.07836, the loss L_q, with their q.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise UserError(f'setting "train.loss_options": expected a q above 0, at most 1, got {self.q}')

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        surprise = _cross_entropy(logits, label, None, 0.0, "none")
        losses = -torch.expm1(-self.q * surprise) / self.q  # p = exp(-surprise); 0 at void pixels
        return losses.sum() if class_weights is None else (losses * _per_pixel(label, class_weights)).sum()


@dataclass(frozen=True)
class SymmetricCrossEntropy(PixelLoss):
    """alpha times cross-entropy, plus beta times the reverse one, in which prediction and label change places.

    With the logarithm of 0 taken as -`floor` (A in the paper), the reverse one is floor (1 - p) for the true class's
    probability p, which wrong labels cannot drive up without bound. The mean over valid pixels, weighted by the weight
    of the true class.

    Source: Wang et al. 2019, arXiv 1908.06112.
    """

    alpha: float = 0.1
    beta: float = 1.0
    floor: float = 4.0

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta, self.floor) < 0:
            raise UserError(
                'setting "train.loss_options": expected alpha, beta and floor of 0 or more, got '
                f"{self.alpha:g}, {self.beta:g} and {self.floor:g}"
            )

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """Summed over pixels; see `Loss.total`."""
        surprise = _cross_entropy(logits, label, None, 0.0, "none")
        losses = self.alpha * surprise - self.beta * self.floor * torch.expm1(-surprise)
        return losses.sum() if class_weights is None else (losses * _per_pixel(label, class_weights)).sum()


@dataclass(frozen=True)
class Scaled(Loss):
    """A loss times a factor: its share in a sum of losses."""

    loss: Loss
    factor: float

    @property
    def joins(self) -> bool:
        """The loss's own."""
        return self.loss.joins

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The factor times the loss's own; see `Loss.total`."""
        return self.factor * self.loss.total(logits, label, class_weights)

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """The loss's own: a factor here would cancel."""
        return self.loss.weight(label, class_weights)


def _valid_of_all(label: Tensor) -> Tensor:
    """Pixels of all processes that are not void, a scalar."""
    return summed_over_ranks((label != IGNORE_INDEX).sum())


def _cross_entropy(
    logits: Tensor, label: Tensor, class_weights: Tensor | None, label_smoothing: float, reduction: str
) -> Tensor:
    """PyTorch's cross-entropy, which is 0 with a gradient of 0 at void pixels."""
    if torch.are_deterministic_algorithms_enabled() and logits.ndim > 2:  # on GPUs it is for rows, not for maps
        rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
        found = _cross_entropy(rows, label.reshape(-1), class_weights, label_smoothing, reduction)
        return found.reshape(label.shape) if reduction == "none" else found
    return F.cross_entropy(
        logits, label, class_weights, ignore_index=IGNORE_INDEX, reduction=reduction, label_smoothing=label_smoothing
    )


def _per_pixel(label: Tensor, class_weights: Tensor) -> Tensor:
    """Weight of each pixel's class, in the shape of `label`; at void pixels any value."""
    return class_weights[label.clamp(max=len(class_weights) - 1)]


def _pixel_weights(label: Tensor, class_weights: Tensor | None) -> Tensor:
    """Weights of the pixels, to be added up; void ones have weight 0."""
    valid = label != IGNORE_INDEX
    return valid.float() if class_weights is None else _per_pixel(label, class_weights).where(valid, 0)


class RegionLoss(Loss):
    """A loss that is computed from a whole micro-batch, of all processes; it is averaged over the micro-batches.

    Those without valid pixels are left out. Class weights have no effect, since region losses already count every class
    alike.
    """

    @property
    def joins(self) -> bool:
        """See `Loss.joins`."""
        return True

    @abstractmethod
    def mean(self, logits: Tensor, label: Tensor) -> Tensor:
        """The loss of the images of all processes, with the gradient of this process's logits; without valid pixels 0,
        with a gradient of 0.

        Args:
            logits: [N,C,H,W], those of this process.
            label: int64 [N,H,W].
        """

    def total(self, logits: Tensor, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """This process's share of the loss; see `Loss.total`."""
        loss, processes = self.mean(logits, label), rank_and_count()[1]
        # The values of the processes add up to the loss, and so do their gradients, each of which is whole.
        return loss - loss.detach() * (1 - 1 / processes) if processes > 1 else loss

    def weight(self, label: Tensor, class_weights: Tensor | None) -> Tensor:
        """This process's share of 1, or 0 without valid pixels."""
        return (_valid_of_all(label) > 0).float() / rank_and_count()[1]


@dataclass(frozen=True)
class BatchMean(RegionLoss):
    """A loss made of a function that returns the mean of a batch; it is not called on a batch without valid pixels.

    To know that, a GPU is waited for. Several processes exchange all logits for it.

    function: (logits float [N,C,H,W], label int64 [N,H,W] with IGNORE_INDEX for void) -> scalar.
    """

    function: Callable[[Tensor, Tensor], Tensor]

    def mean(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `RegionLoss.mean`."""
        return self.function(*_of_all(logits, label)) if _valid_of_all(label) else 0 * logits.sum()


def _of_all(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels of all processes, with the gradient of this one's."""
    rank, processes = rank_and_count()
    if processes == 1:
        return logits, label
    parts = rows_of_all(logits.detach())
    parts[rank] = logits
    return torch.cat(parts), torch.cat(rows_of_all(label.to(torch.uint8))).long()


class Lovasz(RegionLoss):
    """See `lovasz_softmax`; several processes exchange all logits for it."""

    def mean(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `RegionLoss.mean`."""
        return lovasz_softmax(*_of_all(logits, label))


class Dice(RegionLoss):
    """See `dice`; several processes exchange their sums over pixels."""

    def mean(self, logits: Tensor, label: Tensor) -> Tensor:
        """See `RegionLoss.mean`."""
        return dice(logits, label)


def dice(logits: Tensor, label: Tensor) -> Tensor:
    """Soft Dice loss: 1 - 2 sum(p y) / (sum(p) + sum(y)), averaged over the classes present in the label.

    p is the softmax probability of the class, and y is 1 where the class is true, else 0; both sums run over all valid
    pixels of the batch, those of all processes. No constant is added to the fraction, since a class that is
    present has sum(y) >= 1.

    Args:
        logits: [N,C,H,W].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
    Returns:
        A scalar, 0 (perfect) to 1; 0 without valid pixels.
    Source: Milletari et al. 2016 (V-Net, arXiv 1606.04797) section 3, with p instead of its square below, per class.
    """
    classes, valid = logits.shape[1], label != IGNORE_INDEX
    scores = _scores(logits, valid)
    own = torch.where(valid, label, classes)  # void pixels are one class more
    right = scores.gather(1, own.clamp(max=classes - 1)[:, None])[:, 0]
    common = scores.new_zeros(classes + 1).index_add(0, own.flatten(), right.flatten())[:-1]
    found = scores.where(valid[:, None], 0).sum((0, 2, 3))
    pixels = summed_over_ranks(_counts(own, classes + 1))[:-1]
    # The fraction of an absent class could be 0 / 0, whose gradient is NaN even where it does not count.
    present = pixels > 0
    losses = 1 - 2 * _joined(common) / (_joined(found) + pixels).where(present, 1)
    return losses.where(present, 0).sum() / present.sum().clamp(min=1)


def _joined(own: Tensor) -> Tensor:
    """The sum over all processes, with the gradient of this one's part."""
    return own if rank_and_count()[1] == 1 else own + (summed_over_ranks(own.detach()) - own.detach())


def lovasz_softmax(logits: Tensor, label: Tensor) -> Tensor:
    """Lovasz-softmax: the Lovasz extension of 1 - IoU, averaged over the classes present in the label.

    The IoU is that of the whole batch, not of each image.

    Args:
        logits: [N,C,H,W].
        label: int64 [N,H,W], 0..C-1 or IGNORE_INDEX.
    Returns:
        A scalar, 0 (perfect) to 1; 0 without valid pixels.
    Source: Berman et al. 2018, arXiv 1705.08790, equations 8 (errors), 9 and 11 (mean), algorithm 1.
    """
    valid = label != IGNORE_INDEX
    scores = _scores(logits, valid)
    found = [_lovasz(scores[:, each], label == each, valid) for each in _to_rank(label, logits)]
    losses, present = zip(*found, strict=True)
    return torch.stack(losses).sum() / torch.stack(present).sum().clamp(min=1)


MOST_CLASSES = 32
"""With more classes than this, waiting for a GPU to say which occur is cheaper than ranking the pixels for each."""


def _to_rank(label: Tensor, logits: Tensor) -> Iterable[int]:
    """The classes of a batch, all of them or those that occur."""
    everything = range(logits.shape[1])
    if label.device.type != "cpu" and len(everything) <= MOST_CLASSES:
        return everything
    counts = _counts(label, IGNORE_INDEX + 1)
    return counts[: len(everything)].nonzero().flatten().tolist() or everything


def _lovasz(scores: Tensor, is_class: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of one class, 0 if it does not occur, and whether it does.

    It is the errors, largest first, times the steps of the Jaccard loss 1 - I/U. Step i is by how much that grows when
    the pixel with the i-th largest error becomes wrong too. A pixel of the class lowers the intersection I by 1, a step
    of 1/U. Any other raises the union U by 1, a step of I/(U-1) - I/U = I/(U (U-1)). Written like this no digits are
    lost, however many pixels there are. Void pixels have an error of 0, and count in neither.

    Args:
        scores: of the class, [N,H,W].
        is_class, valid: bool, alike.
    """
    errors = torch.where(is_class, 1 - scores, scores).where(valid, 0).flatten()
    errors, order = errors.sort(descending=True)
    inside, outside = is_class.flatten()[order], (valid & ~is_class).flatten()[order]
    size = inside.sum()
    common = size - inside.cumsum(0)
    union = (size + outside.cumsum(0)).clamp(min=1).to(errors.dtype)
    steps = torch.where(inside, 1 / union, common / (union * (union - 1).clamp(min=1)))
    return errors @ steps, size > 0


def _scores(logits: Tensor, valid: Tensor) -> Tensor:
    """Probabilities [N,C,H,W]; those of void pixels do not depend on the logits, which may have any values there."""
    return logits.where(valid[:, None], 0).softmax(1)


LOSSES: dict[str, Callable[..., object]] = {
    "cross_entropy": CrossEntropy,
    "ohem": HardPixels,
    "focal": Focal,
    "dice": Dice,
    "lovasz": Lovasz,
    "generalised_cross_entropy": GeneralisedCrossEntropy,
    "symmetric_cross_entropy": SymmetricCrossEntropy,
}
"""Classes of `Loss`, and functions of logits and label as `BatchMean` takes them."""


def make_losses(
    name: str = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_share: float = 0.25,
    options: Mapping[str, object] | None = None,
) -> tuple[Loss, ...]:
    """The losses that a name stands for.

    Args:
        name: rows of LOSSES joined by "+", each with a factor before it or not, as in "cross_entropy+0.5*dice"; or
            "module:Name" of your own: a function (logits [N,C,H,W], label int64
            [N,H,W] with 255 for void) -> mean of the batch, or a class that is made first: a subclass of `Loss`, or one
            whose instances are such functions, as those of `nn.Module` are.
        label_smoothing, focal_gamma, ohem_share: see `CrossEntropy`, `Focal` and `HardPixels`; passed to every loss
            with a parameter of that name.
        options: further arguments, likewise.
    Raises:
        UserError: an unknown name, a number or factor outside its range, or a setting that no loss takes.
    """
    for setting, value, fits, range_ in (
        ("label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "0 (off) or a share below 1"),
        ("focal_gamma", focal_gamma, 0 <= focal_gamma < math.inf, "0 or more"),
        ("ohem_share", ohem_share, 0 < ohem_share <= 1, "a share above 0, at most 1"),
    ):
        if not fits:
            raise UserError(f'setting "train.{setting}": expected {range_}, got {value}')
    shares = [_share(part) for part in name.split("+")]
    settings = {"label_smoothing": label_smoothing, "focal_gamma": focal_gamma, "ohem_share": ohem_share}
    losses = tuple(_scaled(_made(part, row, settings, options or {}), factor) for factor, part, row in shares)
    if label_smoothing and not any("label_smoothing" in keywords(row) for _, _, row in shares):
        able = " and ".join(key for key, row in LOSSES.items() if "label_smoothing" in keywords(row))
        raise UserError(f'setting "train.label_smoothing": acts on {able} only, not on "{name}"')
    for option in options or {}:
        if not any({option, "**"} & set(keywords(row)) for _, _, row in shares):
            raise UserError(f'setting "train.loss_options": the loss "{name}" has no option "{option}"')
    return losses


def uses_class_weights(losses: tuple[Loss, ...]) -> bool:
    """Whether class weights have an effect: not on losses of whole regions."""
    return not all(isinstance(loss.loss if isinstance(loss, Scaled) else loss, RegionLoss) for loss in losses)


def loss_names(name: str) -> tuple[str, ...]:
    """What a name is made of, one part for each of its losses: ("cross_entropy", "0.5*dice")."""
    return tuple(part.strip() for part in name.split("+"))


def _scaled(loss: Loss, factor: float) -> Loss:
    return loss if factor == 1 else Scaled(loss, factor)


def _share(part: str) -> tuple[float, str, Callable[..., object]]:
    """Factor and name of one part of a name, and what the name stands for."""
    factor, star, name = part.rpartition("*")
    try:
        number = float(factor) if star else 1.0
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(
            f'setting "train.loss": expected a factor of 0 or more before the *, as in 0.5*dice, got "{part.strip()}"'
        )
    return number, name.strip(), lookup(LOSSES, name.strip(), "loss")


def _made(name: str, found: object, settings: Mapping[str, object], options: Mapping[str, object]) -> Loss:
    if callable(found):
        own = {key: value for key, value in options.items() if {key, "**"} & set(keywords(found))}
        what = f'loss "{name}"'
        if isinstance(found, type):
            made: object = make_part(found, settings, own, what)
        else:
            given = settings_for(found, settings, own, what)
            made = partial(found, **given) if given else found
        if isinstance(made, Loss):
            return made
        if callable(made):
            return BatchMean(made)
        found = made
    raise UserError(f'loss "{name}": expected a function of logits and label, got {type(found).__name__}')
