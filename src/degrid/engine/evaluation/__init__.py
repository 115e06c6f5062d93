"""Scores: how right, how sharp and how sure a network is."""
