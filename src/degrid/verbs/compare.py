"""Score models against one another on the same images, as `degrid compare` does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from degrid.arguments import checked
from degrid.contracts import bands_of, declared
from degrid.data import notes_of
from degrid.engine.evaluation.bootstrap import Difference, paired_bootstrap
from degrid.engine.evaluation.seeds import mean_scores, seed_difference
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.ranks import own_items
from degrid.files import parse_json
from degrid.lookup import counted, flat
from degrid.types import Dataset, OnProgress, Scores, UserError
from degrid.verbs.evaluate import AnyData, counting, name_of_data, opened
from degrid.verbs.open_network import AnyModel, name_of, open_network
from degrid.verbs.scored import Scored, scored

AnyModels = AnyModel | Iterable[AnyModel | Sequence[AnyModel]]
"""One model or several; several runs of one recipe are a list of them, or paths joined by commas."""


@dataclass(frozen=True)
class Run:
    """One model among those that are compared.

    Attributes:
        model: its path, or the class of what was passed as a network.
        seed: of its training, as its run.json says; None where there is none.
        scores: on the data.
        precision: the precision of the network, as a sentence.
        windowed: how many images were processed in windows; none unless the options ask for it.
    """

    model: str
    seed: int | None
    scores: Scores
    precision: str
    windowed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, of the scores the mIoU alone."""
        return {**vars(self), "scores": None, "miou": self.scores.miou}


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same images, and the difference of each to the first.

    Attributes:
        models: their paths, or class names for networks; the paths of several runs of a recipe are joined by commas.
        scores: one per model; the mean for several runs.
        differences: of mIoU to the first model, one per further model.
        precisions: the precision of each model, as a sentence.
        runs: the runs of each model.
        data, split, options, draws, seed: what was compared on, and how.
        notes: what was decided when the dataset was opened, one sentence each.
    """

    models: tuple[str, ...]
    scores: tuple[Scores, ...]
    differences: tuple[Difference, ...]
    precisions: tuple[str, ...]
    runs: tuple[tuple[Run, ...], ...]
    data: str
    split: str
    options: InferenceOptions
    draws: int
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def windowed(self) -> int:
        """How many images were processed in windows, the same ones for all models."""
        return self.runs[0][0].windowed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        to_first = [None, *(dataclasses.asdict(difference) for difference in self.differences)]
        return {
            "data": self.data,
            "split": self.split,
            "inference": dataclasses.asdict(self.options),
            "images_in_windows": self.windowed,
            "draws": self.draws,
            "seed": self.seed,
            "notes": list(self.notes),
            "models": [
                {
                    "model": model,
                    "difference_to_first": difference,
                    "precision": precision,
                    "runs": [run.to_dict() for run in runs],
                    **scores.to_dict(),
                }
                for model, scores, difference, precision, runs in zip(
                    self.models, self.scores, to_first, self.precisions, self.runs, strict=True
                )
            ],
        }

    @property
    def verdict(self) -> str:
        """One sentence: the best model, and by how much it beats the first."""
        best = max(range(len(self.scores)), key=lambda index: self.scores[index].miou)
        found = self.scores[best]
        text = f"best of {len(self.scores)} on {counted(found.num_images, 'image')}: {self.models[best]}"
        text += f", mIoU {100 * found.miou:.2f} %"
        if best == 0:
            return text
        difference = self.differences[best - 1]
        return f"{text}, {100 * difference.difference:+z.2f} {interval(difference)} to {self.models[0]}"


def interval(difference: Difference) -> str:
    """The 95 % interval of a difference, in percentage points."""
    return f"[{100 * difference.low:+z.2f}, {100 * difference.high:+z.2f}]"


@checked
def compare(
    models: AnyModels,
    data: AnyData,
    split: str = "val",
    *,
    device: str = "auto",
    precision: str = "float32",
    options: InferenceOptions | None = None,
    draws: int = 10_000,
    seed: int = 0,
    progress: OnProgress | None = None,
) -> Comparison:
    """Score models on the same images, and compare each with the first.

    Single models are compared by a bootstrap over the images, see `Difference`. Recipes, given as several runs with
    different seeds, are compared by their means, with an interval over seeds, in pairs by seed if their run.json files
    list the same seeds.

    Args:
        models: two or more, each a model folder, run folder, exported file or network; or the runs of one recipe, as a
            list or as paths joined by commas.
        data, split: see `degrid.evaluate`.
        device, precision: see `degrid.Predictor`; "float32" is exact. "auto" takes float32 for all if one needs it.
        options: scales, flips, windows and CRF; by default each network runs once on the whole image.
        draws, seed: of the bootstrap.
        progress: called after each image.
    Raises:
        UserError: fewer than two models, single runs compared with groups of runs, models that do not predict the same
            classes, or a memory limit, which gives each network different windows; see also `degrid.evaluate`.
    """
    recipes = recipes_of(models)
    if len(recipes) < 2:
        ways = "degrid compare MODEL MODEL --data PATH (degrid.compare([MODEL, MODEL], PATH))"
        raise UserError(f"a comparison needs two models or more, got {len(recipes)}: {ways}")
    options = options or InferenceOptions()
    if options.memory is not None:
        raise UserError("a memory limit gives each network different windows: compare with a window (options=...)")
    paths = [path for recipe in recipes for path in recipe]
    pairs = with_data(paths, data, split)
    dataset = pairs[0][1]
    count = counting(progress, "comparing", len(paths) * len(own_items(len(dataset))))
    found = [scored(*pair, device, precision, options, count) for pair in pairs]
    if len({each.precision.split()[0] for each in found}) > 1:  # precision "auto"
        found = [scored(*pair, device, "float32", options, None) for pair in pairs]
    runs, stacks = grouped(recipes, found), [each.confusions for each in found]
    return Comparison(
        tuple(map(_name, runs)),
        tuple(mean_scores([run.scores for run in recipe]) for recipe in runs),
        tuple(to_first(runs, stacks, draws, seed)),
        tuple(map(_precision, runs)),
        runs,
        name_of_data(data),
        split,
        options,
        draws,
        seed,
        tuple(notes_of(dataset)),
    )


def recipes_of(models: AnyModels) -> list[list[AnyModel]]:
    """The runs of each recipe.

    Raises:
        UserError: single runs beside several ones.
    """
    given = [models] if isinstance(models, str | os.PathLike | nn.Module) else list(models)
    recipes = [_runs(each) if isinstance(each, str | os.PathLike | nn.Module) else list(each) for each in given]
    numbers = [len(recipe) for recipe in recipes]
    if numbers and min(numbers) < 2 <= max(numbers):
        raise UserError(
            "expected either single models, compared over the images, or recipes of at least two runs each, compared "
            f"over the seeds; got {', '.join(map(str, numbers))} runs"
        )
    return recipes


def with_data(paths: Sequence[AnyModel], data: AnyData, split: str) -> list[tuple[nn.Module, Dataset]]:
    """Each network with the dataset as it wants it.

    Raises:
        UserError: see `compare`.
    """
    networks = [open_network(path) for path in paths]  # all of them first, so that mistakes show early
    check_classes(networks, [name_of(path) for path in paths])
    first = declared(networks[0])
    labels = first.labels if first else None
    datasets = {bands: opened(data, split, labels, bands) for bands in dict.fromkeys(map(bands_of, networks))}
    return [(network, datasets[bands_of(network)]) for network in networks]


def _runs(model: AnyModel) -> list[AnyModel]:
    """One model, or the runs of a recipe as paths joined by commas."""
    if isinstance(model, nn.Module) or "," not in os.fspath(model) or Path(model).exists():
        return [model]
    return [part.strip() for part in os.fspath(model).split(",") if part.strip()]


def run_folders(model: AnyModel) -> tuple[Path, ...]:
    """Where a run's files may be: in the folder that a model is, and in the one that holds it."""
    return () if isinstance(model, nn.Module) else (Path(model), Path(model).parent)


def run_record(model: AnyModel) -> dict[str, Any] | None:
    """The run.json of a run folder, or of the run folder that a model folder is in; None where there is none."""
    for folder in run_folders(model):
        try:
            record = parse_json((folder / "run.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("config"), dict):
            return record
    return None


def _seed_of(model: AnyModel) -> int | None:
    """The seed of a run; None if unknown."""
    record = run_record(model)
    seed = flat(record["config"]).get("train.seed") if record else None
    return seed if isinstance(seed, int) else None


def grouped(recipes: Sequence[Sequence[AnyModel]], found: Iterable[Scored]) -> tuple[tuple[Run, ...], ...]:
    """The runs of each recipe, with what was found of them one after another."""
    rest = iter(found)
    return tuple(
        tuple(
            Run(name_of(path), _seed_of(path), each.scores, each.precision, each.windowed)
            for path, each in zip(recipe, rest, strict=False)
        )
        for recipe in recipes
    )


def _name(recipe: Sequence[Run]) -> str:
    return ",".join(run.model for run in recipe)


def _precision(recipe: Sequence[Run]) -> str:
    return "; ".join(dict.fromkeys(run.precision for run in recipe))


def to_first(
    runs: Sequence[Sequence[Run]], stacks: Sequence[np.ndarray], draws: int, seed: int
) -> Iterator[Difference]:
    """Over the images, whose confusions are given, between single models; over the seeds between recipes."""
    for number, others in enumerate(runs[1:], start=1):
        one_each = len(stacks) == len(runs)
        yield paired_bootstrap(stacks[0], stacks[number], draws, seed) if one_each else _between(runs[0], others)


def _between(first: Sequence[Run], others: Sequence[Run]) -> Difference:
    """Two recipes over their seeds, paired if these are known and the same."""
    seeds = [[run.seed for run in recipe] for recipe in (first, others)]
    ours, theirs = (len({*each} - {None}) == len(each) and {*each} for each in seeds)
    paired = bool(ours) and ours == theirs
    if paired:
        place = seeds[0].index
        others = sorted(others, key=lambda run: place(run.seed))
    return seed_difference([run.scores.miou for run in first], [run.scores.miou for run in others], paired)


def check_classes(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuse networks that declare different classes or orders of them; those that declare none are not checked."""
    declaring = [(known.labels, name) for net, name in zip(networks, names, strict=True) if (known := declared(net))]
    for labels, name in declaring:
        first, first_name = declaring[0]
        if labels.names != first.names:
            raise UserError(
                f"{name} and {first_name} do not predict the same classes ({len(labels)} and {len(first)}, "
                "by name and order), so their scores cannot be compared"
            )
