"""Looking at a dataset: what is wrong with it, how often each class comes, what it looks like."""
