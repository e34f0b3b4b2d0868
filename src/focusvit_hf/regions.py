"""The regions of a map: sums over them, their overlap with units, their geometry."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.amp import is_autocast_available

from .caching import cached_table


class Regions:
    """
    The regions of a batch of maps, in which each cell holds the number of its region.

    Args:
        ids (`torch.LongTensor` of shape `(batch_size, rows, columns)`):
            Region of each cell. An id out of range belongs to nobody.
        num_regions (`int`): K.

    Raises:
        ValueError: when `ids` is no integer map.
    """

    def __init__(self, ids: torch.Tensor, num_regions: int):
        if ids.ndim != 3 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(
                f"Expected integer superpixel ids of shape (batch, rows, columns), got {ids.dtype} {tuple(ids.shape)}."
            )
        self.ids = ids
        self.num_regions = num_regions
        self.cells = (ids.shape[1], ids.shape[2])
        self._membership: torch.Tensor | None = None
        self._moments: torch.Tensor | None = None
        self._bins: torch.Tensor | None = None

    @property
    def membership(self) -> torch.Tensor:
        """The map as a one-hot float32 matrix over cells, `(batch_size, K, rows * columns)`."""
        if self._membership is None:
            numbers = torch.arange(self.num_regions, device=self.ids.device, dtype=torch.int32)
            # Clamping keeps ids beyond 32 bits out of range.
            narrow = self.ids.long().clamp(-1, self.num_regions).to(torch.int32)
            self._membership = (narrow.flatten(1)[:, None, :] == numbers[:, None]).float()
        return self._membership

    def sums(self, values: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """
        Sum of the values of each region's cells.

        On a CPU the cells are added up in order, a tenth of the work of a product with the one-hot matrix. That
        product is what can be exported, and what is deterministic on a GPU.

        Args:
            values (`torch.FloatTensor` of shape `(batch_size or 1, rows * columns, C)`): Values of each cell.
            exact (`bool`, *optional*, defaults to `False`):
                Whether to go on in float64 where float32 products may be rounded.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, K, C)`, float32 where it was added up in order, else of the
            values' type. Of a single map and many images the batch is the images'.
        """
        with without_autocast(values.device.type):
            if values.device.type == "cpu" and not torch.compiler.is_compiling():
                return self._sums_in_order(values if values.dtype == torch.float64 else values.float())
            if exact and rounds_products(values.device.type):
                return torch.matmul(self.membership.double(), values.double()).to(values.dtype)
            return torch.matmul(self.membership.to(values.dtype), values)

    def _sums_in_order(self, values: torch.Tensor) -> torch.Tensor:
        maps, rows = self.ids.shape[0], values.shape[0]
        batch = max(maps, rows) if min(maps, rows) > 0 else 0
        # The last bin takes what is out of range.
        bins = self.num_regions + 1
        cells = self.cells[0] * self.cells[1]
        # A map is summed over several times, with the same bins.
        if self._bins is None or self._bins.shape[0] != batch * cells:
            index = self.ids.flatten(1).long().clamp(-1, self.num_regions).remainder_(bins)
            if batch != 1:
                index = index + torch.arange(batch, device=index.device)[:, None] * bins
            self._bins = index.flatten()
        if rows != batch:
            values = values.expand(batch, -1, -1)
        sums = values.new_zeros(batch * bins, values.shape[2])
        sums = sums.index_add_(0, self._bins, values.reshape(-1, values.shape[2]))
        return sums.view(batch, bins, values.shape[2])[:, : self.num_regions]

    @property
    def moments(self) -> torch.Tensor:
        """
        Number of cells, and sums over them of y, x, y², x² from the image's middle in halves of a cell:
        `(batch_size, K, 5)`. These are whole numbers, so sums below 2²⁴ are exact in any order: the variance of a
        small region is a small difference of them, in which another order of rounding would show.
        """
        if self._moments is None:
            self._moments = self.sums(_cell_moments(*self.cells, self.ids.device), exact=True)
        return self._moments

    def geometry(self) -> torch.Tensor:
        """See [`geometry`]."""
        height, width = self.cells
        count, sums = self.moments.split((1, 4), dim=-1)
        centre, squares = (sums / count.clamp(min=1)).split(2, dim=-1)
        # A cell is two halves wide, so the variance within it is a third of the square of a half.
        variance = torch.add((squares - centre.square()).clamp(min=0), count > 0, alpha=1 / 3)
        scales, corner = _geometry_scales(height, width, count.device)
        return torch.addcmul(corner, torch.cat((centre, count, variance), dim=-1), scales)

    def overlap(self, grid: tuple[int, int]) -> torch.Tensor:
        """[`overlap`] transposed: `(batch_size, K, N)`."""
        (height, width), (rows, columns) = self.cells, grid
        if rows < 1 or columns < 1 or height % rows or width % columns:
            raise ValueError(f"Expected a grid of units that divides the map's {height} x {width} cells, got {grid}.")
        if grid == self.cells:
            return self.membership
        blocks = self.membership.view(*self.membership.shape[:2], rows, height // rows, columns, width // columns)
        return blocks.mean(dim=(3, 5)).flatten(2)


@cached_table
def _cell_moments(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(1, height * width, 5): one, y, x, y², x² of each cell, y and x from the middle, in halves of a cell."""
    y = 2 * torch.arange(height, dtype=torch.float32, device=device) - (height - 1)
    x = 2 * torch.arange(width, dtype=torch.float32, device=device) - (width - 1)
    y = y[:, None].expand(height, width).flatten()
    x = x[None, :].expand(height, width).flatten()
    return torch.stack((torch.ones_like(y), y, x, y.square(), x.square()), dim=1)[None]


@cached_table
def _geometry_scales(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(5,) each: from halves of a cell, their squares and cells to units of the image, and the middle of the image."""
    y, x = 1 / (2 * height), 1 / (2 * width)
    scales = torch.tensor([y, x, 1 / (height * width), y**2, x**2], dtype=torch.float32, device=device)
    return scales, torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], dtype=torch.float32, device=device)


def without_autocast(device_type: str) -> AbstractContextManager:
    """Within this context products keep the type of their arguments. Some devices, as meta, have no autocast."""
    if not is_autocast_available(device_type):
        return nullcontext()
    # To enter a context that changes nothing takes as long as ten small operations.
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@torch.compiler.assume_constant_result
def rounds_products(device_type: str) -> bool:
    """Whether a float32 matrix product on this device may run in TF32 or bfloat16."""
    if device_type != "cpu":
        return device_type == "cuda"
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    precision = getattr(matmul, "fp32_precision", None) or torch.get_float32_matmul_precision()
    return precision not in ("none", "ieee", "highest")


def overlap(ids: torch.Tensor, grid: tuple[int, int], num_superpixels: int) -> torch.Tensor:
    """
    Share of each unit that lies in each superpixel: O[j, i] = |S_i ∩ U_j| / |U_j| (FocusViT, arXiv 2506.18791).

    Args:
        ids (`torch.LongTensor` of shape `(batch_size, rows, columns)`): Superpixel of each cell.
        grid (pair of `int`): Rows and columns of the units; they divide the map's.
        num_superpixels (`int`): K.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, N, K)`, values in 0..1, N = grid rows · grid columns. Rows sum to 1
        where all ids are in [0, K); an id out of range counts for nobody.

    Raises:
        ValueError: when `ids` is no integer map or `grid` does not divide its size.
    """
    return Regions(ids, num_superpixels).overlap(grid).transpose(1, 2)


def geometry(ids: torch.Tensor, num_superpixels: int) -> torch.Tensor:
    """
    Place, size and extent of every superpixel, in units of the image.

    Args:
        ids (`torch.LongTensor` of shape `(batch_size, rows, columns)`): Superpixel of each cell.
        num_superpixels (`int`): K.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, K, 5)`: centroid y and x in 0..1 (0 at the upper left corner), share
        of the image's area in 0..1, variance along y and x (of the region as an area: between the cells' centres
        plus cell²/12). A superpixel without cells has its centroid at the image's centre and the rest 0.

    Raises:
        ValueError: when `ids` is no integer map.
    """
    return Regions(ids, num_superpixels).geometry()
