"""Fuzzing of degrid's inputs: `tests/test_fuzz.py` runs it."""
