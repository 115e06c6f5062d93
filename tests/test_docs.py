"""The pages name nothing that does not exist: links, files, Python names, settings, commands, options, make targets."""

import ast
import functools
import importlib
import inspect
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import typer.main

from degrid import recipes
from degrid.cli import app
from degrid.config import RunConfig, to_dict
from degrid.data.formats import description

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCE = ROOT / "src" / "degrid"

sys.path.insert(0, str(ROOT / "docs"))
import api  # noqa: E402  (docs/api.py writes the API pages)


@functools.cache
def commands():
    """All commands, as click has them."""
    return typer.main.get_command(app)


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """Pieces of inline code; a line break inside counts as a space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def anchor(title: str) -> str:
    """The fragment that GitHub makes of a heading."""
    title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {anchor(title) for title in re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)}


def broken_links(file: Path, text: str) -> list[str]:
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?://", target):
            continue
        path, _, fragment = target.partition("#")
        place = (file.parent / path).resolve() if path else file
        if not place.exists() or (fragment and fragment not in anchors(place.read_text())):
            found.append(target)
    return found


def missing_files(text: str) -> list[str]:
    """Files that inline code names, relative to the repository, its docs or the package."""
    named = {span for span in spans(text) if re.fullmatch(r"(\w+/)+[\w.]+\.(py|md|sh|toml)", span)}
    return sorted(name for name in named if not any((base / name).exists() for base in (ROOT, SOURCE)))


def dead_names(text: str) -> list[str]:
    """Dotted names below `degrid` that cannot be resolved."""
    code = "\n".join([*spans(text), *blocks(text, "python")])
    dead = []
    for name in sorted(set(re.findall(r"(?<![\w/.\"])degrid(?:\.[A-Za-z]\w*)+", code))):
        try:
            api.resolve(name)
        except AttributeError:
            dead.append(name)
    return dead


def dead_imports(text: str) -> list[str]:
    """`from degrid.x import y` in Python blocks that would fail."""
    dead = []
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "degrid":
                module = importlib.import_module(node.module)
                dead += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
    return dead


def wrong_arguments(text: str) -> list[str]:
    """Keyword arguments, in calls of degrid's functions and classes, that these do not have."""
    wrong = []
    for code in [*blocks(text, "python"), *spans(text)]:
        try:
            tree = ast.parse(code.replace("..", "...") if "\n" not in code and "..." not in code else code)
        except SyntaxError:
            continue  # a span that is no Python
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if not re.fullmatch(r"degrid(\.\w+)+", name):
                continue
            try:
                parameters = inspect.signature(api.resolve(name)).parameters.values()
            except AttributeError:
                continue  # `dead_names` reports it
            known = {parameter.name for parameter in parameters}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                wrong += [f"{name}({each.arg}=)" for each in call.keywords if each.arg and each.arg not in known]
    return wrong


def unknown_settings(text: str) -> list[str]:
    """Settings, such as train.steps in inline code or in `--set train.steps=..`, that the config does not have."""
    groups = to_dict(RunConfig())
    code = "\n".join([*spans(text), *blocks(text, "bash")])
    named = re.findall(r"(?<![\w./:])((?:model|data|optim|train)(?:\.[a-z_]+)+)=", code)
    named += [
        span
        for span in spans(text)
        if re.fullmatch(r"(model|data|optim|train)\.(?!txt|md|json|yaml|safetensors)\w+(\.\w+)?", span)
    ]
    return sorted({name for name in named if not _has(groups, name.split("."))})


def _has(node: object, parts: list[str]) -> bool:
    if not parts or node == {}:  # the options of an operator are free
        return True
    return isinstance(node, dict) and parts[0] in node and _has(node[parts[0]], parts[1:])


def unknown_targets(text: str) -> set[str]:
    """Targets of make that the Makefile does not have."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    code = "\n".join([*spans(text), *blocks(text, "bash")])
    return set(re.findall(r"^make ([a-z-]+)", code, flags=re.MULTILINE)) - targets


def command_lines(text: str) -> list[list[str]]:
    """The words of every line that calls degrid, in bash blocks and in inline code."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    lines += spans(text)
    calls = [shlex.split(line.replace("..", ""), comments=True) for line in lines if line.startswith("degrid ")]
    return [words[1:] for words in calls if words[1:] and not words[1].isupper()]


def faults_of_command(words: list[str]) -> list[str]:
    """Commands, options and recipes in a call of degrid that do not exist."""
    command, used = commands(), []
    while hasattr(command, "commands") and words:
        name, *words = words
        if name.startswith("-"):
            words = [name, *words]
            break
        used.append(name)
        if name not in command.commands:
            return [f"no command: degrid {' '.join(used)}"]
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    faults = [
        f"degrid {' '.join(used)} has no {word.partition('=')[0]}"
        for word in words
        if re.match(r"--?[A-Za-z]", word) and word.partition("=")[0] not in {*known, "--help"}
    ]
    if used == ["train"] and words and re.fullmatch(r"[a-z_0-9]+", words[0]) and words[0] not in recipes.RECIPES:
        faults.append(f"no recipe: {words[0]}")
    return faults


FAULTS = {
    "links": broken_links,
    "files": lambda file, text: missing_files(text),
    "names": lambda file, text: dead_names(text),
    "imports": lambda file, text: dead_imports(text),
    "arguments": lambda file, text: wrong_arguments(text),
    "settings": lambda file, text: unknown_settings(text),
    "commands": lambda file, text: [fault for words in command_lines(text) for fault in faults_of_command(words)],
    "targets": lambda file, text: unknown_targets(text),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_the_pages_name_exists(kind):
    faults = [f"{file}: {fault}" for file in PAGES for fault in FAULTS[kind](file, file.read_text())]
    assert not faults, "\n".join(faults)


def all_commands() -> dict[str, str]:
    """The help text of every command, by its words."""
    found, waiting = {}, {"": commands()}
    while waiting:
        words, command = waiting.popitem()
        if hasattr(command, "commands"):
            waiting |= {f"{words} {name}".strip(): inner for name, inner in command.commands.items()}
        else:
            found[words] = command.help
    return found


def test_every_command_has_examples_that_exist():
    for words, text in all_commands().items():
        examples = [line.strip().split("   ")[0] for line in text.splitlines() if line.strip().startswith("degrid ")]
        assert any(example.startswith(f"degrid {words}") for example in examples), words
        assert [fault for example in examples for fault in faults_of_command(shlex.split(example)[1:])] == [], words


def test_lists_of_commands_cut_no_sentence():
    for group in (commands(), commands().commands["data"], commands().commands["hub"]):
        with group.make_context("degrid", ["--help"], resilient_parsing=True) as context:
            listed = group.get_help(context).split("Commands:")[1]
        assert all(f"\n  {name} " in listed for name in group.commands)
        assert "..." not in listed


def test_commands_of_recipes_exist():
    for name, recipe in recipes.RECIPES.items():
        command = re.search(r"Command: (degrid .*)", recipe.__doc__)[1]
        assert faults_of_command(shlex.split(re.sub(r"[\[\]]", "", command))[1:]) == [], name


def test_the_file_map_shows_every_room():
    drawn = re.search(r"^src/degrid/\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)[1]
    lines = [line for line in drawn.splitlines() if not line.startswith("│")]  # the others are inside a room
    words = {word.rstrip("/,") for line in lines for word in line.removeprefix("├── ").split()}
    # Folders without code are what Python left of rooms that are gone.
    places = [place for place in SOURCE.iterdir() if place.suffix == ".py" or (place / "__init__.py").exists()]
    rooms = {place.name for place in places}
    assert {name for name in rooms if not name.startswith("__")} <= words
    named = {line.split()[1].rstrip("/,") for line in lines}
    assert named <= rooms
    inside = set(re.findall(r"(\w+)/", "".join(line for line in drawn.splitlines() if line.startswith("│"))))
    assert {name for name in inside if not any((SOURCE / "data").rglob(name))} == set()


def test_the_table_of_dataset_yaml_has_every_key_once():
    section = (ROOT / "docs" / "data.md").read_text().split("\n## dataset.yaml\n")[1].split("\n## ")[0]
    keys = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", section, flags=re.MULTILINE)))
    assert sorted(keys) == sorted(description._KEYS)


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {str(file.relative_to(ROOT / "docs")) for file in PAGES if (ROOT / "docs") in file.parents}
    assert {name for name in pages if f"({name})" not in index} <= {"README.md"}


def test_docstrings_name_only_what_exists():
    faults = [fault for name in api.public_modules() for fault in api.faults(importlib.import_module(name))]
    assert not faults, "\n".join(faults)


def test_faults_of_docstrings_are_seen():
    module = types.ModuleType("made_up")
    text = '"""Do it, see `degrid.no_such`.\n\n    Args:\n        a: right.\n        b: wrong.\n    """'
    exec(f"def f(a):\n    {text}\n", vars(module))
    assert api.faults(module) == [
        "made_up.f: documents an argument b that it does not have",
        "made_up.f: names degrid.no_such, which does not exist",
    ]


def test_these_tests_see_faults():
    text = (
        "[a](nowhere.md) [b](data.md#no-such-title) [c](data.md#dataset-yaml) `tests/test_no.py` `degrid.no_such` "
        "`degrid.evaluate(.., nope=1, split='val')` `train.stepps` "
        "`degrid eval --nope` `degrid nope` `degrid train nope_voc` `make nope`\n"
        "```python\nfrom degrid.data import nope\n```\n"
        "```bash\ndegrid train --set optim.lrr=1 --set train.steps=2\n```\n"
    )
    assert broken_links(ROOT / "docs" / "x.md", text) == ["nowhere.md", "data.md#no-such-title", "data.md#dataset-yaml"]
    assert missing_files(text) == ["tests/test_no.py"]
    assert dead_names(text) == ["degrid.no_such"]
    assert dead_imports(text) == ["degrid.data.nope"]
    assert wrong_arguments(text) == ["degrid.evaluate(nope=)"]
    assert unknown_settings(text) == ["optim.lrr", "train.stepps"]
    assert unknown_targets(text) == {"nope"}
    faults = [fault for words in command_lines(text) for fault in faults_of_command(words)]
    assert faults == ["degrid eval has no --nope", "no command: degrid nope", "no recipe: nope_voc"]
