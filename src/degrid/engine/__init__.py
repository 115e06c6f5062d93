"""What is done with a network: train, evaluate, predict. Works on any nn.Module from images to logits."""
