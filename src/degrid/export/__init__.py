"""Models for other runtimes; each export is run and compared before it counts."""
