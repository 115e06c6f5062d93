"""Who may import whom, and that light imports stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "degrid"
LEAVES = {"types", "lookup", "files", "image", "protobuf", "resize", "weight_names", "version", "contracts"}
# The rooms: smoothing and models, data and what is done with it do not know one another.
FAST = {"smoothing", "models", "engine", "exporters"}  # rooms that may make networks faster
ROOMS = {"smoothing", "models", "data", "engine", "analysis", "checkpoints", "exporters", "acceleration", "kernels"}
JOINTS = {"config", "recipes", "networks", "model_folder"}
ALLOWED = {
    **{leaf: {"types"} for leaf in LEAVES},
    "weight_names": {"types", "lookup"},
    **{room: {*LEAVES, room} for room in ("kernels", "analysis", "checkpoints")},
    "acceleration": {*LEAVES, "kernels", "acceleration"},
    "data": {*LEAVES, "kernels", "data"},
    **{room: {*LEAVES, "kernels", "acceleration", room} for room in FAST},
    "config": {"types", "lookup"},
    "recipes": {*LEAVES, "config", "recipes"},
    "networks": {*LEAVES, "config", "models", "smoothing"},
    "model_folder": {*LEAVES, "config", "networks", "models", "exporters"},
    "verbs": {*LEAVES, *ROOMS, *JOINTS, "verbs"},
    "bench": {*LEAVES, *ROOMS, *JOINTS, "verbs", "bench"},
    "cli": {*LEAVES, *ROOMS, *JOINTS, "verbs", "bench", "cli"},
    "__main__": {"cli"},
}


def own_imports(file: Path) -> set[str]:
    """The parts of degrid that a file imports, at any depth; "degrid" for the package's own names."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "degrid" else {node.module}
            )
    return {name.split(".")[1] for name in found if name.startswith("degrid.")}


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda f: f.relative_to(SOURCE).as_posix())
def test_imports_follow_the_star(file):
    part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__init__":
        return  # the package's face names everything, lazily
    assert own_imports(file) <= ALLOWED[part], f"{part} may import only {sorted(ALLOWED[part])}"


def test_the_import_reader_sees_imports(tmp_path):
    file = tmp_path / "part.py"
    file.write_text(
        "def f():\n    from degrid import config\n    import degrid.data.image\n    from degrid.engine.x import y\n"
    )
    assert own_imports(file) == {"config", "data", "engine"}


def loaded_by(code: str) -> set[str]:
    """Modules in memory after running `code` in a fresh interpreter."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_module_is_hidden_by_a_name_that_its_package_hands_on():
    import importlib
    import types

    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        if parts[-1] in ("__init__", "__main__"):
            continue
        module = importlib.import_module(".".join(parts))
        package = importlib.import_module(".".join(parts[:-1]))
        assert isinstance(module, types.ModuleType)
        assert getattr(package, parts[-1]) is module, f"{'.'.join(parts)} is hidden by a name of its package"


HEAVY = {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "tensorboard"}


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
