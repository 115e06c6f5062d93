"""Datasets of files: recognised, described, and their masks read as train ids."""
