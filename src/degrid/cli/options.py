"""The options that several commands have, and what they mean to the library."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from degrid import lookup
from degrid.lookup import did_you_mean
from degrid.types import UserError

if TYPE_CHECKING:
    from degrid.engine.inference.options import InferenceOptions
    from degrid.kernels.crf_settings import CRF

Model = Annotated[Path, typer.Argument(help="A model folder, a run folder, or an exported model.")]
Data = Annotated[str, typer.Option(help="The data: a folder, dataset.yaml, list file or 'synthetic'.")]
Split = Annotated[str, typer.Option(help="Split to score.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where it is fast and agrees with float32.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Also torch.compile: for many images of the same size.")]
Scales = Annotated[str, typer.Option(help="Scales of the image to fuse, such as 0.5,0.75,1,1.25,1.5,1.75.")]
Flip = Annotated[bool, typer.Option("--flip", help="Also predict the mirrored image, and fuse.")]
Fusion = Annotated[str, typer.Option(help="mean of the probabilities (v3), or max of the logits (v2).")]
Window = Annotated[str | None, typer.Option(help="Slide a window of HEIGHTxWIDTH over the image, for large images.")]
Overlap = Annotated[float, typer.Option(help="Fraction of a window that the next one covers again.")]
Msc = Annotated[
    bool, typer.Option("--msc", help="DeepLab v2's multi-scale input: the maximum over scales 1, 0.75 and 0.5.")
]
Memory = Annotated[
    str | None,
    typer.Option(help="Most memory of the process, such as 2GiB or 1500MiB; larger images go through windows."),
]
Crf = Annotated[bool, typer.Option("--crf", help="Sharpen by a dense CRF, with DeepLab v2's parameters.")]
CrfSet = Annotated[
    list[str] | None,
    typer.Option(
        "--crf-set", metavar="NAME=VALUE", help="A CRF with another parameter, such as bi_rgb_std=5; repeatable."
    ),
]

Inspected = Annotated[
    str, typer.Argument(help="A model folder, run folder, recipe, run.json, or module:function of yours.")
]
InspectedImages = Annotated[
    list[str] | None, typer.Option("--images", help="An image, folder or pattern, in place of noise; repeatable.")
]
RandomWeights = Annotated[
    int | None, typer.Option("--random", metavar="SEED", help="Draw all weights at random, by this seed.")
]


class _Commands(TyperGroup):
    """A group that lists each of its commands with a whole sentence, where typer would cut it to one line."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for command in self.commands.values():
            command.short_help = command.get_short_help_str(limit=sys.maxsize)


class Command(TyperCommand):
    """A command that, where it takes settings, knows an option that is called like one: `--batch-size`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, with `UserError` for such an option."""
        known = {option for parameter in self.params for option in (*parameter.opts, *parameter.secondary_opts)}
        if "--set" in known and self.name != "convert":  # its settings are those of one network
            from degrid.config import RunConfig, path_of

            for option in (word.partition("=")[0] for word in args if word.startswith("--")):
                setting = None if option in known else path_of(RunConfig(), option[2:].replace("-", "_"))
                if setting:
                    raise UserError(f"no option {option}; it is a setting: --set {setting}=VALUE")
        return super().parse_args(ctx, args)


def group(**given: Any) -> typer.Typer:
    """A group of commands; further arguments as for `typer.Typer`."""
    return typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None, **given)


percent = functools.partial(lookup.percent, digits=2)
"""A fraction as percent with two decimals; a dash for None."""


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """A table on the console; but for so many columns at its left, numbers are at the right of theirs."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def inference_options(
    scales: str = "1",
    flip: bool = False,
    fusion: str = "mean",
    window: str | None = None,
    overlap: float = 0.5,
    crf: bool = False,
    crf_set: list[str] | None = None,
    memory: str | None = None,
    smooth: float = 0.0,
) -> InferenceOptions:
    """The test-time options of the command line as one value.

    Raises:
        UserError: a value of another form, or out of its range.
    """
    from degrid.engine.inference.options import InferenceOptions

    try:
        factors = tuple(float(part) for part in scales.split(","))
    except ValueError as error:
        raise UserError(
            f'--scales: expected numbers separated by commas, such as 0.75,1,1.25; got "{scales}"'
        ) from error
    size, limit = parse_size(window) if window else None, parse_bytes(memory, "--memory") if memory else None
    field = _crf(crf_set or []) if crf or crf_set else None
    return InferenceOptions(factors, flip, fusion, size, overlap, limit, field, smooth)


def _crf(values: list[str]) -> CRF:
    """A CRF with the parameters given as NAME=VALUE."""
    from degrid.kernels.crf_settings import CRF

    known: dict[str, Any] = {name: type(value) for name, value in dataclasses.asdict(CRF()).items()}
    given: dict[str, Any] = {}
    for value in values:
        name, _, number = value.partition("=")
        if name not in known:
            raise UserError(f'--crf-set: no parameter "{name}".{did_you_mean(name, known)} Known: {", ".join(known)}')
        try:
            given[name] = known[name](number)
        except ValueError as error:
            raise UserError(f'--crf-set: expected a number after "{name}=", got "{number}"') from error
    return CRF(**given)


_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {unit: _UNITS[f"{unit}IB"] for unit in "KMG"}


def parse_bytes(text: str, option: str) -> int:
    """ "2GiB" (or "2G") -> 2147483648 bytes.

    Raises:
        UserError: another form.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.I)
    if not found or found[2].upper() not in _UNITS:
        raise UserError(f'{option}: expected a size such as 2GiB or 500MiB, got "{text}"')
    return int(float(found[1]) * _UNITS[found[2].upper()])


def parse_size(text: str) -> tuple[int, int]:
    """ "512x1024" -> (512, 1024): height, width.

    Raises:
        UserError: another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f'expected a size like 512x1024 (height x width), got "{text}"')
    return int(parts[0]), int(parts[1])
