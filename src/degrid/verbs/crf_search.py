"""degrid.crf_search: the parameters of the dense CRF that suit a model and its data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from degrid.arguments import checked
from degrid.contracts import bands_of, declared
from degrid.engine.evaluation.metrics import ConfusionMatrix, scores
from degrid.engine.inference.options import InferenceOptions
from degrid.engine.inference.predictor import Predictor, predictor_of
from degrid.kernels.crf_settings import CRF
from degrid.kernels.dense_crf import refine
from degrid.types import Dataset, OnProgress, Progress, UserError
from degrid.verbs.evaluate import AnyData, opened
from degrid.verbs.open_network import AnyModel, open_network

# DeepLab v2's ranges: weight 3 to 6, position 30 to 100 pixels, colour 3 to 6 levels; both ends and the middle.
_COARSE: dict[str, tuple[float, ...]] = {
    "bi_weight": (3.0, 4.5, 6.0),
    "bi_xy_std": (30.0, 65.0, 100.0),
    "bi_rgb_std": (3.0, 4.5, 6.0),
}


@dataclass(frozen=True)
class CrfSearch:
    """What `crf_search` found.

    tried: the parameters and their mIoU (0 to 1), the best first; without: the mIoU without a CRF;
    images: the number of images that these were measured on.
    """

    tried: tuple[tuple[CRF, float], ...]
    without: float
    images: int

    @property
    def best(self) -> CRF:
        """The parameters with the highest mIoU; in a tie, those tried first."""
        return self.tried[0][0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        tried = [{**dataclasses.asdict(crf), "miou": miou} for crf, miou in self.tried]
        return {"images": self.images, "miou_without": self.without, "tried": tried}


@checked
def crf_search(
    model: AnyModel,
    data: AnyData,
    split: str = "val",
    *,
    num: int = 100,
    device: str = "auto",
    precision: str = "float32",
    options: InferenceOptions | None = None,
    progress: OnProgress | None = None,
) -> CrfSearch:
    """Search weight and widths of the CRF's appearance kernel, from coarse to fine, for the highest mIoU.

    All combinations of three values each are tried first, then half a step around the best one. The other parameters
    stay as in `options.crf`, or at their defaults. Search on images that no score is reported on.

    Args:
        model, data, split, device, precision: see `degrid.evaluate`.
        num: how many images are used, spread evenly over the split; at most all.
        options: scales, flips and windows; the CRF's other parameters.
        progress: called after each image of each of the two rounds.
    Raises:
        UserError: see `degrid.evaluate`; or fewer than one image.
    Source: DeepLab v2 (arXiv 1606.00915), section 4.1, which searches on 100 images.
    """
    if num < 1:
        raise UserError(f"--num (num): expected at least 1 image, got {num}")
    network, options = open_network(model), options or InferenceOptions()
    known = declared(network)
    dataset = opened(data, split, known.labels if known else None, bands_of(network))
    if not len(dataset):
        raise UserError("nothing to search on: the dataset holds no image")
    num = min(num, len(dataset))
    chosen = [round(k * (len(dataset) - 1) / max(1, num - 1)) for k in range(num)]
    start = options.crf or CRF()
    with predictor_of(network, device, precision, dataclasses.replace(options, crf=None), whole=True) as predictor:
        predictor.settle(dataset)
        coarse = [dataclasses.replace(start, **values) for values in _combinations(_COARSE)]
        without, found = _measured(predictor, dataset, chosen, coarse, progress, "coarse")
        best = max(found, key=lambda crf: found[crf])
        fine = [dataclasses.replace(start, **values) for values in _combinations(_around(best))]
        fine = [crf for crf in fine if crf not in found]
        found |= _measured(predictor, dataset, chosen, fine, progress, "fine")[1]
    return CrfSearch(tuple(sorted(found.items(), key=lambda item: -item[1])), without, num)


def _combinations(values: dict[str, tuple[float, ...]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(values, each, strict=True)) for each in itertools.product(*values.values()))


def _around(best: CRF) -> dict[str, tuple[float, ...]]:
    """Half a coarse step to either side of each parameter."""
    around: dict[str, tuple[float, ...]] = {}
    for name, (low, middle, _) in _COARSE.items():
        at, step = getattr(best, name), (middle - low) / 2
        around[name] = (at - step, at, at + step)
    return around


def _measured(
    predictor: Predictor,
    dataset: Dataset,
    chosen: list[int],
    fields: Iterable[CRF],
    progress: OnProgress | None,
    task: str,
) -> tuple[float, dict[CRF, float]]:
    """The mIoU without a CRF, and with each; every image is predicted once."""
    plain, counts = ConfusionMatrix(len(dataset.labels)), {crf: ConfusionMatrix(len(dataset.labels)) for crf in fields}
    for done, index in enumerate(chosen, 1):
        sample = dataset[index]
        probabilities = predictor.probabilities(sample.image)[0]
        image = sample.image.to(probabilities.device)
        plain.update(probabilities.argmax(0).to(torch.uint8).cpu(), sample.label)
        for crf, confusion in counts.items():
            refined = refine(probabilities, image, crf)
            confusion.update(refined.argmax(0).to(torch.uint8).cpu(), sample.label)
        if progress:
            progress(Progress(f"{task} search", done, len(chosen), f"{len(counts)} settings"))

    def miou(confusion: ConfusionMatrix) -> float:
        return scores(confusion, dataset.labels, len(chosen)).miou

    return miou(plain), {crf: miou(confusion) for crf, confusion in counts.items()}
