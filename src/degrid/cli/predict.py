"""degrid predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.cli.looks import Crf, Flip, Fusion, Overlap, Scales, Window, inference
from degrid.types import UserError


def predict(
    model: Annotated[Path, typer.Argument(help="A model folder or run folder.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders (searched through) or quoted patterns.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("predictions"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or auto.")] = "float32",
    overlay: Annotated[bool, typer.Option(help="Also write the image with its classes laid over.")] = True,
    save_logits: Annotated[
        bool, typer.Option("--save-logits", help="Also NAME.logits.npy: float32 [C,h,w] before enlarging.")
    ] = False,
    scales: Scales = "1",
    flip: Flip = False,
    fusion: Fusion = "mean",
    window: Window = None,
    overlap: Overlap = 0.5,
    crf: Crf = False,
) -> None:
    """Segment images: NAME.png (class ids with a palette), NAME.overlay.jpg, and summary.json.

    \b
    degrid predict runs/my_photos photo.jpg
    degrid predict runs/my_photos photos/ -o results
    degrid predict runs/my_photos "photos/**/*_left.png" -o results --save-logits
    degrid predict runs/my_photos photos/ --scales 0.75,1,1.25 --flip
    degrid predict runs/my_photos map.tif --window 1024x1024
    """
    import degrid
    from degrid.cli.progress import progress
    from degrid.engine.outputs import find_images, write_prediction, write_summary

    how = inference(scales, flip, fusion, window, overlap, crf)
    if save_logits and not how.is_plain:
        raise UserError("--save-logits writes the network's own logits; leave out --scales, --flip, --window and --crf")
    found = find_images(images, exclude=out)
    network = degrid.load(model)
    predictor = degrid.Predictor(network, device=device, precision=precision, how=how)
    summary, failed = {}, []
    with progress("predicting", len(found)) as advance:
        for name, path in found.items():
            try:
                prediction = predictor.predict(path)
            except UserError as error:
                failed.append(str(error))
            else:
                summary[name] = write_prediction(
                    prediction, network.labels, out, name, overlay=overlay, logits=save_logits
                )
            advance()
    if summary:
        write_summary(summary, network.labels, out)
        print(f"{len(summary)} images: masks{' and overlays' if overlay else ''} in {out}, {out / 'summary.json'}")
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} images could not be used: " + "; ".join(failed))
