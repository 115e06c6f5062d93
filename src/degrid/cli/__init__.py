"""The command line: one thin command per verb. Heavy imports happen inside the commands."""

from __future__ import annotations

import io
import os
import sys

import typer

from degrid.cli import (
    bench,
    collect,
    compare,
    convert,
    crf_search,
    data,
    demo,
    erf,
    evaluate,
    export,
    gridding,
    info,
    launch,
    lr_find,
    plot,
    predict,
    quick_imports,
    report,
    serve,
    study,
    train,
)
from degrid.threads import settle_threads
from degrid.types import OtherProcessError, UserError

app = typer.Typer(
    name="degrid",
    help="Dilated convolutions without the grid: train, evaluate, use and inspect DeepLab networks.",
    epilog="Start here: degrid train --data FOLDER, then degrid predict RUN IMAGES -o OUT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.train)
app.command("launch")(launch.launch)
app.command("sweep")(launch.sweep)
app.command("study")(study.study)
app.command("lr-find")(lr_find.lr_find)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("crf-search")(crf_search.crf_search)
app.command("predict")(predict.predict)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("convert")(convert.convert)
app.command("info")(info.info)
app.command("erf")(erf.erf)
app.command("gridding")(gridding.gridding)
app.add_typer(data.app, name="data")
app.command("demo")(demo.demo)
app.command("plot")(plot.plot)
app.command("report")(report.report)
app.command("bench")(bench.bench)
app.command("collect")(collect.collect)


def run() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    quick_imports.install()
    settle_threads()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for names of files that are no text, as for the error stream
    try:
        app()
    except UserError as error:
        if os.environ.get("DEGRID_DEBUG"):
            raise
        # Of the processes of one machine the one that failed has said why already.
        if not isinstance(error, OtherProcessError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"degrid: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("degrid: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `degrid ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
