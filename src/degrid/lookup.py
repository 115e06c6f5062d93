"""Find a part by name: a row of a table, or "package.module:attribute" of the user's own."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from degrid.types import UserError

K = TypeVar("K")
T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' with the closest known name, in whatever case, or '' if none is close."""
    names = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    return f' Did you mean "{names[close[0]]}"?' if close else ""


def file_meant(path: Path) -> str:
    """`did_you_mean` for a path that does not exist, among the files and folders beside it."""
    try:
        beside = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    found = did_you_mean(path.name, beside)
    return found.replace('"', f'"{path.parent}{os.sep}', 1) if found and path.parent != Path() else found


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error that there is no such name, with the closest one and all that are known."""
    known = list(known)
    return UserError(f'unknown {kind} "{name}".{did_you_mean(name, known)} Known: {", ".join(known)}')


def in_a_line(error: BaseException) -> str:
    """What an error of another library says: its kind, and the first line of its message."""
    first = shortened(str(error).strip().partition("\n")[0].rstrip(". "))
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def shortened(text: str, most: int = 160) -> str:
    """Text in one line; what is longer than `most` letters ends after a whole word, with an ellipsis."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return f"{line[:most].rpartition(' ')[0] or line[:most]} ..."


def some(names: Iterable[object], count: int = 4) -> str:
    """The first names, with ", ..." where there are more: "a, b, c, d, ..."."""
    words = [str(name) for name in names]
    return ", ".join(words[:count]) + ", ..." * (len(words) > count)


def grouped(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """The second of each pair by the first, both in the order of the pairs."""
    found: dict[K, list[T]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def flat(settings: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Settings as plain values by their paths, such as "train.steps"; empty tables are left out."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{where}.{name}".lstrip(".")
        found |= flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def counted(number: int, noun: str, verb: str = "") -> str:
    """A number with its noun, and the verb that goes with it: "1 image has", "2,000 images have", "3 classes".

    Args:
        verb: in the plural, such as "have", "are" or "belong"; empty for none.
    """
    if number == 1:
        singular = {"have": "has", "are": "is"}.get(verb, f"{verb}s" if verb else "")
        return f"1 {noun} {singular}".rstrip()
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'} {verb}".rstrip()


def percent(value: float | None, digits: int = 1) -> str:
    """0.5 as "50.0"; "-" for what is not known or not finite."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def markdown_table(*lines: Sequence[str]) -> str:
    """A table of Markdown: the heads, how each column is aligned ("---"), and the rows."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def loaded(module: str, name: str) -> tuple[type, ...]:
    """The class of that name, for `isinstance`; none where the program has not loaded the module, which may be slow."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """The row called `name`, or the attribute that "package.module:attribute" names.

    Modules are also found in the working directory.

    Args:
        kind: what is looked up, in words for the message ("smoothing operator").
    Raises:
        UserError: no such row, module or attribute; the message lists the rows and the closest one.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return _import(name, kind)  # type: ignore[return-value]
    raise UserError(f'{unknown(kind, name, table)}; your own: "module:Name"')


def keywords(make: Callable[..., object]) -> tuple[str, ...]:
    """The names of the arguments that a function or class has a parameter for; "**" if it takes any others too."""
    parameters = _parameters(make)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [parameter.name for parameter in parameters if parameter.kind in kinds]
    return (*named, *("**" for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD))


def _parameters(make: Callable[..., object]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(make).parameters.values())
    except ValueError:  # some built-in functions have no signature
        return []


def _required(make: Callable[..., object]) -> list[str]:
    free = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [each.name for each in _parameters(make) if each.default is each.empty and each.kind not in free]


def settings_for(
    make: Callable[..., object], settings: Mapping[str, object], options: Mapping[str, object], what: str
) -> dict[str, object]:
    """Keyword arguments for a part: those of the settings that apply to it, and all options.

    Args:
        make: the function or class that makes the part.
        settings: each applies, and is passed, if `make` has a parameter of that name.
        options: chosen for this very part, so that it must take each of them.
        what: the part in words for the message, such as 'optimiser "sgd"'.
    Raises:
        UserError: an option that the part does not take.
    """
    known = keywords(make)
    for option in options:
        if option not in known and "**" not in known:
            hint = f"{did_you_mean(option, known)} It takes: {', '.join(known) or 'none'}"
            raise UserError(f'{what} has no option "{option}".{hint}')
    return {**{key: value for key, value in settings.items() if key in known}, **options}


def make_part(make: Callable[..., T], settings: Mapping[str, object], options: Mapping[str, object], what: str) -> T:
    """What a part's function or class makes of `settings_for` it.

    Raises:
        UserError: an option that the part does not take, a value that it does not accept, or an argument that it needs
            and nobody gives.
    """
    given = settings_for(make, settings, options, what)
    if missing := [name for name in _required(make) if name not in given]:
        raise UserError(f"{what} needs {', '.join(missing)}, which its options do not give")
    try:
        return make(**given)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and not options:  # not the user's type error, but a mistake in the part
            raise
        values = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise UserError(f"{what} does not accept {values}: {error}") from error


def _import(name: str, kind: str) -> object:
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise UserError(f'{kind} "{name}": no module "{module_name}" here ({here}) or on the Python path') from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [key for key in vars(module) if not key.startswith("_")])
        raise UserError(f'{kind} "{name}": module "{module_name}" has no "{attribute}".{hint}')
    result: object = getattr(module, attribute)
    return result
