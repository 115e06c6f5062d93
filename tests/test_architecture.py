"""Who may import whom, and that light imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "degrid"
LEAVES = {
    "types",
    "arguments",
    "lookup",
    "files",
    "raster",
    "image",
    "bands",
    "protobuf",
    "resize",
    "weight_names",
    "version",
    "chance",
    "contracts",
    "dispatch",
    "threads",
    "background",
    "video",
    "camera",
    "model_places",
}
# The rooms: smoothing and models, data and what is done with it do not know one another.
FAST = {"smoothing", "engine", "exporters"}  # rooms that may make networks faster
ROOMS = {
    "smoothing",
    "models",
    "data",
    "engine",
    "analysis",
    "checkpoints",
    "exporters",
    "acceleration",
    "kernels",
    "serving",
}
JOINTS = {"config", "recipes", "networks", "model_folder"}
ALLOWED = {
    **{leaf: {"types"} for leaf in LEAVES},
    "contracts": {"types", "lookup", "chance"},
    "image": {"types", "raster"},
    "bands": {"types", "raster", "image"},
    "weight_names": {"types", "lookup"},
    "arguments": {"types", "lookup"},
    "model_places": {"types", "lookup"},
    "camera": {"types", "background", "video"},
    **{room: {*LEAVES, room} for room in ("kernels", "analysis", "checkpoints")},
    "models": {*LEAVES, "kernels", "acceleration", "checkpoints", "models"},
    "acceleration": {*LEAVES, "kernels", "acceleration"},
    "data": {*LEAVES, "kernels", "data"},
    **{room: {*LEAVES, "kernels", "acceleration", room} for room in FAST},
    "serving": {*LEAVES, "data", "engine", "analysis", "serving"},
    "config": {"types", "lookup"},
    "recipes": {*LEAVES, "config", "recipes"},
    "networks": {*LEAVES, "config", "models", "smoothing"},
    "model_folder": {*LEAVES, "config", "networks", "models", "exporters"},
    "verbs": {*LEAVES, *ROOMS, *JOINTS, "verbs"},
    "bench": {*LEAVES, *ROOMS, *JOINTS, "verbs", "bench"},
    "cli": {*LEAVES, *ROOMS, *JOINTS, "verbs", "bench", "cli"},
    "__main__": {"cli"},
}


FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    """The folder, or the file, at the top of the package."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def nodes_of(code: str) -> list[ast.AST]:
    """All nodes of the code, at any depth."""
    return list(ast.walk(ast.parse(code)))


def own_imports(nodes: list[ast.AST]) -> set[str]:
    """The parts of degrid that code imports, at any depth; "degrid" for the package's own names."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "degrid" else {node.module}
            )
    return {name.split(".")[1] for name in found if name.startswith("degrid.")}


def test_the_import_reader_sees_imports():
    code = "def f():\n    from degrid import config\n    import degrid.data.image\n    from degrid.engine.x import y\n"
    assert own_imports(nodes_of(code)) == {"config", "data", "engine"}


def loaded_by(code: str) -> set[str]:
    """Modules in memory after running `code` in a fresh interpreter."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


MOST_LINES, MOST_COMPLEX, MOST_PARAMETERS = 60, 15, 10
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)


def complexity(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Cyclomatic complexity: one more than the branches, boolean operators and comprehensions with their conditions.

    Functions inside count for themselves.
    """
    count, nodes = 1, list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        count += isinstance(node, BRANCHES)
        if isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        if isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        nodes += ast.iter_child_nodes(node)
    return count


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of parameters, `self` and `cls` left out."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in arguments)


def functions_of(nodes: list[ast.AST]) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions among them."""
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_the_readers_of_functions_count_as_said():
    code = """
def f(self, a, /, b, *, c):
    if a and b or c:
        return [x for x in a if x if b]
    for y in a:
        assert y
    try:
        return a if b else c
    except ValueError:
        def inner():
            while True:
                pass
"""
    outer, inner = functions_of(nodes_of(code))
    # if, and + or, a comprehension with two conditions, for, assert, ternary, except
    assert complexity(outer) == 1 + 1 + 2 + 3 + 1 + 1 + 1 + 1
    assert complexity(inner) == 2
    assert parameters(outer) == 3


def words_to_the_console(nodes: list[ast.AST]) -> list[str]:
    """What code has that writes to the console: print, rich, or the streams themselves."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            found.append("print")
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr") and isinstance(node.value, ast.Name):
            found += [f"sys.{node.attr}"] * (node.value.id == "sys")
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in ("rich", "typer")]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("rich", "typer"):
            found.append(node.module)
    return found


def test_the_reader_of_prints_sees_them():
    code = "import rich.table, sys\nfrom rich import console\nprint(1)\nsys.stderr.write('x')"
    assert sorted(words_to_the_console(nodes_of(code))) == ["print", "rich", "rich.table", "sys.stderr"]


def faults_of(file: Path) -> list[str]:
    """The imports that the star does not allow, functions that cannot be read at once, what prints outside `cli`."""
    part, nodes, faults = room_of(file), nodes_of(file.read_text()), []
    if part != "__init__":  # the package's face names everything, lazily
        faults += [f"{part} may not import {name}" for name in own_imports(nodes) - ALLOWED[part]]
    for function in functions_of(nodes):
        lines, branches, taken = function.end_lineno - function.lineno + 1, complexity(function), parameters(function)
        faults += [f"{function.name} has {lines} lines; at most {MOST_LINES}"] * (lines > MOST_LINES)
        faults += [f"{function.name} branches {branches} times; at most {MOST_COMPLEX}"] * (branches > MOST_COMPLEX)
        if part != "cli":  # a command has a parameter for each option
            faults += [f"{function.name} takes {taken} parameters"] * (taken > MOST_PARAMETERS)
    if part not in ("cli", "__main__"):
        faults += [f"{word} writes to the console" for word in words_to_the_console(nodes)]
    return faults


def test_every_file_keeps_the_rules():
    faults = [f"{file}: {fault}" for file in FILES for fault in faults_of(file)]
    assert not faults, "\n".join(faults)


def test_no_module_is_hidden_by_a_name_that_its_package_hands_on():
    import importlib
    import types

    for file in FILES:
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__"):
            continue
        module = importlib.import_module(".".join(parts))
        package = importlib.import_module(".".join(parts[:-1]))
        assert isinstance(module, types.ModuleType)
        assert getattr(package, parts[-1]) is module, f"{'.'.join(parts)} is hidden by a name of its package"


HEAVY = {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "pydantic", "tensorboard"}


@pytest.mark.parametrize("code", ["import degrid", "import degrid.cli", "import degrid.recipes"])
def test_light_imports(code):
    assert not HEAVY & loaded_by(code)


def test_the_light_import_test_can_fail():
    assert "torch" in HEAVY & loaded_by("import degrid; degrid.Predictor")


def test_public_names_exist_and_unknown_ones_do_not():
    import degrid

    for name in degrid.__all__:
        assert getattr(degrid, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        degrid.no_such_name  # noqa: B018
