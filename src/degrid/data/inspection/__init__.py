"""Looking at a dataset: what is wrong with it, how often each class occurs, what it looks like."""
