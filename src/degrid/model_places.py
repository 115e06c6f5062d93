"""Where models are: in a folder, in this package, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from degrid.lookup import in_a_line
from degrid.types import UserError

SHIPPED = "camvid-mobilenetv2"
"""The name of the model that comes with this package."""
HUB = "hf:"
"""The prefix of a model's name on the hub: hf:OWNER/NAME or hf:OWNER/NAME@REVISION."""
CARD, README = "card.json", "README.md"
MODEL_FILES = ("config.json", "model.safetensors", CARD, README)
"""The files of a published model; the last two describe it to people and to programs."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_on_hub(model: str | os.PathLike[str]) -> bool:
    """Whether it is the name of a model on the hub."""
    return os.fspath(model).startswith(HUB)


def shipped_folder(model: str | os.PathLike[str] = SHIPPED) -> Path | None:
    """The folder of the model of that name that comes with this package; None for any other, or a file here."""
    is_it = os.fspath(model) == SHIPPED and not Path(model).exists()
    return Path(__file__).parent / "shipped" / SHIPPED if is_it else None


def is_named(model: str | os.PathLike[str]) -> bool:
    """Whether a model is called by a name, and not by its path."""
    return is_on_hub(model) or shipped_folder(model) is not None


def place_of(model: str | os.PathLike[str]) -> Path:
    """The folder of a model that is called by a name, fetched if it is on the hub; any other path as it is.

    Raises:
        UserError: see `fetched`.
    """
    return shipped_folder(model) or (fetched(model) if is_on_hub(model) else Path(model))


def repository(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """ "hf:OWNER/NAME@REVISION" -> ("OWNER/NAME", "REVISION"); "hf:" and the revision may be left out.

    Raises:
        UserError: another form.
    """
    written = Path(name).as_posix() if isinstance(name, os.PathLike) else name
    found, at, revision = written.removeprefix(HUB).partition("@")
    if not _REPOSITORY.fullmatch(found) or (at and not revision):
        raise UserError(f'expected a model on the hub as OWNER/NAME or OWNER/NAME@REVISION, got "{written}"')
    return found, revision or None


def fetched(name: str | os.PathLike[str]) -> Path:
    """The folder of a model on the hub, in the cache of huggingface_hub; without a connection as it was fetched last.

    Raises:
        UserError: no such model, no permission or connection, or the package is not installed.
    """
    found, revision = repository(name)
    hub = hub_library()
    try:
        return Path(hub.snapshot_download(found, revision=revision, allow_patterns=list(MODEL_FILES)))
    except Exception as error:  # of a dozen kinds
        raise UserError(f"cannot fetch {found} from the hub: {why(error)}") from error


def hub_library() -> Any:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("models on the hub need huggingface_hub, which is missing: pip install degrid[hub]") from error
    return huggingface_hub


def why(error: Exception) -> str:
    """What huggingface_hub's error means, and what to do, in words.

    For users who are not logged in, the hub reports private repositories as missing.
    """
    from huggingface_hub import errors

    log_in = "log in by `hf auth login`, or set HF_TOKEN"
    at_fault = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    status = getattr(getattr(at_fault, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner restricts access; accept the terms on its page, and {log_in}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision; look for branches and tags on its page"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such repository, or it is private; check the name, or {log_in}"
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"the hub wants to know who you are; {log_in}"
    if status == 403:
        return "your token does not allow it; create one that does in your account settings"
    if status is not None:
        return f"the hub answers {status}; try again later"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "there is no connection, and it was not fetched before; connect, or give a folder"
    if isinstance(error, ConnectionError) or type(error).__module__.startswith("httpx"):
        return f"there is no connection ({type(error).__name__}); connect, and try again"
    return in_a_line(error)
