"""The models that are served, and the thread in which they run, one image at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import Protocol, TypeVar

import numpy as np

from degrid.arguments import check_fields
from degrid.bands import LargeScene, Scene
from degrid.engine.inference.options import Prediction
from degrid.types import Bands, LabelSpace, UserError

T = TypeVar("T")
MIB = 1 << 20


@dataclass(frozen=True)
class ServeLimits:
    """What one request, and all waiting requests together, may ask of the server.

    Attributes:
        upload: bytes per request.
        pixels: of all images in a request; more are refused before they are decoded.
        files: images per request.
        waiting: requests that wait for the models, besides the one being computed; further ones are told to retry
            later.
        seconds: that a request may take to arrive.
    Raises:
        UserError: a limit of 0 or less; for `waiting`, less than 0.
    """

    upload: int = 32 * MIB
    pixels: int = 25_000_000
    files: int = 16
    waiting: int = 16
    seconds: float = 60

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.upload, self.pixels, self.files) < 1 or self.waiting < 0 or not self.seconds > 0:
            raise UserError(f"the server's limits must be above 0 (for waiting requests at least 0), got {self}")


class ServedPredictor(Protocol):
    """What the server uses of a `degrid.Predictor`, or of what takes its place for an exported file."""

    @property
    def labels(self) -> LabelSpace | None:
        """The classes; None of a network that does not declare them."""

    @property
    def bands(self) -> Bands:
        """How image files become what the network takes."""

    @property
    def num_classes(self) -> int | None:
        """How many classes; None before the first image."""

    @property
    def network(self) -> object:
        """What says in which precision the network runs, as text."""

    def predict(self, image: Scene | LargeScene) -> Prediction:
        """See `degrid.Predictor.predict`."""

    def confidence(self, prediction: Prediction) -> np.ndarray | None:
        """See `degrid.Predictor.confidence`."""


@dataclass(frozen=True)
class Served:
    """A model under its name.

    Attributes:
        labels: its classes; "class 0", "class 1", ... for a network that does not declare them.
    """

    name: str
    predictor: ServedPredictor
    labels: LabelSpace


def serve_as(name: str, predictor: ServedPredictor) -> Served:
    """A model under a name; where it does not declare its classes, they are counted on a grey image."""
    if predictor.labels is None and predictor.num_classes is None:
        predictor.predict(Scene(np.full((64, 64, predictor.bands.count), 128, np.uint8)))
    return Served(name, predictor, predictor.labels or LabelSpace.of_size(predictor.num_classes or 1))


class Worker:
    """Runs jobs one after the other in a thread of its own: a network takes all cores for one image.

    Args:
        waiting: how many requests may hold a place beside the one whose job runs.
    """

    def __init__(self, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="degrid-serve")
        self._places = waiting + 1
        self._taken = 0
        self._seconds = 1.0
        """Seconds that a job takes, as an average weighted towards recent ones."""

    @property
    def taken(self) -> int:
        """How many requests hold a place."""
        return self._taken

    def take_place(self) -> bool:
        """Take one of the places; false if there is none."""
        if self._taken >= self._places:
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1

    def seconds_to_wait(self) -> int:
        """Seconds until there should be a place, at least 1."""
        return max(1, ceil(self._taken * self._seconds / 2))

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run a job when those before it are done."""
        return self._threads.submit(self._timed, job)

    def close(self) -> None:
        """Forget the jobs that have not begun, and wait for the one that has."""
        self._threads.shutdown(cancel_futures=True)

    def _timed(self, job: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return job()
        finally:
            self._seconds += 0.2 * (time.perf_counter() - start - self._seconds)
