"""Polygons and run-length codes as pixels: what annotation tools store instead of masks."""
