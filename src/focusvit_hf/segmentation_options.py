"""Options of dense outputs, the segmentation head and the backbone, checked against each other."""

from typing import Any


LAY_BACKS = ("nearest", "bilinear")


def check_segmentation(config: Any) -> None:
    """Raises ValueError on options of a [`FocusViTConfig`] for dense outputs that are at odds with the others."""
    kernel = config.segmentation_kernel_size
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"Expected an odd segmentation_kernel_size >= 1, got {kernel}.")
    if config.segmentation_cell_features and config.embedding_type != "conv":
        raise ValueError(
            "Expected embedding_type='conv' with segmentation_cell_features=True, since only the stem gives a cell a "
            f"feature of its own, got {config.embedding_type!r}."
        )
    if config.segmentation_lay_back == "bilinear" and config.patch_pooling == "superpixel":
        raise ValueError(
            "Expected patch_pooling 'grid' or 'none' with segmentation_lay_back='bilinear', since superpixels lie in "
            "no rows and columns (segmentation_kernel_size=3 smooths between them), got 'superpixel'."
        )


def require_dense(config: Any, name: str) -> None:
    """Raises ValueError where tokens leave between the layers, since nothing could be laid back on their regions."""
    if config.sparsification_layers:
        raise ValueError(
            f"Expected no sparsification_layers in {name}: the regions of tokens that left would get no value, got "
            f"{list(config.sparsification_layers)}."
        )
