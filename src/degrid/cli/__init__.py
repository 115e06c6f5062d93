"""The command line: one thin command per verb. Heavy imports happen inside the commands."""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from degrid.cli import quick_imports
from degrid.cli.options import Command, group
from degrid.threads import settle_threads
from degrid.types import OtherProcessError, UserError
from degrid.version import VERSION

COMMANDS = {
    "train": "train:train",
    "launch": "launch:launch",
    "sweep": "launch:sweep",
    "study": "study:study",
    "lr-find": "lr_find:lr_find",
    "eval": "evaluate:evaluate",
    "compare": "compare:compare",
    "crf-search": "crf_search:crf_search",
    "predict": "predict:predict",
    "serve": "serve:serve",
    "export": "export:export",
    "convert": "convert:convert",
    "hub": "hub:app",
    "info": "info:info",
    "erf": "erf:erf",
    "gridding": "gridding:gridding",
    "data": "data:app",
    "demo": "demo:demo",
    "plot": "plot:plot",
    "report": "report:report",
    "bench": "bench:bench",
    "collect": "collect:collect",
}
"""The module of each command, and the function or group of commands in it; in the order in which --help lists them."""


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands; the modules of others are not imported."""
    app = group(
        name="degrid",
        help="Dilated convolutions without the grid: train, evaluate, use and inspect DeepLab networks.",
        epilog="Start here: degrid train --data FOLDER, then degrid predict RUN IMAGES -o OUT.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_before_commands)  # without it, an app with a single command would be that command
    for name in names:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(importlib.import_module(f"degrid.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, cls=Command)(command)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        print(f"degrid {VERSION}")
        raise typer.Exit


def _before_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@functools.cache
def __getattr__(name: str) -> Any:
    """`app`: the whole command line, for programs that run commands in their own process."""
    if name != "app":
        raise AttributeError(f"module 'degrid.cli' has no attribute {name!r}")
    return make_app()


def run() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    quick_imports.install()
    settle_threads()
    if "RANK" in os.environ:  # in torchrun, PyTorch's C++ warns about intended things; it reads this once, early
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # for file names that are not valid text, as for the error stream
    asked = sys.argv[1:2]
    try:
        make_app(asked if asked and asked[0] in COMMANDS else COMMANDS)()
    except UserError as error:
        if os.environ.get("DEGRID_DEBUG"):
            raise
        # The process of this machine that failed has already said why.
        if not isinstance(error, OtherProcessError) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"degrid: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:
        cause = getattr(end.__context__, "__cause__", None)  # typer turns Ctrl+C into an exit without a message
        if not isinstance(end, KeyboardInterrupt) and not isinstance(cause, KeyboardInterrupt):
            raise
        print("degrid: stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output is gone, as in `degrid ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
