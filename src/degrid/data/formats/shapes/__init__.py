"""Polygons and run-length codes as pixels: what annotation tools store in place of masks."""
