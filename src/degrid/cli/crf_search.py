"""degrid crf-search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from degrid.cli import options as opt
from degrid.lookup import counted


def crf_search(
    model: opt.Model,
    data: opt.Data,
    split: Annotated[str, typer.Option(help="Split to search on; not the one you report.")] = "val",
    num: Annotated[int, typer.Option("-n", "--num", min=1, help="Number of images, spread over the split.")] = 100,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Also write all that was tried as JSON here.")] = None,
    device: opt.Device = "auto",
    precision: opt.Precision = "float32",
    scales: opt.Scales = "1",
    flip: opt.Flip = False,
    window: opt.Window = None,
    crf_set: opt.CrfSet = None,
) -> None:
    """Search the weight and widths of the dense CRF that give the highest mIoU, from coarse to fine.

    53 settings are tried, or fewer. --crf-set sets the parameters that are not searched.

    \b
    degrid crf-search runs/my_photos --data my_photos
    degrid crf-search runs/my_photos --data my_photos -n 30 --crf-set pos_xy_std=3 -o crf.json
    """
    import degrid
    from degrid.cli.progress import progress_bar
    from degrid.files import check_place, write_json

    if out is not None:
        check_place(out)
    options = opt.inference_options(scales, flip, window=window, crf_set=crf_set)
    with progress_bar(lines=True) as bar:
        found = degrid.crf_search(
            model, data, split, num=num, device=device, precision=precision, options=options, progress=bar
        )
    print(f"{'mIoU %':>7}  bi_weight  bi_xy_std  bi_rgb_std   (on {counted(found.images, 'image')})")
    print(f"{opt.percent(found.without):>7}  without a CRF")
    for crf, miou in found.tried[:10]:
        print(f"{opt.percent(miou):>7}  {crf.bi_weight:9g}  {crf.bi_xy_std:9g}  {crf.bi_rgb_std:10g}")
    if out is not None:
        write_json(out, found.to_dict())
        print(f"all that was tried: {out}")
    best = found.best
    values = {"bi_weight": best.bi_weight, "bi_xy_std": best.bi_xy_std, "bi_rgb_std": best.bi_rgb_std}
    shown = [f"{name}={value:g}" for name, value in values.items()]
    shown += [value for value in crf_set or [] if value.partition("=")[0] not in values]  # parameters set by hand
    print("best:", *(f"--crf-set {value}" for value in shown))
