"""Datasets of Hugging Face's library `datasets`: on the hub, or in a folder."""
