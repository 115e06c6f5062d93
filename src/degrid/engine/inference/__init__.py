"""Inference: from an image to class ids, at the image's own size."""
