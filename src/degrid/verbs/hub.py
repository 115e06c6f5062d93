"""Publish models with a card, and fetch published ones, through the Hugging Face hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from degrid.arguments import checked
from degrid.files import check_place, explained, make_folder
from degrid.lookup import counted
from degrid.model_folder import check_foreign, load, save
from degrid.model_places import CARD, HUB, MODEL_FILES, fetched, hub_library, is_named, repository, why
from degrid.models import Segmenter
from degrid.types import OnProgress, Scores, UserError
from degrid.verbs.evaluate import evaluate
from degrid.verbs.model_card import CardText, scores_of, training_of, validated, write_card


@checked
def pack(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    half: bool = False,
    data: str = "",
    split: str = "test",
    text: CardText | None = None,
    name: str = "",
    progress: OnProgress | None = None,
) -> Path:
    """Write a model folder to give away: the model of a run with card.json and README.md, which are made automatically.

    The card has the classes, the command, times and machine of the training, scores, and the size and hash of the file.

    Args:
        model: a model folder or run folder.
        out: a new folder.
        half: weights in float16, see `degrid.save`.
        data: a dataset whose `split` the model is scored on, in float32 and as written; by default the card has the
            best validation of the run.
        text: what only you know: purpose, licence, limits.
        name: by which the model will be called; by default that of the folder.
        progress: called after each image.
    Returns:
        The folder.
    Raises:
        UserError: no model, a folder that is not empty, or data that cannot be scored.
    """
    folder = Path(out)
    _check_new(folder)
    network = load(model)
    save(network, folder, half=half)
    run = Path(model).parent if Path(model).name == "model" else Path(model)
    forms: dict[str, Scores] = {}
    if data:
        forms["float32"] = evaluate(model, data, split, progress=progress)
        if half:
            forms["float16"] = evaluate(folder, data, split, progress=progress)
    scores = scores_of(data, split, forms) if forms else validated(run)
    write_card(folder, name or folder.name, text or CardText(), training_of(run), scores)
    return folder


@checked
def push_to_hub(
    model: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    half: bool = False,
    data: str = "",
    split: str = "test",
    text: CardText | None = None,
    progress: OnProgress | None = None,
) -> str:
    """Put a model on the Hugging Face hub, for which you log in first: `hf auth login`, or HF_TOKEN.

    Args:
        model: a folder that `pack` wrote, which is sent as it is; or any model folder or run folder, which is packed
            first.
        repo: OWNER/NAME, or OWNER/NAME@BRANCH for an existing branch; a missing repository is created.
        private: make it private.
        half, data, split, text, progress: see `pack`.
    Returns:
        The address of the page.
    Raises:
        UserError: no model, or the hub does not accept it.
    """
    found, revision = repository(repo)
    hub = hub_library()
    with TemporaryDirectory() as place:
        folder = Path(model)
        if not (folder / CARD).is_file():
            folder = Path(place, found.rpartition("/")[2])
            pack(model, folder, half=half, data=data, split=split, text=text, name=HUB + found, progress=progress)
        elif half or data or text:
            raise UserError(f"{folder} is packed already, and is sent as it is; give only its repository")
        load(folder)
        api = hub.HfApi(library_name="degrid")
        try:
            page = api.create_repo(found, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=found,
                folder_path=folder,
                allow_patterns=list(MODEL_FILES),
                revision=revision,
                commit_message="Model by degrid",
            )
        except Exception as error:  # of a dozen kinds
            raise UserError(f"cannot push to {found}: {why(error)}") from error
    return str(page)


@checked
def pull(repo: str, out: str | os.PathLike[str] | None = None) -> Path:
    """Copy a model from the hub into a folder. Nothing in it is run, and a model that needs code of its own is refused.

    Args:
        repo: OWNER/NAME, or OWNER/NAME@REVISION.
        out: a new folder; by default NAME.
    Returns:
        The folder.
    Raises:
        UserError: there is no such model, or the folder is not empty.
    """
    found, _ = repository(repo)
    folder = Path(out) if out is not None else Path(found.rpartition("/")[2])
    _check_new(folder)
    place = fetched(repo)
    check_foreign(place, found)
    make_folder(folder)
    with explained(folder):
        for name in MODEL_FILES:
            if (place / name).is_file():
                shutil.copyfile(place / name, folder / name)
    return folder


@checked
def from_pretrained(model: str | os.PathLike[str]) -> Segmenter:
    """The network of a folder or of a model on the hub, in evaluation mode.

    Args:
        model: a model folder, run folder or name as for `degrid.load`; else OWNER/NAME, or OWNER/NAME@REVISION.
    Raises:
        UserError: see `degrid.load`.
    """
    here = is_named(model) or Path(model).exists()
    return load(model if here else f"{HUB}{Path(model).as_posix()}")


def _check_new(folder: Path) -> None:
    """Refuse, before long work, a folder that holds something, or cannot be made."""
    check_place(folder / CARD)
    if folder.is_dir() and (count := len(list(folder.iterdir()))):
        raise UserError(f"{folder} holds {counted(count, 'file')} already; choose a new folder")
