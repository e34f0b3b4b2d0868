"""Writes a model as one graph for ONNX Runtime or `torch.export`."""

from .graph import export_model


__all__ = ["export_model"]
