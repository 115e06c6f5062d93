"""Write the API pages: every public module, from the docstrings.

python docs/api.py build/docs

Fails on a module that cannot be imported, on any warning of pdoc, and on a docstring that documents an argument its
function does not have or mentions a `degrid...` name that does not exist.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import degrid

PRIVATE = re.compile(r".*(_numba|__main__)")  # numba modules need numba, and each has a public twin
NAME = re.compile(r"`(degrid(?:\.\w+)+)`")


def public_modules() -> list[str]:
    """Names of all modules that get a page."""
    found = [name for _, name, _ in pkgutil.walk_packages(degrid.__path__, "degrid.")]
    return ["degrid", *(name for name in found if not PRIVATE.fullmatch(name))]


def resolve(name: str) -> object:
    """The module, class, function or attribute called `name`, such as "degrid.types.Sample.image".

    Raises:
        AttributeError: there is none.
    """
    value: object = degrid
    for part in name.split(".")[1:]:
        if isinstance(value, type) and part in {key for kind in value.__mro__ for key in inspect.get_annotations(kind)}:
            value = None  # a field without a default exists on instances only
        elif hasattr(value, part):
            value = getattr(value, part)
        elif isinstance(value, ModuleType):
            try:
                value = importlib.import_module(f"{value.__name__}.{part}")
            except ModuleNotFoundError:
                raise AttributeError(name) from None
        else:
            raise AttributeError(name)
    return value


def _documented(module: ModuleType) -> Iterator[tuple[str, object]]:
    """A module and its own classes, methods and functions, by name."""
    yield module.__name__, module
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and isinstance(value, type):
            yield f"{module.__name__}.{name}", value
            for key, member in vars(value).items():
                if inspect.isfunction(member):
                    yield f"{module.__name__}.{name}.{key}", member
        elif getattr(value, "__module__", None) == module.__name__ and inspect.isfunction(value):
            yield f"{module.__name__}.{name}", value


def _arguments(text: str) -> list[str]:
    """Names that the "Args:" section of a docstring explains."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", text, re.MULTILINE)
    if section is None:
        return []
    lines = section[1].splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    rows = [re.match(r"([\w*]+(?:, [\w*]+)*): ", line[indent:]) for line in lines]
    return [name.lstrip("*") for row in rows if row for name in row[1].split(", ")]


def faults(module: ModuleType) -> list[str]:
    """What is wrong with the docstrings of a module, one sentence each."""
    found = []
    for name, value in _documented(module):
        text = inspect.getdoc(value) or ""
        if _arguments(text):
            parameters = inspect.signature(value).parameters
            free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
            found += [
                f"{name}: documents an argument {argument} that it does not have"
                for argument in _arguments(text)
                if argument not in parameters and not free
            ]
        for reference in NAME.findall(text):
            try:
                resolve(reference)
            except AttributeError:
                found.append(f"{name}: names {reference}, which does not exist")
    return found


def main(out: Path) -> None:
    """Check all docstrings, and write the pages."""
    import pdoc
    import pdoc.render

    warnings.simplefilter("error")
    # The inherited fields of a dataclass name types that only its base's module imports; mypy checks annotations.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    names = public_modules()
    modules = [importlib.import_module(name) for name in names]
    problems = [fault for module in modules for fault in faults(module)]
    if problems:
        sys.exit("\n".join(problems))
    for module in modules:  # so that the page of a package lists its modules beside the names that it exports
        if hasattr(module, "__all__"):
            for name in module.__all__:  # those that are loaded when first used count as members only afterwards
                getattr(module, name)
            prefix = f"{module.__name__}."
            inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            module.__all__ = [*module.__all__, *(name for name in inside if "." not in name)]
    pdoc.render.configure(docformat="google", footer_text=f"degrid {degrid.__version__}")
    pdoc.pdoc("degrid", f"!{PRIVATE.pattern}", output_directory=out)
    print(f"{len(names)} API pages: {out / 'index.html'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
