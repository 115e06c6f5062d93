"""degrid data check, stats, preview, export, shard and prepare."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from degrid.cli.options import group, parse_bytes
from degrid.lookup import counted

app = group(help="Look at a dataset, prepare it, or write it as shards or TFRecord.")

_DATA = Annotated[
    str,
    typer.Argument(help="A folder, dataset.yaml, list or TFRecord file; or my_module:MyFormat=PATH of your own."),
]


@app.command()
def check(
    path: _DATA,
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many read; by default one for each core.", show_default=False)
    ] = None,
    accept: Annotated[list[str] | None, typer.Option(help="A doubt to accept, such as one-class; repeatable.")] = None,
) -> None:
    """Read every file: counts, sizes, class histogram, and each problem with its fix.

    Ends with exit code 2 if a problem was found.

    \b
    degrid data check my_photos
    """
    import json

    from degrid.cli.progress import progress_bar
    from degrid.data.processes import kept_processes

    with kept_processes("degrid.data.inspection.reading", processes):
        import degrid

        with progress_bar() as bar:
            report = degrid.check_data(path, bar, processes=processes, accept=accept or ())
    print(json.dumps(report.to_dict(), indent=2) if json_output else report)
    if not report.ok:
        sys.exit(2)


@app.command()
def stats(
    path: _DATA,
    split: Annotated[str, typer.Option(help="Split to count.")] = "train",
    json_output: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Count how often each class occurs, and print the class weights that follow from it (see train.class_weights).

    Shares are fractions of the valid pixels; "images" counts the images that contain the class.

    \b
    degrid data stats my_photos
    """
    import json

    from degrid.cli.progress import progress_bar
    from degrid.verbs.statistics import class_statistics

    with progress_bar() as bar:
        found = class_statistics(path, split, bar)
    print(json.dumps(found.to_dict(), indent=2) if json_output else found)


@app.command()
def preview(
    path: _DATA,
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to write.")] = Path("preview.png"),
    split: Annotated[str, typer.Option(help="Split to show.")] = "train",
    num: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 12,
) -> None:
    """Draw what was understood: images with their labels laid over them.

    Void is hatched. For every class the picture says which share of the pixels it has, and which values in the masks
    stand for it.

    \b
    degrid data preview my_photos -o preview.png
    """
    from degrid.data import open_dataset, write_preview

    write_preview(open_dataset(path, split), out, num, f"{path}, {split}")
    print(f"preview: {out}")


@app.command()
def export(
    path: _DATA,
    out: Annotated[Path, typer.Option("-o", "--out", help="TFRecord file to write, such as voc_train.tfrecord.")],
    split: Annotated[str, typer.Option(help="Split to write.")] = "train",
    record_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="encoded: image files in the keys of DeepLabV3-Tensorflow; deeplab: in those of TensorFlow's own "
            "DeepLab; raw: pixels, as sthalles/deeplab_v3 reads them.",
        ),
    ] = "encoded",
) -> None:
    """Write a split as one TFRecord file, and its classes as classes.csv beside it.

    JPEG files are copied as they are, other images become PNG.

    \b
    degrid data export my_photos -o records/photos_train.tfrecord
    degrid data export my_photos -o records/photos_val.tfrecord --split val --format deeplab
    """
    from degrid.cli.progress import progress_bar
    from degrid.verbs.write_shards import write_records

    with progress_bar() as bar:
        number, classes = write_records(path, out, split, schema=record_format, progress=bar)
    print(f"records: {out} ({counted(number, 'image')}); classes: {classes}")


@app.command()
def shard(
    path: _DATA,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to.")],
    kind: Annotated[str, typer.Option("--format", help="tar (of WebDataset) or tfrecord.")] = "tar",
    size: Annotated[str, typer.Option(help="Bytes of a shard.")] = "256M",
    split: Annotated[
        list[str] | None, typer.Option(help="Split to write; repeatable; by default all.", show_default=False)
    ] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="Write the images in random order, for readers that do not shuffle.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a dataset as shards: few large files in place of many small ones, to be read by position or one by one.

    Train with --data DIR, or with the address that DIR has on a server. Stopped, the same line continues with the shard
    that was not finished.

    \b
    degrid data shard my_photos -o shards
    degrid data shard my_photos -o records --format tfrecord --size 128M
    degrid train --data https://my.server/shards
    """
    import degrid
    from degrid.cli.progress import progress_bar

    with progress_bar(lines=True) as bar:
        written = degrid.write_shards(
            path, out, kind=kind, size=parse_bytes(size, "--size"), splits=split, shuffle=shuffle, progress=bar
        )
    for name, shards in written.splits.items():
        print(f"{name}: {counted(sum(each.samples for each in shards), 'image')} in {counted(len(shards), 'shard')}")
    print(f"shards: {out}; try: degrid train --data {shlex.quote(str(out))}")


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(help="voc, cityscapes, camvid, ade20k or coco; or polygons.")],
    path: Annotated[Path, typer.Argument(help="The folder with the files, as they were unpacked.")],
    classes: Annotated[
        str | None,
        typer.Option(help="Of coco: voc (by default), the 20 classes of VOC; or all 80.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help='Of polygons: where to write; by default "drawn" in PATH.', show_default=False
        ),
    ] = None,
) -> None:
    """Make a downloaded benchmark ready: labels as train ids, lists, classes.csv; and count what is there.

    voc: train.txt (trainaug, 10,582 images) and val.txt (1,449); SegmentationClassAug from SBD's .mat files if needed.

    cityscapes: _gtFine_labelTrainIds.png, train.txt (2,975), val.txt (500) and test.txt (1,525).

    camvid: labels_11 from the colours of the 32 classes, train.txt (367), val.txt (101) and test.txt (233).

    ade20k: annotations_train_ids, train.txt (20,210) and val.txt (2,000).

    coco: masks of the instance annotations of 2017 in voc21 or coco81, train.txt (the images in which more than 1,000
    pixels belong to the classes) and val.txt (5,000).

    polygons: masks of the polygons and run-length codes of an annotation tool (COCO JSON, YOLO, labelme, VIA, Label
    Studio, Supervisely), a list for each split and classes.csv. They can be trained on undrawn, too.

    Other counts are a warning. What is there stays, so that a run that was stopped continues.

    \b
    degrid data prepare voc VOCdevkit/VOC2012
    degrid data prepare cityscapes cityscapes
    degrid data prepare camvid CamVid
    degrid data prepare ade20k ADEChallengeData2016
    degrid data prepare coco coco
    degrid data prepare polygons my_export -o my_masks
    """
    from degrid.cli.progress import progress_bar
    from degrid.data import prepare_benchmark

    with progress_bar() as bar:
        report = prepare_benchmark(benchmark, path, classes, bar, out)
    print("\n".join(report))
