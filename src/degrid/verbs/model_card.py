"""What a published model says about itself: card.json for programs, and the README.md made from it for people."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from degrid.arguments import check_fields
from degrid.files import parse_json, read_json, write_json, write_text
from degrid.lookup import markdown_table, percent
from degrid.model_places import CARD, README
from degrid.types import Scores
from degrid.version import VERSION

CARD_FORMAT = "degrid card 1"
_FIGURES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "boundary_iou": "boundary IoU",
}
_FOLDERS = re.compile(r"(?<![\w.:/-])/(?:[^\s/=,'\"]+/)+")
"""The folders in an absolute path: they describe one machine, and mean nothing elsewhere."""


@dataclass(frozen=True)
class CardText:
    """What only the maker of a model knows.

    Attributes:
        purpose: what the model is for, as in "for street scenes by day".
        license: of the weights, as the hub spells it, such as "apache-2.0".
        about: Markdown, with headings from ##: the data and its licence, limits, ...
    """

    purpose: str = ""
    license: str = ""
    about: str = ""

    def __post_init__(self) -> None:
        check_fields(self)


def write_card(folder: Path, name: str, text: CardText, training: Any, scores: Any) -> None:
    """Write card.json and README.md beside the config.json and model.safetensors of a folder.

    Args:
        name: by which the model is called on the command line.
        training: see `training_of`; None where nothing is known.
        scores: see `scores_of`; None where there are none.
    Raises:
        UserError: the folder cannot be read or written to.
    """
    config = read_json(folder / "config.json", "model config")
    weights = folder / "model.safetensors"
    facts = {
        "format": CARD_FORMAT,
        "degrid": VERSION,
        "name": name,
        "purpose": text.purpose,
        "license": text.license,
        "network": f"{config['model']['network']} on {config['model']['encoder']}, output stride "
        f"{config['model']['output_stride']}, {config['model']['smoothing']['operator']} dilated convolutions",
        "classes": [row["name"] for row in config["classes"]],
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "scores": scores,
        "training": training,
        "about": text.about.strip(),
    }
    write_json(folder / CARD, facts)
    write_text(folder / README, readme(facts))


def training_of(run: Path) -> dict[str, Any] | None:
    """How the model of a run folder was trained: command, begin, end, machine and versions; None without run.json.

    Raises:
        UserError: run.json is damaged.
    """
    if not (run / "run.json").is_file():
        return None
    record = read_json(run / "run.json", "record of a run")
    program, _, words = str(record.get("command", "")).partition(" ")
    command = f"{'degrid' if program.endswith('__main__.py') else program} {words}"
    machine = dict(record.get("machine") or {})
    if "system" in machine:
        machine["system"] = str(machine["system"]).partition("-")[0]  # the rest names the kernel of one computer
    return {
        "command": _FOLDERS.sub("", command).strip(),
        "began": record.get("date"),
        "ended": _last_date(run / "log.txt"),
        "machine": machine,
        "versions": record.get("versions"),
    }


def scores_of(data: str, split: str, forms: Mapping[str, Scores]) -> dict[str, Any]:
    """Scores of a model on data, by the form of its weights, such as "float32" and "float16"."""
    return {
        "data": Path(data).name,
        "split": split,
        "images": next(iter(forms.values())).num_images,
        "forms": {
            form: {key: getattr(found, key) for key in _FIGURES}
            | {"class_iou": dict(zip(found.class_names, found.class_iou, strict=True))}
            for form, found in forms.items()
        },
    }


def validated(run: Path) -> dict[str, Any] | None:
    """The best validation that a run has on record, as `scores_of` gives it; None where there is none."""
    best: dict[str, Any] | None = None
    with contextlib.suppress(OSError, ValueError):
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found = parse_json(line).get("val")
            if found and (best is None or found["miou"] > best["miou"]):
                best = found
    if best is None:
        return None
    data = read_json(run / "run.json", "record of a run")["config"]["data"]
    figures = {key: best[key] for key in (*_FIGURES, "class_iou") if key in best}
    return {"data": Path(data["path"]).name, "split": data["val"], "images": None, "forms": {"float32": figures}}


def readme(facts: Mapping[str, Any]) -> str:
    """README.md, as card.json has the facts: a head that the hub reads, and the card."""
    parts = [
        f"---\n{yaml.safe_dump(_head(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts['name'].removeprefix('hf:')}",
        f"Semantic segmentation{f' of {purpose}' if (purpose := facts['purpose']) else ''}, trained with degrid "
        f"{facts['degrid']}: {facts['network']}. Classes: {', '.join(facts['classes'])}.",
        f"```bash\ndegrid predict {facts['name']} photos/     # class ids and overlays into predictions/\n```",
        f'From Python: `degrid.Predictor(degrid.load("{facts["name"]}"))("photo.jpg")`, uint8 [H,W].',
        *([_table(facts["scores"])] if facts["scores"] else []),
        *([facts["about"]] if facts["about"] else []),
        *([_training(facts["training"])] if facts["training"] else []),
        f"## File\n\n`model.safetensors`, {facts['bytes']:,} bytes, sha256 `{facts['sha256']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model card on the hub."""
    network = facts["network"].split()[0].rstrip(",")
    head: dict[str, Any] = {
        "library_name": "degrid",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "dilated-convolutions", network],
        "metrics": ["mean_iou"],
    }
    if facts["license"]:
        head["license"] = facts["license"]
    if facts["scores"]:
        scores = facts["scores"]
        miou = round(100 * list(scores["forms"].values())[-1]["miou"], 2)
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {"name": scores["data"], "type": scores["data"], "split": scores["split"]},
            "metrics": [{"type": "mean_iou", "value": miou, "name": "mIoU, %"}],
        }
        head["model-index"] = [{"name": facts["name"].removeprefix("hf:"), "results": [result]}]
    return head


def _table(scores: Mapping[str, Any]) -> str:
    """The scores per class and overall, in percent, a column for each form of the weights."""
    forms = scores["forms"]
    rows = [
        *(
            [label, *(percent(form[key], 2) for form in forms.values())]
            for key, label in _FIGURES.items()
            if all(form.get(key) is not None for form in forms.values())
        ),
        *(
            [f"IoU of {name}", *(percent(form["class_iou"][name], 2) for form in forms.values())]
            for name in next(iter(forms.values()))["class_iou"]
        ),
    ]
    images = f", {scores['images']:,} images, each whole and once" if scores["images"] else ", during training"
    table = markdown_table(["%", *forms], ["---"] * (1 + len(forms)), *rows)
    return f"## Scores\n\n{scores['data']}, {scores['split']}{images}:\n\n{table}"


def _training(training: Mapping[str, Any]) -> str:
    told = {
        "began": training["began"],
        "ended": training["ended"],
        "machine": _listed(training["machine"]),
        "versions": _listed(training["versions"]),
    }
    lines = "\n".join(f"- {key}: {value}" for key, value in told.items() if value)
    return f"## Training\n\n```bash\n{training['command']}\n```\n\n{lines}"


def _listed(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (values or {}).items())


def _last_date(log: Path) -> str | None:
    """The date of the last line of log.txt that has one."""
    with contextlib.suppress(OSError):
        found = re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", log.read_text(encoding="utf-8"), re.M)
        return found[-1] if found else None
    return None
