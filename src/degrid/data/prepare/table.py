"""The benchmarks that can be prepared, and the function that prepares one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from degrid.data.prepare.ade20k import prepare_ade20k
from degrid.data.prepare.camvid import prepare_camvid
from degrid.data.prepare.cityscapes import prepare_cityscapes
from degrid.data.prepare.coco import COCO_CHOICES, prepare_coco
from degrid.data.prepare.polygons import prepare_polygons
from degrid.data.prepare.voc import prepare_voc
from degrid.lookup import unknown
from degrid.types import OnProgress, UserError

BENCHMARKS: dict[str, Callable[..., list[str]]] = {
    "voc": prepare_voc,
    "cityscapes": prepare_cityscapes,
    "camvid": prepare_camvid,
    "ade20k": prepare_ade20k,
    "coco": prepare_coco,
    "polygons": prepare_polygons,
}
"""The function for each benchmark, called with its folder, `progress` and, if given, the choice of classes."""
CHOICES = {"coco": COCO_CHOICES}
"""The benchmarks that offer a choice of classes."""


def prepare_benchmark(
    benchmark: str,
    path: str | Path,
    classes: str | None = None,
    progress: OnProgress | None = None,
    out: Path | None = None,
) -> list[str]:
    """Make a downloaded benchmark ready: labels as train ids, lists, classes.csv; and count what is there.

    Existing files are kept, so that an interrupted run can be continued.

    Args:
        benchmark: a row of BENCHMARKS: voc, cityscapes, camvid, ade20k or coco; or polygons, for what an annotation
            tool wrote.
        path: the folder with the benchmark's files, as they were unpacked.
        classes: of coco: voc (by default), the 20 classes of PASCAL VOC; or all 80.
        progress: told how many labels are made.
        out: of polygons: the folder to write to; by default "drawn" in the data's.
    Returns:
        The report, one line per finding. Lines on what is missing or differs from what was expected begin with
        "warning: ". The last line says what was written and how to train on it.
    Raises:
        UserError: no such benchmark or choice of classes, or its files are missing or damaged.
    """
    if benchmark not in BENCHMARKS:
        raise unknown("benchmark", benchmark, BENCHMARKS)
    if out is not None:
        if benchmark != "polygons":
            raise UserError(f"only polygons can be written elsewhere (-o); {benchmark} goes beside its files")
        return prepare_polygons(path, progress, out)
    if classes is None:
        return BENCHMARKS[benchmark](path, progress)
    if benchmark not in CHOICES:
        raise UserError(f"only {', '.join(CHOICES)} has a choice of classes; {benchmark} has one set of them")
    return BENCHMARKS[benchmark](path, progress, classes)
