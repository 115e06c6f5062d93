"""Which worker learns from which images, even if workers are lost meanwhile."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any


class Turns:
    """Hands out the numbers of batches, from 0, each until something was learned from it.

    Args:
        following: the first number that was never handed out.
        left: earlier ones from which nothing was learned.
        pieces: how many of them a step takes.
    """

    def __init__(self, following: int = 0, left: Iterable[int] = (), pieces: int = 1) -> None:
        self._following, self._waiting, self._out, self._pieces = following, sorted(left), set[int](), pieces

    def divide(self, pieces: int) -> int:
        """Number smaller parts of steps than until now; while nobody has any.

        Parts that are not a whole number of those asked for stay as they are: of some, a half may be left.

        Returns:
            Into how many parts a step is divided.
        """
        finer, rest = divmod(pieces, self._pieces)
        if rest == 0:
            self._following *= finer
            self._waiting = [finer * number + part for number in self._waiting for part in range(finer)]
            self._pieces = pieces
        return self._pieces

    def take(self) -> int:
        """The lowest number that nobody has."""
        if self._waiting:
            number = heapq.heappop(self._waiting)
        else:
            number, self._following = self._following, self._following + 1
        self._out.add(number)
        return number

    def give_back(self, numbers: Iterable[int]) -> None:
        """Nothing was learned from these; others will take them."""
        for number in numbers:
            self._out.remove(number)
            heapq.heappush(self._waiting, number)

    def finish(self, numbers: Iterable[int]) -> None:
        """These were learned from."""
        self._out.difference_update(numbers)

    def state(self) -> dict[str, Any]:
        """The arguments that make it anew, where all who have a number are gone."""
        left = sorted([*self._waiting, *self._out])
        return {"following": self._following, "left": left, "pieces": self._pieces}
