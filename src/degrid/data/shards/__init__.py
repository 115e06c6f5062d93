"""Shards: many samples in one file (tar files of WebDataset, TFRecord files), read by position, locally or remotely."""
