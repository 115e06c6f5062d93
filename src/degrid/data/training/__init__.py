"""Batches for training: augmented, shuffled, and addressable by position."""
