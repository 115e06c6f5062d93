"""Measure what networks of timm do as encoders: docs/encoders.csv, from which `make docs` makes docs/encoders.md.

python benchmarks/encoders.py             all networks of the file anew: 10 minutes on one core
python benchmarks/encoders.py NAME ...    these, which it adds to the file
"""

from __future__ import annotations

import copy
import csv
import sys
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from degrid.models.dilation import difference, randomise
from degrid.models.library_encoders import TimmEncoder
from degrid.models.strides import is_wide
from degrid.models.timm_networks import OUTPUT_STRIDES, TimmPlan, plan
from degrid.types import UserError

DATA = Path(__file__).resolve().parents[1] / "docs" / "encoders.csv"


@dataclass(frozen=True)
class Row:
    """A network of timm as an encoder; the columns of docs/encoders.csv.

    Attributes:
        family: timm's module.
        at_8, at_16, at_32: what gives that output stride: "timm", "degrid", "both", "network" (it has that stride
            without dilation), or "".
        strides: of the features, without dilation.
        multiple: sides of images are padded to a multiple of this; 0 if no output stride is possible.
        rates: of the convolutions wider than 1 at the smallest output stride; sorted.
        values: "yes", if the features at the smallest output stride have the values that they have without dilation,
            and more between them; "nearly", if some differ; "" without dilation.
        uniform: how many convolutions get a higher rate by uniform_rates at the smallest output stride, and all rates.
        multi_grid: how many factors it takes; 0 for none.
        weights: whether a file with timm's own state dict gives every tensor.
        reason: why a stride is not possible, where degrid was asked for the smallest that is not.
    """

    network: str
    family: str
    at_8: str = ""
    at_16: str = ""
    at_32: str = ""
    strides: str = ""
    multiple: int = 0
    rates: str = ""
    values: str = ""
    uniform: str = ""
    multi_grid: int = 0
    weights: str = ""
    reason: str = ""


def measure(name: str) -> Row:
    """The row of a network."""
    family = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    plans: dict[int, TimmPlan] = {}
    reason = ""
    for stride in OUTPUT_STRIDES:
        try:
            plans[stride] = plan(name, stride)
        except UserError as error:
            reason = reason or str(error).partition(": ")[2]
    found = {f"at_{stride}": made.dilated_by or "network" for stride, made in plans.items()}
    if not plans:
        return Row(name, family, reason=reason)
    smallest = min(plans)
    made = plans[smallest]
    with torch.device("meta"):
        plain, uniform = (_rates(TimmEncoder(name, smallest, uniform_rates=each).net) for each in (False, True))
    higher = sum(after != before for before, after in zip(plain, uniform, strict=True))
    return Row(
        name,
        family,
        **found,
        strides=" ".join(map(str, made.strides.features)),
        multiple=made.multiple,
        rates=_joined(plain),
        values=_values(made) if made.dilated_by else "",
        uniform=f"{higher} ({_joined(uniform)})" if made.dilated_by else "",
        multi_grid=_multi_grid(name, smallest) if made.dilated_by else 0,
        weights="yes" if _takes_weights(name, smallest) else "no",
        reason=reason,
    )


def _rates(net: Any) -> list[int]:
    return [max(module.dilation) for module in net.modules() if is_wide(module)]


def _joined(rates: list[int]) -> str:
    return " ".join(map(str, sorted(set(rates))))


def _values(made: TimmPlan) -> str:
    before = TimmPlan(**{**vars(made), "dilated_by": "", "corrected": {}}).build(3)
    randomise(before)
    after = made.build(3)
    randomise(after)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    return "nearly" if difference(before, after, made.reductions) else "yes"


def _multi_grid(name: str, stride: int) -> int:
    """The number of factors that multi_grid takes; 0 for none."""
    count = 1
    for _ in range(2):  # the message of the first attempt says how many units there are
        try:
            with torch.device("meta"):
                TimmEncoder(name, stride, multi_grid=(1,) * count)
        except UserError as error:
            number = str(error).rpartition(" ")[2]
            count = int(number) if number.isdigit() else 0
        else:
            return count
    return 0


def _takes_weights(name: str, stride: int) -> bool:
    state = timm.create_model(name).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file({key: value.clone().contiguous() for key, value in state.items()}, file)
        try:
            own = TimmEncoder(name, stride, pretrained=str(file)).net.state_dict()
        except UserError:
            return False
    given = {key.replace(".", "_"): value for key, value in state.items()}
    names = {key: key.removeprefix("model.").removeprefix("body.").replace(".", "_") for key in own}
    return all(torch.equal(value, given[names[key]]) for key, value in own.items())


def read() -> dict[str, Row]:
    """The rows of docs/encoders.csv by network."""
    with DATA.open(newline="") as file:
        rows = [Row(**{**row, "multiple": int(row["multiple"]), "multi_grid": int(row["multi_grid"])})
                for row in csv.DictReader(file)]  # fmt: skip
    return {row.network: row for row in rows}


def write(rows: dict[str, Row]) -> None:
    """Write docs/encoders.csv."""
    with DATA.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows.values(), key=lambda row: (row.family, row.network)))


def main() -> None:
    """Measure the networks of the file, or those named on the command line, and write the file after each."""
    rows = read()
    for name in sys.argv[1:] or list(rows):
        sys.stderr.write(f"{name}\n")
        rows[name] = measure(name)
        write(rows)


if __name__ == "__main__":
    main()
