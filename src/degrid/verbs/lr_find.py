"""degrid.find_learning_rate: the loss over a growing learning rate, and the rate at which it falls fastest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from degrid.analysis.plots import smoothed, write_rate_search
from degrid.arguments import checked
from degrid.config import RunConfig, Settings
from degrid.data import Share
from degrid.engine.device import pick_device
from degrid.engine.training.loop import train_step
from degrid.engine.training.optimizers import set_learning_rate
from degrid.files import make_folder, write_text
from degrid.types import OnProgress, Progress, UserError
from degrid.verbs.run_settings import check_class_weights, check_settings, make_objective, make_state, with_steps
from degrid.verbs.run_start import open_data, run_batches, start_network
from degrid.verbs.train import run_config

SMOOTH = 0.9
"""Weight of the past in the average of the loss."""
DIVERGED = 4.0
"""The search ends where the average loss is this many times its lowest value."""


@dataclass(frozen=True)
class RateSearch:
    """What `find_learning_rate` found.

    Attributes:
        rates: the learning rate (`optim.lr`) of each step, rising.
        losses: the loss of each step, before its update.
        average: the moving average of the losses.
        suggestion: the rate at which the average falls fastest; None if it does not fall.
        diverged: whether the search ended early, because the loss had exploded.
        files: the picture and the CSV file.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    average: tuple[float, ...]
    suggestion: float | None
    diverged: bool
    files: tuple[Path, Path]

    def __str__(self) -> str:
        found = (
            f"suggested: --set optim.lr={self.suggestion:.2g}"
            if self.suggestion
            else "no suggestion: the loss hardly fell; more --steps (steps=...) make it clearer"
        )
        return f"{found}; see {self.files[0]} and {self.files[1]}"


@checked
def find_learning_rate(
    recipe: str | Path | RunConfig | None = None,
    *,
    data: str | Path | None = None,
    operator: str | None = None,
    settings: Settings = (),
    init: str | Path | None = None,
    out: str | Path = "lr_find",
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    progress: OnProgress | None = None,
) -> RateSearch:
    """Train some steps while the learning rate grows by the same factor each step, as `degrid lr-find` does.

        degrid.find_learning_rate(data="my_photos").suggestion

    The network, its data, loss and optimiser are those of `train` with the same arguments, without warm-up and
    schedule. The weights are thrown away, and no run is changed.

    Args:
        recipe, data, operator, settings, init: see `degrid.train`.
        out: the folder for lr_find.png and lr_find.csv.
        lowest, highest: the first learning rate, and the last if the loss does not explode before.
        steps: how many there are, 10 or more.
        progress: called after every step.
    Raises:
        UserError: settings or data that cannot be used, or a range without rates.
    Source: Smith 2015, arXiv 1506.01186, section 3.3, with rates that grow exponentially.
    """
    if not (0 < lowest < highest < math.inf and steps >= 10):
        raise UserError(
            "--lowest, --highest and --steps (lowest, highest, steps): expected 0 < lowest < highest and at least 10 "
            f"steps; got {lowest:g}, {highest:g} and {steps}"
        )
    config = run_config(recipe, data=data, operator=operator, settings=settings, init=init)
    check_settings(config)
    folder = Path(out)
    make_folder(folder)
    rates = np.geomspace(lowest, highest, steps).tolist()
    device = pick_device(config.train.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        losses, average = _search(config, rates, device, progress)
    files = (folder / "lr_find.png", folder / "lr_find.csv")
    kept = rates[: len(losses)]
    found = suggested(kept, average)
    write_rate_search(files[0], kept, losses, average, found)
    rows = [f"{rate:.6g},{loss:.6g},{mean:.6g}\n" for rate, loss, mean in zip(kept, losses, average, strict=True)]
    write_text(files[1], "".join(["learning_rate,loss,average_loss\n", *rows]))
    return RateSearch(tuple(kept), tuple(losses), tuple(average), found, _exploded(losses, average), files)


def _search(
    config: RunConfig, rates: list[float], device: torch.device, progress: OnProgress | None
) -> tuple[list[float], list[float]]:
    """The loss at each rate, and its moving average, until it explodes."""
    opened, config = open_data(config)
    settings = with_steps(config.train, len(opened.train))
    check_class_weights(settings.class_weights, opened.train)
    torch.manual_seed(settings.seed)
    model, _ = start_network(config, opened, device, False)
    tell: OnProgress = progress or (lambda _: None)
    state, objective = make_state(config, model), make_objective(settings, opened.train, model, device, tell)
    share = Share.of(settings.batch_size * settings.accumulate, settings.batch_size)
    batches = run_batches(config, opened.train, None, 0, tell, share)
    losses: list[float] = []
    average: list[float] = []
    for step, rate in enumerate(rates, 1):
        set_learning_rate(state.optimizer, rate)
        micro = [next(batches) for _ in range(settings.accumulate)]
        losses.append(train_step(state, micro, objective, settings.precision, config.optim.clip_norm))
        average = smoothed(losses, SMOOTH).tolist()
        over = _exploded(losses, average)
        tell(Progress("searching", len(rates) if over else step, len(rates), f"lr {rate:.2g}, loss {losses[-1]:.3f}"))
        if over:
            break
    return losses, average


def _exploded(losses: list[float], average: list[float]) -> bool:
    return not math.isfinite(losses[-1]) or average[-1] > DIVERGED * min(average)


def suggested(rates: list[float], average: list[float]) -> float | None:
    """The rate in the middle of the steepest fall of the average loss, before its minimum; None if it falls nowhere.

    The fall is taken over a fifth of the steps, so that a few lucky batches are no fall, and has to be of a twentieth
    of the loss.
    """
    half = max(1, len(rates) // 10)
    lowest = int(np.nanargmin(np.where(np.isfinite(average), average, np.inf)))
    falls = {at: average[at - half] - average[at + half] for at in range(half, lowest - half + 1)}
    steepest = max(falls, key=lambda at: falls[at], default=None)
    if steepest is None or falls[steepest] < 0.05 * average[steepest - half]:
        return None
    return rates[steepest]
