"""degrid predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from degrid.cli import options as opt
from degrid.lookup import counted
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.data.annotations import Regions
    from degrid.verbs.predict import PredictResult

_MOST_FAILURES = 10  # named in a message; summary.json names all
ModelAndImages = Annotated[
    list[str],
    typer.Argument(
        metavar="[MODEL] IMAGES...",
        help="A model folder, a run folder, an exported model, or a name; without one, the model that comes with "
        "degrid is taken. Then images, videos, folders (searched through) or quoted patterns; or a camera "
        "(/dev/video0) or address (rtsp://..).",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the results; of one video also NAME.mp4.")]
Precision = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, or auto: bfloat16 where it is fast and agrees with float32. By default auto, with "
        "--save-logits float32."
    ),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="ids: class ids; voc: the tree and results.tgz for VOC's test server; cityscapes: label ids, "
        "NAME_pred.png; coco, labelme, cvat, labelstudio: regions to correct in these annotation tools.",
    ),
]
Shapes = Annotated[
    str | None,
    typer.Option(help="For annotation tools: polygons, or masks (run-length codes). By default polygons."),
]
Smallest = Annotated[
    int | None,
    typer.Option(help="For annotation tools: regions of fewer pixels take the class around them. By default 0."),
]
Simplify = Annotated[
    float | None,
    typer.Option(
        help="For annotation tools: how many pixels an outline may be from its region; the more, the fewer corners. By "
        "default 0: exact."
    ),
]
VocComp = Annotated[
    str, typer.Option(help="With --format voc: comp5 (trained on VOC alone) or comp6 (on other data too).")
]
Overlay = Annotated[
    bool | None, typer.Option(help="Also write the image with its classes laid over (default with ids).")
]
SaveLogits = Annotated[
    bool, typer.Option("--save-logits", help="Also NAME.logits.npy: float32 [C,h,w] before enlarging.")
]

Smooth = Annotated[
    float, typer.Option(help="Videos: weight of the past, up to below 1, in a running average of the probabilities.")
]
VideoIds = Annotated[
    str | None, typer.Option(help="Videos: also class ids, as png (NAME/000000.png) or ffv1 (NAME.ids.mkv).")
]

Seconds = Annotated[
    float | None, typer.Option(help="Cameras and streams: how long; by default until they end, or Ctrl+C.")
]


def predict(
    model_and_images: ModelAndImages,
    out: Out = Path("predictions"),
    device: opt.Device = "auto",
    precision: Precision = None,
    compiled: opt.Compiled = False,
    result_format: Format = "ids",
    voc_comp: VocComp = "comp6",
    overlay: Overlay = None,
    save_logits: SaveLogits = False,
    shapes: Shapes = None,
    smallest: Smallest = None,
    simplify: Simplify = None,
    scales: opt.Scales = "1",
    flip: opt.Flip = False,
    fusion: opt.Fusion = "mean",
    msc: opt.Msc = False,
    window: opt.Window = None,
    overlap: opt.Overlap = 0.5,
    memory: opt.Memory = None,
    crf: opt.Crf = False,
    crf_set: opt.CrfSet = None,
    smooth: Smooth = 0.0,
    video_ids: VideoIds = None,
    seconds: Seconds = None,
) -> None:
    """Segment images: NAME.png (class ids with a palette), NAME.overlay.jpg, and summary.json; of videos
    NAME.overlay.mp4. With another --format only the files that the benchmark or annotation tool takes.

    \b
    degrid predict street.jpg                          with the model that comes with degrid
    degrid predict runs/my_photos photos/ -o results
    degrid predict runs/my_photos "photos/**/*_left.png" -o results --save-logits
    degrid predict runs/my_photos photos/ --scales 0.75,1,1.25 --flip
    degrid predict runs/my_photos map.tif --memory 2GiB
    degrid predict runs/my_photos drive.mp4 -o drive_classes.mp4 --smooth 0.7
    degrid predict runs/my_photos /dev/video0 -o camera.mp4 --seconds 60
    degrid predict runs/city cityscapes/leftImg8bit/test -o submission --format cityscapes
    degrid predict runs/my_photos new_photos/ -o to_correct --format cvat --smallest 50 --simplify 1
    """
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.engine.memory import settle_memory

    model, *images = model_and_images
    options = opt.inference_options(scales, flip, fusion, window, overlap, crf, crf_set, memory, smooth)
    settle_memory(options.memory)
    regions = _regions(shapes, smallest, simplify)
    files = degrid.ResultFiles(result_format, overlay, save_logits, voc_comp, regions, video_ids, seconds)
    chosen: dict[str, Any] = {"device": device, "precision": precision, "compiled": compiled, "options": options}
    with progress_bar() as progress:
        found = degrid.predict(model, images, out, files=files, multi_scale=msc, progress=progress, **chosen)
    _print_result(found)


def _regions(shapes: str | None, smallest: int | None, simplify: float | None) -> Regions | None:
    """How regions are drawn; None if not specified."""
    from degrid.data.annotations import Regions

    given = {"shapes": shapes, "smallest": smallest, "simplify": simplify}
    said: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return Regions(**said) if said else None


def _print_result(found: PredictResult) -> None:
    """A sentence on what was written; if images failed, the command ends with an error."""
    from degrid.verbs.find_images import said

    if found.model:
        print(found.model)
    if found.images or found.videos:
        print(f"computed in {found.precision}")
    if found.written:
        print(found.written)
    for remark in found.remarks:
        print(f"note: {remark}")
    if found.left_out:
        print(f"left out: {said(found.left_out)}")
    if found.failures:
        total, videos = found.images + found.videos + len(found.failures), found.videos + found.failed_videos
        kind = "image" if not videos else "video" if videos == total else "file"
        count = f"{len(found.failures)} of {counted(total, kind)}"
        more = len(found.failures) - _MOST_FAILURES
        others = f"; and {more:,} more" if more > 0 else ""
        raise UserError(f"{count} could not be used: {'; '.join(found.failures[:_MOST_FAILURES])}{others}")
