"""The base of modes that see PyTorch's operations."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A TorchDispatchMode that does not import PyTorch's compiler, which takes as long as importing PyTorch.

    PyTorch imports it at the first operation, to exclude `__torch_dispatch__` from compilation. Instead networks that
    `torch.compile` made run as they were written within the mode, since the mode is no place for code that is compiled.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._uncompiled = contextlib.ExitStack()

    def __enter__(self) -> Any:
        # Only a program that compiled something has loaded the compiler.
        if "torch._dynamo" in sys.modules:
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._uncompiled.close()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # private to PyTorch: should the name disappear, modes are slow again
        return False
