"""Fast paths, each with an exact PyTorch twin that runs where numba is not installed."""
