"""TFRecord files, read and written without TensorFlow."""
