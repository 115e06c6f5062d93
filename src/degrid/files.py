"""Write files so that a reader never sees half of one: under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from degrid.types import UserError


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where missing.

    Raises:
        UserError: a file has that name, or the place cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {_reason(error) or error.strerror}; choose another") from error


def check_place(path: Path) -> None:
    """Refuse, before long work, a file in a folder that could not be made or written to. Makes nothing.

    Raises:
        UserError: a part of the path is a file, or permission is denied.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"cannot make the folder {path.parent}: {above} is a file; choose another")
    if not os.access(above, os.W_OK):
        raise UserError(f"cannot write to the folder {above}: permission denied; choose another")


def check_utf8(path: Path) -> None:
    """Refuse the name of a model or run that the libraries which write and read those cannot take.

    Raises:
        UserError: a part of the path is not UTF-8.
    """
    if printable(str(path)) != str(path):
        raise UserError(f"the name {path} is not UTF-8, which models and runs need; rename it, or choose another")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to `path` on success, remove it on any failure.

    Whatever goes wrong, the old file at `path` stays as it was. Parent folders are made.

    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    target = Path(path)
    temporary: Path | None = None
    make_folder(target.parent)
    with explained(target):
        try:
            start = os.fsdecode(os.fsencode(target.name)[:_MOST_OF_NAME])  # a name may be as long as names can be
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{start}.", suffix=".tmp")
            os.close(handle)
            temporary = Path(name)
            yield temporary
            # mkstemp makes private files; set the permissions of an ordinary open().
            temporary.chmod(0o666 & ~file_mask())
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            raise


DAMAGE: tuple[type[Exception], ...] = (AttributeError, LookupError, TypeError, ValueError, OverflowError)
"""Errors that the values of a damaged or foreign file can raise."""


@contextlib.contextmanager
def blaming(what: str, *more: type[Exception]) -> Iterator[None]:
    """Say what was expected where the values read from a file have another form.

    Args:
        what: the file, and what was expected; with a colon at its end where the reason follows as part of the sentence.
        more: what else the body raises for such values.
    Raises:
        UserError: `what`, and what was found wrong.
    """
    try:
        yield
    except UserError:
        raise
    except DAMAGE + more as error:
        found = str(error) if type(error) is ValueError and error.args else repr(error)  # worded by the reader
        raise UserError(f"{what} {found}" if what.endswith(":") else f"{what} ({found})") from error


@contextlib.contextmanager
def explained(target: Path, kept: str = "what was there before is unchanged") -> Iterator[None]:
    """Say in one sentence why a file could not be written; the body leaves what was there before as it is.

    Args:
        kept: what is not lost, for the end of the sentence.
    Raises:
        UserError: the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise UserError(f"could not write {target}: {reason}; {kept}") from error


def kept_on_disk(key: Sequence[str], make: Callable[[], Any]) -> Any:
    """What a call gave when it was made with this key before, by any process; plain values, as JSON keeps them.

    They lie in degrid/ in $XDG_CACHE_HOME, or in ~/.cache. Where that cannot be written to, the call is made each time.

    Args:
        key: all that the values depend on, the versions of the code that makes them included.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
    file = Path(base, "degrid", f"{digest[:32]}.json")
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    values = make()
    with contextlib.suppress(OSError, UserError):
        write_json(file, values)
    return values


def walk(folder: Path, hidden: bool = False) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Each folder from this one down, with its files. Links to folders are followed, but never round in circles.

    Folders that cannot be read are passed over.

    Args:
        hidden: hidden files and folders, and those that macOS adds to archives, are wanted, too.
    """
    return _walk(folder, hidden, ())


def _walk(folder: Path, hidden: bool, above: tuple[str, ...]) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    above = (*above, os.path.realpath(folder))
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if hidden or not entry.name.startswith((".", "__MACOSX"))]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    folders = [entry for entry in entries if entry.is_dir()]
    yield folder, [entry for entry in entries if not entry.is_dir()] if folders else entries
    for entry in folders:
        if not (entry.is_symlink() and os.path.realpath(entry.path) in above):
            yield from _walk(Path(entry.path), hidden, above)


def printable(name: str) -> str:
    """The name of a file as text that can be written and shown anywhere.

    Bytes that are no UTF-8, as in names from archives of other systems, become \\udcXX. In a JSON string they are read
    back as they were, so that `open` finds the file.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically; see `printable` for names in it that are no UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any, indent: int | None = 2) -> None:
    """Write JSON atomically, indented or on one line."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def read_text(file: Path, kind: str = "") -> str:
    """Read a UTF-8 text file, with or without the byte order mark that Windows programs write.

    Args:
        kind: what the file is meant to be, for the message ("model config").
    Raises:
        UserError: the file is missing or has another encoding.
    """
    said = f"the {kind} {file}" if kind else file
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise UserError(f"{said} is not UTF-8 text (it has null bytes); save it as UTF-8")
        return text
    except UnicodeDecodeError as error:
        raise UserError(f"{said} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {said}: {error.strerror}") from error


def parse_json(text: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        object_hook: see `json.loads`.
    Raises:
        ValueError: it is not JSON, or lists and tables are nested too deep in it.
    """
    try:
        return json.loads(text, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError("lists or tables are nested too deep") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML, a key is there twice, or it is nested too deep, or by its references (*name) larger
            than any real one.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            if twice := [key for key, number in keys.items() if number > 1 and key != "<<"]:
                raise yaml.YAMLError(f'the key "{twice[0]}" is there twice')
            return super().construct_mapping(node, deep)

    try:
        value = yaml.load(text, Loader)
        if _size(value, {}) > _MOST_VALUES:
            raise ValueError("its references stand for too much")
    except RecursionError as error:
        raise ValueError("lists or tables are nested too deep, or contain themselves") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return value


_MOST_VALUES = 10_000_000


def _size(value: Any, known: dict[int, int]) -> int:
    """The number of values inside a value; repeated ones are counted each time."""
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def read_json(path: str | os.PathLike[str], kind: str = "") -> Any:
    """The content of a JSON file.

    Args:
        kind: see `read_text`.
    Raises:
        UserError: it is missing, cut short, or no JSON.
    """
    text = read_text(Path(path), kind)
    try:
        return parse_json(text)
    except ValueError as error:
        said = f"the {kind} {path}" if kind else path
        raise UserError(f"{said} is not valid JSON, or cut short: {error}") from error


def file_mask() -> int:
    """The permissions that new files and folders do not get."""
    current = os.umask(0)
    os.umask(current)
    return current


_MOST_OF_NAME = 100  # bytes of the name of a temporary file
_REASONS = {
    errno.ENAMETOOLONG: "its name is too long",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "a file of that name is there",
    errno.EISDIR: "a folder of that name is there",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EFBIG: "the file would be larger than allowed",
}


def _reason(error: BaseException | None) -> str | None:
    """Why a write failed, looking through wrappers: some libraries raise their own type from an OSError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REASONS:
            return _REASONS[error.errno]
        # torch.save and safetensors report a failed write in words only.
        if "No space left" in str(error) or "PytorchStreamWriter failed writing" in str(error):
            return _REASONS[errno.ENOSPC]
        error = error.__cause__ or error.__context__
    return None
