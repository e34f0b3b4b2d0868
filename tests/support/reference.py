"""Plain, slow twins of the fast code: loops over one image at a time. The oracles of the tests."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
from skimage.color import rgb2lab

from focusvit_hf.superpixels import _integer_unit


OFFSETS = [(0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def tile_borders(count, length):
    return [math.floor(Fraction(i * length, count)) for i in range(count + 1)]


def tile_numbers(layout, height, width):
    """(height, width) the tile of each cell."""
    numbers = np.empty((height, width), np.int64)
    rows, columns = tile_borders(layout[0], height), tile_borders(layout[1], width)
    for r in range(layout[0]):
        for c in range(layout[1]):
            numbers[rows[r] : rows[r + 1], columns[c] : columns[c + 1]] = r * layout[1] + c
    return numbers


def tile_centres(layout, height, width):
    rows, columns = tile_borders(layout[0], height), tile_borders(layout[1], width)
    return [
        ((rows[r] + rows[r + 1]) // 2, (columns[c] + columns[c + 1]) // 2)
        for r in range(layout[0])
        for c in range(layout[1])
    ]


def candidates_of(tile, layout):
    """The tile itself and its neighbours inside the image, in the order that decides ties."""
    near = [(tile // layout[1] + dr, tile % layout[1] + dc) for dr, dc in OFFSETS]
    return [r * layout[1] + c for r, c in near if 0 <= r < layout[0] and 0 <= c < layout[1]]


def tiling(layout, height, width, step):
    """The tables of `superpixels._tiling`, one cell, one tile and one candidate after the other."""
    rows, columns = tile_borders(layout[0], height), tile_borders(layout[1], width)
    tall, wide = (max(end - start for start, end in pairwise(borders)) for borders in (rows, columns))
    tiles = [(r, c) for r in range(layout[0]) for c in range(layout[1])]
    tables = {
        "rows": [min(rows[r] + y, height - 1) for r in range(layout[0]) for y in range(tall)],
        "columns": [min(columns[c] + x, width - 1) for c in range(layout[1]) for x in range(wide)],
        "tile_height": tall,
        "tile_width": wide,
        "valid": np.zeros((len(tiles), 1, tall * wide)),
        "positions": np.zeros((len(tiles), 3, tall * wide)),
        "first_candidate": [[9 * tile] for tile in range(len(tiles))],
        "neighbours": np.zeros(9 * len(tiles)),
        "handicap": np.zeros((9 * len(tiles), 6)),
        "packing": np.array([-9, 18, 18, 18, 18, 18]),
        "sources": np.ones(9 * len(tiles)),
        "place_of_cell": np.zeros(height * width),
        "tile_of_cell": tile_numbers(layout, height, width).ravel(),
        "tile_centre": [y * width + x for y, x in tile_centres(layout, height, width)],
        "is_tile_centre": np.zeros(height * width, bool),
    }
    if height % layout[0] == width % layout[1] == 0:
        tables["rows"] = tables["columns"] = None
    tables["is_tile_centre"][tables["tile_centre"]] = True
    for tile, (r, c) in enumerate(tiles):
        for y in range(rows[r], rows[r + 1]):
            for x in range(columns[c], columns[c + 1]):
                place = (y - rows[r]) * wide + (x - columns[c])
                tables["valid"][tile, 0, place] = 1
                from_middle = [(y + 0.5 - height / 2) * step, (x + 0.5 - width / 2) * step]
                tables["positions"][tile, :, place] = [1, *map(round, from_middle)]
                tables["place_of_cell"][y * width + x] = tile * tall * wide + place
        for candidate, (dr, dc) in enumerate(OFFSETS):
            inside = (r + dr, c + dc) in tiles
            tables["neighbours"][9 * tile + candidate] = tiles.index((r + dr, c + dc)) if inside else 0
            tables["handicap"][9 * tile + candidate, 0] = -candidate if inside else -(2**27)
            if (r - dr, c - dc) in tiles:
                tables["sources"][9 * tile + candidate] = 9 * tiles.index((r - dr, c - dc)) + candidate
    return tables


def cell_means(image, cell):
    """Mean colour of each cell, (h, w, 3) float64, of a (3, H, W) uint8 image."""
    channels, height, width = image.shape
    blocks = image.astype(np.float64).reshape(channels, height // cell, cell, width // cell, cell)
    return blocks.mean(axis=(2, 4)).transpose(1, 2, 0)


def linear_light(level):
    """Decoded sRGB in 0..4095 of a grey level given in sixteenths."""
    value = level / (255 * 16)
    linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
    return round(linear * 4095)


def lab_curve(t):
    t = t / 4095
    return np.float32(t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29)


def fixed_point_lab(image, cell, unit):
    """(h, w, 3) of Python integers: (L - 50, a, b) in units of 1/unit, by the tables that `slic` defines."""
    means = cell_means(image, cell)
    lab = np.empty(means.shape, object)
    for place in np.ndindex(means.shape[:2]):
        red, green, blue = (linear_light(round(value * 16)) for value in means[place])
        x = lab_curve(round(Fraction(444 * red + 385 * green + 195 * blue, 1024)))
        y = lab_curve(round(Fraction(218 * red + 732 * green + 74 * blue, 1024)))
        z = lab_curve(round(Fraction(18 * red + 112 * green + 894 * blue, 1024)))
        lightness = (y - np.float32(66 / 116)) * np.float32(116 * unit)
        lab[place] = [
            int(np.rint(value))
            for value in (lightness, (x - y) * np.float32(500 * unit), (y - z) * np.float32(200 * unit))
        ]
    return lab


def slic(image, layout, compactness=10.0, num_iterations=5, cell=4):
    """
    `focusvit_hf.superpixels.slic` for one (3, H, W) uint8 image, label for label: the same fixed-point colours and
    positions, but Python integers, which never overflow or round.
    """
    _, image_height, image_width = image.shape
    height, width = image_height // cell, image_width // cell
    tiles, centre_cells = tile_numbers(layout, height, width), tile_centres(layout, height, width)
    num_tiles = layout[0] * layout[1]
    weight = compactness / math.sqrt(image_height * image_width / num_tiles) * cell
    unit = _integer_unit(weight, layout, height, width)

    lab = fixed_point_lab(image, cell, unit)
    row = [int(np.rint(np.float32(i + 0.5 - height / 2) * np.float32(weight * unit))) for i in range(height)]
    column = [int(np.rint(np.float32(i + 0.5 - width / 2) * np.float32(weight * unit))) for i in range(width)]
    points = {(i, j): (row[i], column[j], *lab[i, j]) for i in range(height) for j in range(width)}

    def mean(members):
        sums = [sum(points[cell][axis] for cell in members) for axis in range(5)]
        return tuple(int(np.rint(np.float32(total) / np.float32(len(members)))) for total in sums)

    def members_of(ids):
        members = [[] for _ in range(num_tiles)]
        for place in np.ndindex(height, width):
            members[ids[place]].append(place)
        return members

    near = [candidates_of(tile, layout) for tile in range(num_tiles)]
    members = members_of(tiles)
    centres = [mean(members[k]) for k in range(num_tiles)]
    ids = tiles.copy()
    for iteration in range(num_iterations):
        if iteration > 0:
            centres = [mean(members[k]) if members[k] else centres[k] for k in range(num_tiles)]
        for place, point in points.items():
            ids[place] = min(
                near[tiles[place]], key=lambda k: sum((a - b) ** 2 for a, b in zip(point, centres[k], strict=True))
            )
        members = members_of(ids)

    if all(members):
        return ids
    centre_set = set(centre_cells)
    needy = [k for k in range(num_tiles) if centre_set.issuperset(members[k])]
    for k in needy:
        ids[centre_cells[k]] = k
    return ids


def float_slic(image, layout, compactness=10.0, num_iterations=5, cell=4):
    """SLIC as the paper has it, in float64 with scikit-image's colours: tile seeds, 3 x 3 candidates, means."""
    lab = rgb2lab(cell_means(image, cell) / 255)
    height, width, _ = lab.shape
    tiles = tile_numbers(layout, height, width)
    num_tiles = layout[0] * layout[1]
    spacing = math.sqrt(image.shape[1] * image.shape[2] / num_tiles)
    y, x = np.mgrid[:height, :width] * float(cell)
    points = np.concatenate((np.stack((y, x), -1) * (compactness / spacing), lab), axis=-1)
    centres = np.stack([points[tiles == k].mean(axis=0) for k in range(num_tiles)])
    ids = tiles.copy()
    for iteration in range(num_iterations):
        if iteration > 0:
            for k in range(num_tiles):
                if (ids == k).any():
                    centres[k] = points[ids == k].mean(axis=0)
        for tile in range(num_tiles):
            near, inside = np.array(candidates_of(tile, layout)), tiles == tile
            distance = ((points[inside][:, None] - centres[near][None]) ** 2).sum(axis=-1)
            ids[inside] = near[distance.argmin(axis=1)]
    return ids


def overlap(ids, grid, num_superpixels):
    """(N, K) of one (h, w) map."""
    height, width = ids.shape[0] // grid[0], ids.shape[1] // grid[1]
    table = np.zeros((grid[0] * grid[1], num_superpixels))
    for row, column in np.ndindex(*ids.shape):
        number = ids[row, column]
        if 0 <= number < num_superpixels:
            table[(row // height) * grid[1] + column // width, number] += 1 / (height * width)
    return table


def geometry(ids, num_superpixels):
    """(K, 5) of one (h, w) map: the moments of each region, integrated over its cells as squares."""
    height, width = ids.shape
    table = np.zeros((num_superpixels, 5))
    for number in range(num_superpixels):
        cells = [(row, column) for row, column in np.ndindex(height, width) if ids[row, column] == number]
        table[number, 2] = len(cells) / (height * width)
        for axis, length in enumerate((height, width)):
            if not cells:
                table[number, axis] = 0.5
                continue
            edges = [(cell[axis] / length, (cell[axis] + 1) / length) for cell in cells]
            area = sum(high - low for low, high in edges)
            mean = sum((high**2 - low**2) / 2 for low, high in edges) / area
            second = sum(((high - mean) ** 3 - (low - mean) ** 3) / 3 for low, high in edges) / area
            table[number, axis], table[number, 3 + axis] = mean, second
    return table


def pool(units, weights, with_maximum=False, sharpness=8.0):
    """(K, C) or (K, 2 C): weighted mean, and smooth maximum log(Σ w·exp(β·u) / Σ w) / β, of (N, C) and (K, N)."""
    num_regions, num_channels = weights.shape[0], units.shape[1]
    table = np.zeros((num_regions, num_channels * (2 if with_maximum else 1)))
    for region, channel in np.ndindex(num_regions, num_channels):
        pairs = [(w, u) for w, u in zip(weights[region], units[:, channel], strict=True) if w > 0]
        if not pairs:
            continue
        total = sum(w for w, _ in pairs)
        table[region, channel] = sum(w * u for w, u in pairs) / total
        if with_maximum:
            largest = max(u for _, u in pairs)
            rate = sum(w * math.exp(sharpness * (u - largest)) for w, u in pairs) / total
            # The code measures exponentials from the largest of all units and floors what they sum to.
            floor = units[:, channel].max() + math.log(1e-30) / sharpness
            table[region, num_channels + channel] = max(math.log(rate) / sharpness + largest, floor)
    return table


def harden(weights, shapes, grid):
    """Hard assignment of (K, N) overlaps: largest share, then larger region, then nearer centroid; ties share."""
    num_regions, num_units = weights.shape
    hard = np.zeros(weights.shape)
    for unit in range(num_units):
        y, x = (unit // grid[1] + 0.5) / grid[0], (unit % grid[1] + 0.5) / grid[1]
        keys = [
            (weights[k, unit], shapes[k, 2], -((y - shapes[k, 0]) ** 2 + (x - shapes[k, 1]) ** 2))
            for k in range(num_regions)
        ]
        winners = [k for k in range(num_regions) if keys[k] == max(keys) and weights[k, unit] > 0]
        for k in winners:
            hard[k, unit] = 1 / len(winners)
    for k in range(num_regions):
        if not hard[k].any():
            hard[k] = weights[k]
    return hard


def attention(queries, source, parameters, num_heads, bias=None):
    """
    Multi-head attention of one image, a head, a query and a key at a time.

    `queries` (L, D), `source` (S, D), `parameters` name -> array of the four projections, `bias` (S,).
    """
    width = queries.shape[1]
    size = width // num_heads

    def project(states, name):
        return states @ parameters[f"{name}.weight"].T + parameters.get(f"{name}.bias", 0.0)

    query, key, value = (
        project(queries, "q_proj"),
        project(source, "k_proj"),
        project(source, "v_proj"),
    )
    mixed = np.zeros((len(queries), width))
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(queries)):
            scores = np.array([query[i, part] @ key[j, part] / math.sqrt(size) for j in range(len(source))])
            scores = scores if bias is None else scores + bias
            rates = np.exp(scores - scores.max())
            mixed[i, part] = sum(rate * value[j, part] for j, rate in enumerate(rates / rates.sum()))
    return project(mixed, "o_proj")
