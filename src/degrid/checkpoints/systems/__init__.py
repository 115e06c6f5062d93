"""Systems whose checkpoints are understood: how each is recognised, and where its tensors go."""
