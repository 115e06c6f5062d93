"""A network made ready for inference: the same results, up to rounding, in a fraction of the time."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from degrid.acceleration.fold import folded
from degrid.acceleration.taps import TapConv2d, reach_onednn, use_taps
from degrid.acceleration.winograd_layer import use_winograd, winograd_bytes
from degrid.chance import drawing_nothing, of_everybody, state_of
from degrid.contracts import ExportedNetwork, copied, evaluating, in_evaluation_mode
from degrid.engine.device import autocast, resolved_precision, to_channels_last
from degrid.engine.inference.adapted import Adapted, adapted
from degrid.engine.inference.options import PRECISION_OF_FILE
from degrid.engine.inference.state import counters, differ, kept, numbers_outside, places, shares_functions, weights
from degrid.kernels.upsample_argmax import upsample_argmax
from degrid.types import UserError

CHECKS = 3
"""Images on which bfloat16 is compared with float32 if the precision is "auto"."""
VIEWS = 4
"""Views of each of them, at several scales or in windows, that are compared."""
AGREEMENT = 0.995
"""Fraction of a view's pixels that must get the same class in bfloat16 as in float32."""
SIZES = 3
"""Number of image sizes at whose first image the copy is always compared with the network itself."""
_LARGEST_ERROR = 1e-3
"""Largest error in float32, as a fraction of the largest logit; a hundred layers of rounding stay below a tenth."""
_MEAN_ERROR = 0.1
"""Largest error in bfloat16, as a fraction of the mean deviation of a class's logits from their mean: coarse, as
rounding alone makes 0.01 in most networks."""
_IN_TIMES = 1.5
"""Largest error in bfloat16, as a multiple of the network's own if it differs from itself by more than that."""
_STATE = 1e-6
"""How much the previous image may change, relative to the largest logit; without state the bits are equal."""
_CORNER = 128
"""Side of the part of an image that is used to find which layers can be folded, pixels."""


@dataclass(frozen=True)
class _Way:
    """How a copy is made fast: batch norms folded, layers exchanged for faster ones; or neither, and no copy."""

    fold: bool
    exchange: bool

    def __str__(self) -> str:
        done = [word for word, is_done in (("folded", self.fold), ("exchanged", self.exchange)) if is_done]
        return f"with its layers {' and '.join(done)}" if done else "as it is"


_WAYS = (_Way(True, True), _Way(False, True), _Way(True, False), _Way(False, False))
"""Fastest first, the network itself last; each is tried if those before it do not compute the same."""


class FastNetwork:
    """A copy of a network for inference; the network itself stays as it is, in evaluation mode only while it runs.

    Batch norms are folded into convolutions, tensors are channels_last, and the convolutions run in bfloat16, or in
    float32 by Winograd's algorithm where that is faster. On the first image of each of the first SIZES sizes, and of
    each that is wider, narrower, higher or lower than all before, the copy is compared with the network. If it computes
    something else, one that is folded or exchanged only in part takes its place, at last the network itself; a warning
    says so, and the result is the network's. One that keeps state from one image to the next runs as it is, once per
    image.

    Args:
        model: from RGB images [N,3,H,W] (0-255) to logits [N,C,h,w], on its device.
        precision: "float32", "bfloat16" or "auto": bfloat16 where the hardware multiplies in it and, on each of the
            first images, at least 99.5 % of the pixels get the class that the network gives in float32; else float32.
            `next_image` says where an image begins.
        convention: of enlarging the logits, for that comparison.
        compiled: also compile it (torch.compile): some 20 seconds at the first image of each size.
        once: there is one image only, for which the network itself in float32 takes less time than a copy to make and
            compare.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        precision: str,
        convention: str,
        compiled: bool = False,
        once: bool = False,
    ) -> None:
        self.device, self.convention, self.compiled = device, convention, compiled
        self.precision = resolved_precision(device, "float32" if once else precision)
        """The precision in which it computes now: "bfloat16" or "float32"."""
        self.agreement: float | None = None
        """The lowest fraction of equal pixels, in bfloat16 and float32, over the images compared so far."""
        self._checks = CHECKS if precision == "auto" and self.precision == "bfloat16" else 0
        self._may_change = bool(self._checks)
        self._views = 0
        self._model = adapted(model)
        self._parts = list(self._model.modules())
        self._name = type(model).__name__
        self._as_it_is = isinstance(model, ExportedNetwork)
        self.spares_memory = False
        """Whether Winograd's algorithm, whose weights are up to seven times as large, is left out."""
        self.uses_compiled = True
        """Whether compiled kernels may be loaded to find classes, see `degrid.kernels.support.code_bytes`."""
        self.counts_runs = False
        """Whether its output depends on how often it has run, so that it must see each image exactly once."""
        self._once = self._is_settled = once
        self._way = len(_WAYS) - 1 if once else 0
        self._sizes: set[tuple[int, ...]] = set()
        self._changes = False  # whether the network changes its own weights with every image
        self._network: nn.Module | None = None
        self._lock = threading.Lock()
        self._evaluation = _Evaluation(self._model)

    def __str__(self) -> str:
        if self._as_it_is:
            return PRECISION_OF_FILE
        if self.agreement is None:
            return self.precision
        if self.agreement == 1:
            return "bfloat16 (all pixels of the first images get the same class as in float32)"
        same = f"{min(100 * self.agreement, 99.99):.2f} % of the pixels of the first images"
        if self.precision == "float32":
            how = "--precision bfloat16 (precision=...) takes it nevertheless"
            return f"float32 (bfloat16 gave only {same} the same class; {how})"
        return f"bfloat16 (at least {same} get the same class as in float32)"

    def __call__(self, batch: Tensor) -> Tensor:
        """Logits [N,C,h,w], float32, of RGB images [N,3,H,W], 0-255."""
        if self._as_it_is:
            exported: Tensor = self._model(batch)
            return exported
        # What a network keeps must remain usable in training, and some networks compute gradients on the way.
        with torch.inference_mode(False), torch.no_grad():
            batch = batch.clone() if batch.is_inference() else batch
            if not self._is_due(batch):
                return self._run(batch)
            with self._lock:
                if not self._is_due(batch):  # another thread was faster
                    return self._run(batch)
                return self._checked(batch)

    def bytes_to_come(self) -> tuple[int, int]:
        """Roughly the bytes that will be taken beside feature maps: by a copy, and by Winograd's weights on top."""
        if self._once or self._as_it_is or self._network is not None:
            return 0, 0
        size = 2 if self.precision == "bfloat16" and self.is_decided else 4
        copied = sum(size * tensor.numel() for tensor in [*self._model.parameters(), *self._model.buffers()])
        return copied, winograd_bytes(self._model) if self.device.type == "cpu" else 0

    @property
    def is_decided(self) -> bool:
        """Whether the precision is settled."""
        return not (self._checks or self._views)

    def next_image(self) -> None:
        """Say that what follows are views of another image."""
        with self._lock:
            self._views = VIEWS if self._checks else 0
            self._checks = max(0, self._checks - 1)

    def use_float32(self) -> None:
        """Compute in float32 from now on."""
        with self._lock:
            if self.precision != "float32":
                self._become("float32")

    def _is_due(self, batch: Tensor) -> bool:
        """Whether anything remains to be compared on this image."""
        if self._is_settled:
            return False
        return bool(self._views) or self._is_new(tuple(batch.shape[-2:]))

    def _is_new(self, size: tuple[int, ...]) -> bool:
        """Whether the network may take a path at this size that it has not taken before."""
        if len(self._sizes) < SIZES or size in self._sizes:
            return size not in self._sizes
        return any(not min(sides) <= side <= max(sides) for side, *sides in zip(size, *self._sizes, strict=True))

    def _checked(self, batch: Tensor) -> Tensor:
        """The logits, after a comparison with those of the network itself."""
        exact, reason = self._alone(batch)
        if reason:
            self._stay_as_it_is(reason)
            return exact
        logits = self._close_to(exact, batch)
        if self._views:
            self._views -= 1
            size = tuple(batch.shape[-2:])
            best = functools.partial(
                upsample_argmax, size=size, convention=self.convention, compiled=self.uses_compiled
            )
            same = best(logits) == best(exact)
            agreement = same.float().mean().item()
            self.agreement = min(agreement, 1.0 if self.agreement is None else self.agreement)
            if agreement < AGREEMENT:
                self._become("float32")
                logits = self._close_to(exact, batch)
        self._sizes.add(tuple(batch.shape[-2:]))
        return logits

    def _close_to(self, exact: Tensor, batch: Tensor) -> Tensor:
        """The logits by the fastest way that computes what the network does."""
        precision, way = self.precision, self._way
        logits = self._by_this_way(exact, batch)
        while logits is None:
            if self._way == len(_WAYS) - 1:
                self._become("float32")
            else:
                self._way += 1
                self._network = None
                self._sizes.clear()  # the next way has seen only this image
            logits = self._by_this_way(exact, batch)
        if self._way > (way if self.precision == precision else 0):
            self._warn("has a fast copy that does not compute what it does")
        return logits

    def _by_this_way(self, exact: Tensor, batch: Tensor) -> Tensor | None:
        """The logits, or None where the network itself computes others and there is another way."""
        last = self._way == len(_WAYS) - 1
        if last and self.precision == "float32":
            return exact
        try:
            logits = self._run(batch)
        except Exception as error:  # the network itself ran: layers that cannot be copied, that need float32, ..
            if last and not self._may_change:
                raise UserError(
                    f"{self._name} cannot run in {self.precision} ({error}); take precision float32 or auto"
                ) from error
            return None
        return logits if last or self._agrees(logits, exact, batch) else None

    def _alone(self, batch: Tensor) -> tuple[Tensor, str | None]:
        """The logits of the network itself, and why it must run as it is; None where a copy may take its place."""
        values, held, outside = weights(self._model), kept(self._model), _numbers(self._model)
        chance = of_everybody(self.device)
        drawn = [state_of(each) for each in chance]
        with autocast(self.device, "float32"), self._evaluation:
            exact: Tensor = self._model(batch).float()
        if drawn != [state_of(each) for each in chance] and self._draws(batch, chance):
            return exact, "draws random numbers"
        changes_weights, counts = differ(values, weights(self._model)), outside != _numbers(self._model)
        if not (counts or changes_weights or differ(held, kept(self._model))):
            return exact, None
        if not counts and self._reads_what_hooks_write(batch):
            return exact, "has hooks that write where a copy of it does not read"
        if counts or self._keeps_state(exact, batch):
            return exact, "keeps state from one image to the next"
        if changes_weights and not self._changes:
            self._changes, self._network = True, None
        return exact, None

    def _stay_as_it_is(self, reason: str) -> None:
        """Run the network itself from now on, once per image."""
        self._become("float32" if self._may_change else self.precision)
        self._way, self._is_settled, self.counts_runs = len(_WAYS) - 1, True, True
        self._warn(reason)

    def _draws(self, batch: Tensor, chance: list[Any]) -> bool:
        """Whether the network draws random numbers for every image, not only for the first, as lazy weights do."""
        before = [state_of(each) for each in chance]
        with drawing_nothing(chance):
            try:
                with autocast(self.device, "float32"):
                    in_evaluation_mode(copied(self._model))(batch)
            except Exception:  # a user's network may raise anything
                return True
            return before != [state_of(each) for each in chance]

    def _keeps_state(self, exact: Tensor, batch: Tensor) -> bool:
        """Whether the logits of an image depend on which one came before, or on how many did."""
        try:
            twin = in_evaluation_mode(copied(self._model))
            with autocast(self.device, "float32"):
                twin(255 - batch)
                after_another, before = twin(batch).float(), counters(twin)
                again = twin(batch).float()
        except Exception:  # a user's network may raise anything
            return True
        # A counter may matter only at the fifth image, for example if every fifth one is examined more closely.
        errors = (_error(found, exact, "float32") for found in (after_another, again))
        return before != counters(twin) or max(errors) > _STATE

    def _reads_what_hooks_write(self, batch: Tensor) -> bool:
        """Whether a copy of the network would read what an earlier image left, as its hooks write into the original."""
        if not shares_functions(self._model):
            return False
        found = []
        try:
            for image in (255 - batch, 255 - batch, batch):  # each copy has what the one before it wrote
                twin = in_evaluation_mode(copied(self._model))
                with autocast(self.device, "float32"):
                    found.append(twin(image).float())
        except Exception:  # a user's network may raise anything
            return True
        return _error(found[0], found[1], "float32") > _STATE

    def _warn(self, what: str) -> None:
        logging.getLogger("degrid").warning(f"{self._name} {what}; it now runs {_WAYS[self._way]}")

    def _agrees(self, logits: Tensor, exact: Tensor, batch: Tensor) -> bool:
        """Whether a copy's logits differ from the network's by no more than rounding does.

        Networks that enlarge rounding, as deep ones with random weights do, may differ from themselves in bfloat16.
        """
        # cuDNN rounds the products of float32, too (TF32), unless asked otherwise.
        kind = self.precision if self.device.type == "cpu" else "bfloat16"
        error = _error(logits, exact, kind)
        if error <= (_LARGEST_ERROR if kind == "float32" else _MEAN_ERROR):
            return True
        if self.precision == "float32" or error == math.inf:
            return False
        with contextlib.suppress(Exception), autocast(self.device, self.precision), self._evaluation:
            return error <= _IN_TIMES * _error(self._model(batch).float(), exact, kind)
        return False

    def _become(self, precision: str) -> None:
        self.precision, self._checks, self._views, self._network, self._way = precision, 0, 0, None, 0

    def _run(self, batch: Tensor) -> Tensor:
        # Functions that a network holds call its own layers, also in the copy.
        is_in_training = self._way == len(_WAYS) - 1 or any(part.training for part in self._parts)
        with self._evaluation if is_in_training else contextlib.nullcontext():
            if self._network is None:
                self._network = self._prepared(batch)
            with autocast(self.device, self.precision):
                logits: Tensor = self._network(batch)
        return logits.float()

    def _prepared(self, batch: Tensor) -> nn.Module:
        way = _WAYS[self._way]
        kind = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        network = self._model
        if way.fold:
            network = _folded(network, batch)
        elif way.exchange:
            network = in_evaluation_mode(copied(network))
        if way.exchange and self.device.type == "cpu":
            use_taps(network, kind)
            reach_onednn(network)
            if not self.spares_memory:
                use_winograd(network, watched=self._changes)
        if way.exchange:
            for module in network.modules():
                # Autocast then finds the weights in its type already, and casts the first layer's input only.
                if kind == torch.bfloat16 and isinstance(module, nn.Conv2d | nn.Linear | TapConv2d):
                    module.to(kind)
        if network is not self._model:
            to_channels_last(network)
            if isinstance(network, Adapted):
                network.layout = torch.channels_last
        return cast(nn.Module, torch.compile(network)) if self.compiled else network


def _numbers(model: nn.Module) -> list[object]:
    """Tensors that copies of a network share, and those that change their memory with each image."""
    return [*numbers_outside(model), *places(model)]


class _Evaluation:
    """Keeps a network in evaluation mode while any thread is inside; afterwards it has its previous modes."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.inside = model, 0
        self._lock, self._modes = threading.Lock(), contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self.inside:
                self._modes.enter_context(evaluating(self.model))
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.inside -= 1
            if not self.inside:
                self._modes.close()


def _error(logits: Tensor, exact: Tensor, precision: str) -> float:
    """The difference of logits: in float32 the largest over the largest logit; in bfloat16 the mean over the mean
    deviation from a class's mean, as a large bias would hide that the pixels are others.

    Infinite where the shapes differ, or which values are finite. What is not finite in both does not count.
    """
    both = torch.isfinite(exact)
    if logits.shape != exact.shape or not torch.equal(both, torch.isfinite(logits)):
        return math.inf
    difference = (logits - exact)[both].abs()
    if not len(difference):
        return 0.0
    if precision == "float32":
        over, under = difference.max(), exact[both].abs().max()
    else:
        means = exact.where(both, math.nan).nanmean((-2, -1), keepdim=True)
        varied = exact - means if exact[0, 0].numel() > 1 else exact
        over, under = difference.mean(), varied[both].abs().mean()
    return (over / under).item() if over else 0.0


def _folded(model: nn.Module, batch: Tensor) -> nn.Module:
    """A copy with batch norm folded, found on a corner of the image.

    Finding out which layer feeds which keeps every feature map, which would take too much memory for a whole image.
    """
    corner = batch[:1, :, :_CORNER, :_CORNER]
    if corner.shape == batch.shape:
        return folded(model, batch)
    try:
        return folded(model, corner)
    except Exception:  # perhaps the network accepts only this image's size; if not, the next line shows why
        return folded(model, batch)
