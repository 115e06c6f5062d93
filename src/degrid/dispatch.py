"""The base of modes that see PyTorch's operations."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A TorchDispatchMode that does not import PyTorch's compiler, which takes as long as importing PyTorch.

    PyTorch imports it at the first operation, to exclude `__torch_dispatch__` from compilation. It is no place for code
    that is compiled.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # private to PyTorch: should the name disappear, modes are slow again
        return False
