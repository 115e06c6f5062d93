"""Published benchmarks: their classes, and the layouts in which they are distributed."""
