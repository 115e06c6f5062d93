"""Old weights: files of TensorFlow, Caffe and early PyTorch, read without those frameworks."""
