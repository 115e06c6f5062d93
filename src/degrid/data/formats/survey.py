"""Looking at the masks of a dataset: a sample of them is read, once in a process, and their values are counted."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from degrid.data.formats.layout import Layout
from degrid.data.formats.source import BrokenSource, LazySources, Source
from degrid.data.formats.values import LabelValues, Survey
from degrid.types import UserError

MANY_MASKS = 1000
"""The most masks that are surveyed where the data name no classes; a rare class may occur only in the others."""
SOME_MASKS = 100
"""The most masks that are surveyed where the classes are known."""


def read_values(sources: Sequence[Source]) -> Iterator[LabelValues | None]:
    """The values of each label; None for one that cannot be read, which is reported when it is used."""
    for source in sources:
        try:
            yield LabelValues.of(source.read_label(), source.palette())
        except UserError:
            yield None


ReadValues = Callable[[Sequence[Source]], Iterable[LabelValues | None]]
"""As `read_values`, perhaps in several processes."""


def survey_masks(layout: Layout, most: int, read: ReadValues = read_values) -> dict[str, Survey]:
    """Read masks from the whole dataset and count their values. Masks that cannot be read are passed over.

    What was counted before in this process is not read again, unless the files have changed.

    Args:
        most: the number of masks that are read.
        read: reads them.
    """
    chosen = spread(list(_labelled(layout)), most)
    key = _fingerprint(chosen)
    known = _KNOWN.get(key) if key else None
    if known is not None:
        return known
    surveys: dict[str, Survey] = {}
    for (split, source), values in zip(chosen, read([source for _, source in chosen]), strict=True):
        if values is not None:
            surveys.setdefault(split, Survey()).add(values, source.places()[1])
    if key:
        _KNOWN[key] = surveys
        while len(_KNOWN) > _MOST_KNOWN:
            _KNOWN.popitem(last=False)
    return surveys


def labelled(layout: Layout) -> int:
    """The number of masks."""
    return sum(1 for _ in _labelled(layout))


def _labelled(layout: Layout) -> Iterator[tuple[str, Source]]:
    """The sources whose label is there. Broken ones are reported when they are used.

    Where sources are listed only on demand and the classes are known, the first split must do.
    """
    for split, sources in layout.splits.items():
        for source in sources:
            if not isinstance(source, BrokenSource) and source.places()[1]:
                yield split, source
        if layout.labels is not None and isinstance(sources, LazySources):
            return


def spread(things: Sequence[tuple[str, Source]], most: int) -> Sequence[tuple[str, Source]]:
    """At most that many of them, evenly spread."""
    return things[:: math.ceil(len(things) / most) or 1]


# What was surveyed, by the files that were read and how; the oldest first.
_KNOWN: OrderedDict[tuple[object, ...], dict[str, Survey]] = OrderedDict()
_MOST_KNOWN = 4
SETTLED = 2.0
"""Files younger than this, in seconds, may change again without a change of their time."""


def _fingerprint(chosen: Sequence[tuple[str, Source]]) -> tuple[object, ...]:
    """The files that are read and when they were changed; empty where that cannot show whether they are the same."""
    parts: list[object] = []
    latest = 0.0
    for split, source in chosen:
        try:
            found = Path(source.places()[1]).stat()
        except (OSError, ValueError):
            return ()
        latest = max(latest, found.st_mtime)
        parts.append((split, source, found.st_mtime_ns, found.st_size))
    return tuple(parts) if time.time() - latest > SETTLED else ()
