"""Checkpoint files of TensorFlow, Caffe, PyTorch and numpy, read without those frameworks."""
