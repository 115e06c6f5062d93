"""The segmentation of a COCO annotation, as pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from degrid.data.formats.shapes.polygon import corners, polygon_region
from degrid.data.formats.shapes.region import Region, union
from degrid.data.formats.shapes.runs import runs_region


def segmentation_region(segmentation: Sequence[Any] | Mapping[str, Any], height: int, width: int) -> Region:
    """The pixels of a list of polygons, each x, y, x, y, ..., which are united; or of a run-length code.

    A polygon without the list around it, as VIA writes it, is one, too.

    Raises:
        KeyError, TypeError, ValueError: it is neither, or does not fit an image of this size.
    """
    if isinstance(segmentation, Mapping):
        return runs_region(segmentation, height, width)
    flat = len(segmentation) > 0 and isinstance(segmentation[0], int | float)
    polygons = [segmentation] if flat else segmentation
    return union([polygon_region(corners(polygon), height, width) for polygon in polygons])
