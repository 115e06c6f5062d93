"""Networks made faster or smaller in memory: folding, other ways to convolve, and maps computed again."""
