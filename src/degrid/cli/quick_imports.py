"""Import slow packages faster: without garbage collection, and timm without what networks do not need.

A command lives for seconds, of which imports are a large part. Nothing here changes what an import gives.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SLOW = ("torch", "timm", "torchvision", "numba", "openvino", "onnxruntime", "matplotlib")
"""Packages that make so many objects that collecting garbage takes a seventh of their import, and finds none."""
_NAMES_FROM_TORCHVISION = {
    "torchvision.models.feature_extraction": ("create_feature_extractor", "get_graph_node_names"),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
}
"""What timm imports from torchvision, which takes as long as torch itself, for functions that degrid does not call."""


def install() -> None:
    """Let later imports of `SLOW` packages in this process be quick."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds `SLOW` packages, and gives them a different loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if name not in SLOW:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Quick(spec.loader)
        return spec


class _Quick(Loader):
    """Runs a package without garbage collection; afterwards it has its own loader again."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `importlib.abc.Loader`."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        with _no_garbage_collection():
            if module.__name__ != "timm" or "torchvision" in sys.modules:
                self._loader.exec_module(module)
                return
            with _without_torchvision(), _without_compiler():
                self._loader.exec_module(module)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Let timm find names that are looked up in torchvision when they are used, and `timm.data` when it is used."""
    stand_ins: dict[str, ModuleType] = {}
    for module, names in _NAMES_FROM_TORCHVISION.items():
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[:count])
            stand_ins.setdefault(name, ModuleType(name)).__path__ = []
        vars(stand_ins[module]).update({name: _Later(module, name) for name in names})
    sys.modules.update(stand_ins)
    try:
        _load_later("timm.data")
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let functions that timm excludes from compilation import torch's compiler when they run compiled, not before."""
    import torch

    exclude: Any = torch.compiler.disable

    def exclude_later(function: Any = None, *arguments: Any, **settings: Any) -> Any:
        if function is None:
            return lambda function: exclude_later(function, *arguments, **settings)

        @functools.wraps(function)
        def run(*inputs: Any, **keywords: Any) -> Any:
            known = "torch._dynamo" in sys.modules
            return (exclude(function, *arguments, **settings) if known else function)(*inputs, **keywords)

        return run

    torch.compiler.disable = exclude_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = exclude


class _Later:
    """A function or class of a module that is imported when it is called, or its attributes are asked for."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _found(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *arguments: object, **keywords: object) -> Any:
        return self._found()(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found(), name)

    def __instancecheck__(self, value: object) -> bool:
        """False as long as the module is not loaded, since nothing can be an instance of its classes then."""
        return self._module in sys.modules and isinstance(value, self._found())


def _load_later(name: str) -> None:
    """Register a package whose code runs only when something other than its constants is accessed."""
    parent = sys.modules[name.rpartition(".")[0]]
    spec = PathFinder.find_spec(name, parent.__path__)
    assert spec is not None
    assert spec.loader is not None
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def find(attribute: str) -> Any:
        if attribute.isupper():
            constants = importlib.import_module(f"{name}.constants")
            if hasattr(constants, attribute):
                return getattr(constants, attribute)
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, attribute)

    vars(module)["__getattr__"] = find
    sys.modules[name] = module
