"""What a format is: one class that writes a network to files and, where possible, runs them again.

Imports no torch, so that the command line can ask formats for their names and endings.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

from degrid.threads import start_of_processes_left_open
from degrid.types import UserError

if TYPE_CHECKING:
    import numpy as np

    from degrid.exporters.graph import Source

Opened: TypeAlias = "tuple[Callable[[Any], Any], str | None]"
"""A function that runs a file, and the facts stored in it; see `Exporter.open`."""
KEY = "degrid"
"""Name under which a file holds the facts about its network, as JSON; see `facts.Facts`."""


class Exporter:
    """Base of all formats: a new one sets the attributes, and defines `write` and, if its files can run here, `open`.

    Attributes:
        ending: of the file's name, such as ".onnx"; of several files, that of the one that users name.
        note: a remark for the command line's help, such as "needs a C++ compiler".
        packages: the import names of the packages that writing and running need.
        int8_packages: those that `quantize` needs in addition.
        install: what to install with pip for these packages.
        inputs: the types of pixels that a file can take.
        outputs: what a file can give, class ids or logits.
        any_size: whether a file can take any number of images of any size; otherwise it takes one image of one size.
        any_batch: whether a file of any size can take any number of images.
        tolerance: the largest difference of logits that is rounding, relative to the largest logit.
        needs_torch: whether PyTorch runs its files, so that `open` gives a function of tensors. Another runtime has
            threads of its own, and `open` gives a function of NumPy arrays.
    """

    ending: ClassVar[str]
    note: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    int8_packages: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = "degrid[export]"
    inputs: ClassVar[tuple[str, ...]] = ("uint8", "float32")
    outputs: ClassVar[tuple[str, ...]] = ("ids", "logits")
    any_size: ClassVar[bool] = True
    any_batch: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4
    needs_torch: ClassVar[bool] = True

    def write(self, source: Source, path: Path, facts: str) -> None:
        """Write a network to `files(path)`.

        Args:
            source: the network, as a torch.export program (`source.program`) or a module (`source.graph`).
            facts: ASCII text to store in the file or beside it, which `open` returns.
        Raises:
            UserError: this network cannot be written in this format.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write(source, path, facts)")

    def open(self, path: Path) -> Opened:
        """Make a file ready to run.

        Returns:
            A function from images [N,3,H,W], of the type that the network was exported with and on the CPU, to its
            output, both as tensors or both as arrays, see `needs_torch`; and the facts that `write` stored, or None if
            the file holds none.
        Raises:
            UserError: the runtime is not installed. Any other exception is taken for a damaged file.
        """
        raise UserError(f"{path} cannot be run here: degrid writes files of this kind, but does not run them")

    def quantize(self, source: Path, path: Path, images: Iterable[np.ndarray], keep: Sequence[str] = ()) -> None:
        """Read the file `source`, and write it with int8 weights and activations to `path`.

        Args:
            images: to choose the ranges by, each [1,3,H,W] of the type that the network was exported with.
            keep: convolutions to leave in float32, by the names of their modules in the network.
        """
        raise NotImplementedError(f"{type(self).__name__} has no int8")

    def files(self, path: Path) -> list[Path]:
        """All files (or folders) of the model called `path`, which comes last."""
        return [path]

    def recognises(self, path: Path) -> bool:
        """Whether `path` is, or would be, a file of this format."""
        return path.name.endswith(self.ending) and not path.is_dir()

    @property
    def runs_here(self) -> bool:
        """Whether `open` is defined."""
        return type(self).open is not Exporter.open

    @property
    def has_int8(self) -> bool:
        """Whether `quantize` is defined."""
        return type(self).quantize is not Exporter.quantize

    def library(self, name: str) -> Any:
        """Import an optional package.

        Raises:
            UserError: it is not installed.
        """
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"{name.split('.')[0]} is not installed; pip install {self.install}") from error


def append_facts(path: Path, facts: str) -> None:
    """Put facts at the end of a file, as a zip archive: runtimes find what is theirs from its beginning."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{KEY}.json", facts)


def appended_facts(path: Path) -> str | None:
    """What `append_facts` put there; None if there is nothing."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.read(f"{KEY}.json").decode() if f"{KEY}.json" in archive.namelist() else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of exporting libraries: the comparison afterwards decides.

    Threads that watch over their progress bars, which nobody sees, end too.
    """
    before, threads = logging.root.manager.disable, threading.enumerate()
    logging.disable(logging.WARNING)
    try:
        # PyTorch prints the graph that it could not trace.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), start_of_processes_left_open():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        for thread in threading.enumerate():
            if thread.name == "tqdm_monitor" and thread not in threads:
                cast(Any, thread).exit()
