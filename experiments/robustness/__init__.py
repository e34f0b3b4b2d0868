"""Accuracy under changes of the image."""
