"""Segmentation head: the class of each cell, by its region's token for the context and its own feature for detail."""

import torch
from torch import nn

from .configuration_focusvit import FocusViTConfig
from .lay_back import cells_to_pixels, values_of_cells
from .transformer_blocks import keep_variance


class FocusViTSegmentationHead(nn.Module):
    r"""
    Logits of each cell c in region i: h = W_t·X_i + W_c·u_c, then W_o·ReLU(h + f(h)), where X_i is the region's token,
    u_c the cell's own feature of the stem, and f a depthwise convolution over the cells or nothing. What is linear in
    the token is computed once a region and then laid back, K products in the place of N.

    Args:
        config ([`FocusViTConfig`]): Its fields that begin with `segmentation_`, described there.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.config = config
        width, kernel = config.segmentation_hidden_size, config.segmentation_kernel_size
        self.token_projection = nn.Linear(config.hidden_size, width)
        keep_variance(self.token_projection)
        self.cell_projection = None
        if config.uses_cell_features:
            # One bias is enough for both.
            self.cell_projection = nn.Linear(config.stem_channels, width, bias=False)
            keep_variance(self.cell_projection)
        self.mixing = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width) if kernel > 1 else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(width, config.num_labels or 1)

    def forward(
        self, tokens: torch.Tensor, region_ids: torch.Tensor, cells: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            tokens (`torch.FloatTensor` of shape `(batch_size, K, hidden_size)`): The final tokens, one a region.
            region_ids (`torch.LongTensor` of shape `(batch_size or 1, rows, columns)`):
                Region of each cell, in [0, K).
            cells (`torch.FloatTensor` of shape `(batch_size, rows * columns, stem_channels)`, *optional*):
                Features of the stem, where the configuration's `uses_cell_features` is true.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_labels, rows, columns)`.
        """
        rows, columns = region_ids.shape[-2:]
        hidden = self._on_cells(self.token_projection(tokens), region_ids)
        if self.cell_projection is not None:
            hidden = hidden + self.cell_projection(cells).unflatten(1, (rows, columns))
        if self.mixing is not None:
            hidden = hidden + self.mixing(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # With the channels last a product replaces the convolution of one cell.
        return self.classifier(self.dropout(hidden.relu())).permute(0, 3, 1, 2)

    def _on_cells(self, values: torch.Tensor, region_ids: torch.Tensor) -> torch.Tensor:
        """Values of the regions, `(batch_size, K, width)`, on their cells: `(batch_size, rows, columns, width)`."""
        if self.config.segmentation_lay_back == "nearest":
            return values_of_cells(values, region_ids)
        rows, columns = region_ids.shape[-2:]
        layout = self.config.region_layout(rows * self.config.cell_size, columns * self.config.cell_size)
        tiles = values.transpose(1, 2).unflatten(2, layout)
        return cells_to_pixels(tiles, (rows, columns), mode="bilinear").permute(0, 2, 3, 1)
