"""Accuracy against throughput, beside other architectures."""
