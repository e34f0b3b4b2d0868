"""Looking at tensors by their names."""

from collections.abc import Mapping

import torch


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the first of these tensors that holds NaN or infinity; None where none does."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
