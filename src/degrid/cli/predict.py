"""degrid predict."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from degrid.cli.options import (
    Compiled,
    Crf,
    Flip,
    Fusion,
    Memory,
    Msc,
    Overlap,
    Precision,
    Scales,
    Window,
    inference,
    multi_scale,
    rest_idle_threads,
)
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.engine.inference.predictor import Prediction
    from degrid.verbs.benchmark_files import BenchmarkFiles

_FORMATS = ("ids", "voc", "cityscapes")


def predict(
    model: Annotated[Path, typer.Argument(help="A model folder, a run folder, or an exported model.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders (searched through) or quoted patterns.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Precision = "auto",
    compiled: Compiled = False,
    result_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="ids: class ids; voc: the tree and results.tgz for VOC's test server; cityscapes: label ids, "
            "NAME_pred.png.",
        ),
    ] = "ids",
    voc_comp: Annotated[
        str, typer.Option(help="With --format voc: comp5 (trained on VOC alone) or comp6 (on other data too).")
    ] = "comp6",
    overlay: Annotated[
        bool | None, typer.Option(help="Also write the image with its classes laid over (default with ids).")
    ] = None,
    save_logits: Annotated[
        bool, typer.Option("--save-logits", help="Also NAME.logits.npy: float32 [C,h,w] before enlarging.")
    ] = False,
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "mean",
    msc: Msc = False,
    window: Window = None,
    overlap: Overlap = 0.5,
    memory: Memory = None,
    crf: Crf = False,
) -> None:
    """Segment images: NAME.png (class ids with a palette), NAME.overlay.jpg, and summary.json.

    With --format voc or cityscapes: only the files that the benchmark takes.

    \b
    degrid predict runs/my_photos photo.jpg
    degrid predict runs/my_photos photos/ -o results
    degrid predict runs/my_photos "photos/**/*_left.png" -o results --save-logits
    degrid predict runs/my_photos photos/ --scales 0.75,1,1.25 --flip
    degrid predict runs/my_photos map.tif --memory 2GiB
    degrid predict runs/voc voc_test/ -o submission --format voc
    degrid predict runs/city cityscapes/leftImg8bit/test -o submission --format cityscapes
    """
    rest_idle_threads(model)
    import degrid
    from degrid.cli.progress import progress
    from degrid.engine.inference.fast_network import keep_freed_memory
    from degrid.image import read_image
    from degrid.model_folder import load_any
    from degrid.verbs.outputs import find_images, write_prediction, write_summary
    from degrid.verbs.overlap import Background, ahead

    keep_freed_memory()
    how = inference(scales, flip, fusion, window, overlap, crf, memory)
    if save_logits and not how.is_plain:
        raise UserError("--save-logits writes the network's own logits; leave out --scales, --flip, --window and --crf")
    if result_format not in _FORMATS:
        raise UserError(f'unknown format "{result_format}"; known: {", ".join(_FORMATS)}')
    if result_format != "ids" and (overlay or save_logits):
        raise UserError(
            f"--format {result_format} writes no more than the benchmark takes; leave out --overlay and --save-logits"
        )
    found = find_images(images, exclude=out)
    network = load_any(model)
    if msc:
        multi_scale(network)
    benchmark = _benchmark_files(result_format, out, len(network.labels), list(found.values()), voc_comp)
    predictor = degrid.Predictor(network, device=device, precision=precision, options=how, compiled=compiled)
    summary: dict[str, Any] = {}
    failed: list[str] = []

    def write(name: str, prediction: Prediction) -> None:
        if benchmark:
            benchmark.write(found[name], prediction.ids)
        else:
            summary[name] = write_prediction(
                prediction, network.labels, out, name, overlay=overlay is not False, logits=save_logits
            )

    reads = ahead(functools.partial(read_image, path) for path in found.values())
    with progress("predicting", len(found)) as advance, Background() as writer:
        for name, read in zip(found, reads, strict=True):
            try:
                prediction = predictor.predict(read())
            except UserError as error:
                failed.append(str(error))
            else:
                writer.run(functools.partial(write, name, prediction))
            advance()
    if summary:
        write_summary(summary, network.labels, out)
        overlays = "" if overlay is False else " and overlays"
        print(f"computed in {predictor.network}")
        print(f"{len(summary)} images: masks{overlays} in {out}, {out / 'summary.json'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} images could not be used: " + "; ".join(failed))
    if benchmark:  # after the failures: a benchmark wants every image
        print(benchmark.finish())


def _benchmark_files(
    result_format: str, out: Path, num_classes: int, images: list[Path], voc_comp: str
) -> BenchmarkFiles | None:
    """What writes the results for a benchmark; None for plain class ids."""
    from degrid.data import CITYSCAPES_LABEL_IDS
    from degrid.verbs.benchmark_files import CityscapesFiles, VocFiles

    if result_format == "voc":
        return VocFiles(out, num_classes, images, voc_comp)
    if result_format == "cityscapes":
        return CityscapesFiles(out, num_classes, images, CITYSCAPES_LABEL_IDS)
    return None
