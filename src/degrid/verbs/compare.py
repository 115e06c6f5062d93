"""Score models against one another on the same images, as `degrid compare` does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from degrid.arguments import checked
from degrid.contracts import bands_of, declared
from degrid.data import notes_of
from degrid.engine.evaluation.bootstrap import Difference, ImageConfusions, paired_bootstrap
from degrid.engine.evaluation.evaluate import score
from degrid.engine.inference.predictor import predictor_of
from degrid.engine.inference.tta import InferenceOptions
from degrid.engine.ranks import own_items
from degrid.lookup import counted
from degrid.types import OnProgress, Scores, UserError
from degrid.verbs.evaluate import AnyData, counting, each_of, opened
from degrid.verbs.open_network import AnyModel, name_of, open_network


@dataclass(frozen=True)
class Comparison:
    """Scores of several models on the same images, and the difference of each to the first.

    Attributes:
        models: their paths, or classes for what was passed as a network.
        scores: one per model.
        differences: of mIoU to the first model, one per further model.
        precisions: the precision of each model, as a sentence.
        data, split, options, draws, seed: what was compared on, and how.
        notes: what was decided when the dataset was opened, one sentence each.
    """

    models: tuple[str, ...]
    scores: tuple[Scores, ...]
    differences: tuple[Difference, ...]
    precisions: tuple[str, ...]
    data: str
    split: str
    options: InferenceOptions
    draws: int
    seed: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        to_first = [None, *(dataclasses.asdict(difference) for difference in self.differences)]
        return {
            "data": self.data,
            "split": self.split,
            "inference": dataclasses.asdict(self.options),
            "draws": self.draws,
            "seed": self.seed,
            "notes": list(self.notes),
            "models": [
                {"model": model, "difference_to_first": difference, "precision": precision, **scores.to_dict()}
                for model, scores, difference, precision in zip(
                    self.models, self.scores, to_first, self.precisions, strict=True
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
        return f"{text}, {100 * difference.difference:+.2f} {interval(difference)} to {self.models[0]}"


def interval(difference: Difference) -> str:
    """The 95 % interval of a difference, in percentage points."""
    return f"[{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


@checked
def compare(
    models: AnyModel | Iterable[AnyModel],
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
    """Score models on the same images, and compare each with the first by a bootstrap over the images.

    Args:
        models: two or more, each a model folder, run folder, exported file or network.
        data, split: see `degrid.evaluate`.
        device, precision: see `degrid.Predictor`; "float32" is exact.
        options: scales, flips, windows and CRF; by default each network runs once on the whole image.
        draws, seed: of the bootstrap.
        progress: called after each image.
    Raises:
        UserError: fewer than two models, models that do not predict the same classes; see also `degrid.evaluate`.
    """
    models = [models] if isinstance(models, str | os.PathLike | nn.Module) else list(models)
    if len(models) < 2:
        raise UserError(
            f"a comparison needs two models or more, got {len(models)}: degrid compare MODEL MODEL --data PATH "
            "(degrid.compare([MODEL, MODEL], PATH))"
        )
    names = [name_of(model) for model in models]
    networks = [open_network(model) for model in models]  # all of them first, so that mistakes show early
    _check_classes(networks, names)
    first = declared(networks[0])
    labels = first.labels if first else None
    datasets = {bands: opened(data, split, labels, bands) for bands in dict.fromkeys(map(bands_of, networks))}
    dataset = datasets[bands_of(networks[0])]
    found, stacks, precisions = [], [], []
    count = counting(progress, "comparing", len(networks) * len(own_items(len(dataset))))
    for network in networks:
        collect = ImageConfusions(len(dataset.labels))
        with predictor_of(network, device, precision, options, whole=True) as predictor:
            found.append(score(predictor, datasets[predictor.bands], boundary=False, on_image=each_of(collect, count)))
        stacks.append(collect.stacked())
        precisions.append(str(predictor.network))
    return Comparison(
        tuple(names),
        tuple(found),
        tuple(paired_bootstrap(stacks[0], stack, draws, seed) for stack in stacks[1:]),
        tuple(precisions),
        os.fspath(data) if isinstance(data, str | os.PathLike) else type(data).__name__,
        split,
        options or InferenceOptions(),
        draws,
        seed,
        tuple(notes_of(dataset)),
    )


def _check_classes(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Refuse networks that do not declare the same classes in the same order; those that declare none are believed."""
    declaring = [(known.labels, name) for net, name in zip(networks, names, strict=True) if (known := declared(net))]
    for labels, name in declaring:
        first, first_name = declaring[0]
        if labels.names != first.names:
            raise UserError(
                f"{name} and {first_name} do not predict the same classes ({len(labels)} and {len(first)}, "
                "by name and order), so their scores cannot be compared"
            )
