"""What a model costs before any clock runs: parameters, FLOPs, element-wise operations and bytes, stage by stage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel, ViTConfig

from ..configuration_focusvit import FocusViTConfig


_FLOAT, _ID = 4, 8
# Operations an element. Normalisation: sum, subtract, square, sum, divide, weight, bias.
_NORM = 7
# Scale, maximum, subtract, exponential, sum, divide.
_SOFTMAX = 6
# Scale, error function, add, multiply.
_GELU = 4
# Operations a cell and channel, beside the sum of its pixels: multiply, add, round, clamp undo the normalisation.
_LEVELS = 4
# Operations a cell. Three channels to the index of a table (scale, round) and its value, twice; in between a 3 x 3
# matrix (9 products, 6 sums); at last L, a, b (subtract, scale, round).
_LAB = 3 * 3 + 15 + 3 * 3 + 3 * 3
_FEATURES = 6
_CANDIDATES = 9
# Operations a superpixel and round: five means (divide, round), their squared norm (5 + 4), both scaled (5 + 1); nine
# candidates numbered, sums of nine tiles added.
_CENTRE = 2 * 5 + 9 + 6 + _CANDIDATES * _FEATURES + _CANDIDATES * _FEATURES
_GEOMETRY = 5
_FOURIER = 24
# What a FocusViT of the formulas below is. Others, converted from other models, have layers of other kinds.
_COUNTED = {
    "mlp_type": "mlp",
    "layer_scale": None,
    "num_prefix_tokens": 1,
    "superpixel_assignment": "soft",
}


@dataclass(frozen=True)
class StageCost:
    """
    What one stage costs for one picture in float32.

    Args:
        stage (`str`): Its name.
        matmul_flops (`int`): Of matrix products and convolutions, a multiplication and an addition counting as two.
        element_operations (`int`): Arithmetic on single elements; a table look-up, comparison or exponential is one.
        activation_bytes (`int`): Read and written when everything but the inputs and outputs of products is fused.
        weight_bytes (`int`): Read once for a whole batch.
    """

    stage: str
    matmul_flops: int = 0
    element_operations: int = 0
    activation_bytes: int = 0
    weight_bytes: int = 0

    def __add__(self, other: "StageCost") -> "StageCost":
        return StageCost(
            self.stage,
            self.matmul_flops + other.matmul_flops,
            self.element_operations + other.element_operations,
            self.activation_bytes + other.activation_bytes,
            self.weight_bytes + other.weight_bytes,
        )


def model_costs(model: PreTrainedModel, resolution: int) -> dict[str, Any]:
    """
    Costs of one picture of `resolution` x `resolution` pixels, from pixels to logits.

    Returns:
        `dict`: `parameters`; `flops`, counted by [`~torch.utils.flop_counter.FlopCounterMode`], which sees matrix
        products, convolutions and attention only; `stages`, the [`stage_costs`] where the model has them, else None.
        Neither holds anything of scikit-image's superpixels, whose cost nobody counts.
    """
    stages = stage_costs(model.config, resolution)
    given = {}
    if _takes_superpixels(model.config) and model.config.superpixel_method != "torch":
        # Any map will do; the model computes none by this method.
        cells = resolution // model.config.cell_size
        given["superpixel_ids"] = torch.zeros(1, cells, cells, dtype=torch.long, device=model.device)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_flops(model, torch.zeros(1, model.config.num_channels, resolution, resolution), **given),
        "stages": None if stages is None else [asdict(stage) for stage in stages],
    }


def count_flops(model: PreTrainedModel, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> int:
    """
    FLOPs of a forward pass, by torch's counter; attention on a CPU counts as on a GPU. The model is left in evaluation
    mode.
    """
    # The counter does not know the CPU's attention kernel.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    model.eval()
    # Where a module is handed a parameter, the counter asks for its gradient's function, even where there is none.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
            model(pixel_values.to(model.device), **inputs)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops()


def stage_costs(config: Any, resolution: int) -> list[StageCost] | None:
    """
    The least that a FocusViT or a ViT has to do, counted from its configuration.

    Args:
        config ([`PreTrainedConfig`]): The model's.
        resolution (`int`): Side of the picture in pixels.

    Returns:
        List of [`StageCost`]: `superpixels` (torch's, from normalised pixels; left out for scikit-image's),
        `embedding`, `pooling` (geometry, mean and maximum as sums over each region's cells, projection, position),
        `attention` and `mlp` of all layers with their norms, `head`. `None` for other models, and for what only
        converted ones have.
    """
    if not isinstance(config, (FocusViTConfig, ViTConfig)):
        return None
    if isinstance(config, FocusViTConfig) and any(getattr(config, key) != value for key, value in _COUNTED.items()):
        return None
    patches = _patch_count(config, resolution)
    if isinstance(config, ViTConfig):
        width = config.hidden_size
        # A position for each patch and the class token, and the class token.
        positions = StageCost("", element_operations=patches * width, weight_bytes=_FLOAT * (2 + patches) * width)
        layers = ["full_attention"] * config.num_hidden_layers
        return [_patches(config, resolution) + positions, *_encoder(config, layers, patches, 0)]
    tokens = patches if config.patch_pooling == "none" else config.superpixel_count
    is_counted = _takes_superpixels(config) and config.superpixel_method == "torch"
    stages = [_superpixels(config, resolution)] if is_counted else []
    uses_cells = config.embedding_type == "conv"
    stages.append(_cells(config, resolution) if uses_cells else _patches(config, resolution))
    stages.append(_pooling(config, resolution, tokens))
    return stages + _encoder(config, config.layer_types or [], tokens, config.num_latents)


def _takes_superpixels(config: Any) -> bool:
    return isinstance(config, FocusViTConfig) and config.patch_pooling == "superpixel"


def _patch_count(config: Any, resolution: int) -> int:
    return (resolution // config.patch_size) ** 2


def _superpixels(config: FocusViTConfig, resolution: int) -> StageCost:
    pixels, cells = resolution**2, (resolution // config.cell_size) ** 2
    rounds = config.superpixel_iterations
    products = cells * rounds * _CANDIDATES * _FEATURES
    nearest = cells * rounds * 2 * _CANDIDATES
    return StageCost(
        "superpixels",
        # Distances to the candidates, then sums over their members.
        matmul_flops=2 * 2 * products,
        element_operations=3 * pixels
        + cells * (3 * _LEVELS + _LAB)
        + nearest
        + config.superpixel_count * rounds * _CENTRE
        + cells,
        activation_bytes=_FLOAT * (3 * pixels + cells * (3 + _FEATURES * rounds)) + _ID * cells,
    )


def _cells(config: FocusViTConfig, resolution: int) -> StageCost:
    cells, channels = (resolution // config.cell_size) ** 2, config.stem_channels
    patch = 2 * config.cell_size + config.cell_size % 2
    weights = channels * (config.num_channels * patch**2 + 9 * channels + _FOURIER)
    return StageCost(
        "embedding",
        matmul_flops=2 * cells * weights,
        # Twice a ReLU, the position added. Its Fourier features do not depend on the picture.
        element_operations=cells * channels * 3,
        activation_bytes=_FLOAT * (config.num_channels * resolution**2 + 3 * cells * channels),
        # Each normalisation two factors a channel, the position a bias.
        weight_bytes=_FLOAT * (weights + 5 * channels),
    )


def _patches(config: Any, resolution: int) -> StageCost:
    patches, width = _patch_count(config, resolution), config.hidden_size
    weights = width * config.num_channels * config.patch_size**2
    return StageCost(
        "embedding",
        matmul_flops=2 * patches * weights,
        activation_bytes=_FLOAT * (config.num_channels * resolution**2 + patches * width),
        weight_bytes=_FLOAT * (weights + width),
    )


def _pooling(config: FocusViTConfig, resolution: int, tokens: int) -> StageCost:
    cells, patches = (resolution // config.cell_size) ** 2, _patch_count(config, resolution)
    width, channels = config.hidden_size, config.stem_channels
    is_learned, uses_cells = config.position_embedding_type == "learned", config.embedding_type == "conv"
    cost = StageCost("pooling", element_operations=cells * _GEOMETRY, activation_bytes=_ID * cells)
    if is_learned or not uses_cells:
        # Overlap with patches: membership of cells, compared, written and read; its means over patches.
        members = tokens * cells
        cost += StageCost("", 0, 2 * members, 2 * _FLOAT * (members + tokens * patches))
    if uses_cells:
        # Maximum, subtract, scale, exponential of each unit, and two sums; divide for the mean; divide, logarithm,
        # scale, add.
        cost += StageCost(
            "",
            2 * tokens * 2 * channels * width,
            cells * channels * (4 + 2) + tokens * channels * 5,
            _FLOAT * (cells * channels + 2 * 2 * tokens * channels),
            _FLOAT * (2 * channels * width + width),
        )
    else:
        cost += StageCost("", 2 * tokens * patches * width, tokens * width, _FLOAT * patches * width)
    if is_learned:
        table = patches * width
        position = StageCost("", 2 * tokens * table, 2 * tokens * width, 0, _FLOAT * (table + width))
    else:
        inputs = _FOURIER + 3
        weights = width * (inputs + width)
        # Angles, their sine and cosine; logarithms clamped; GELU; added.
        operations = tokens * (_FOURIER + _FOURIER // 2 + 2 * 3 + width * (_GELU + 1))
        position = StageCost(
            "", 2 * tokens * weights, operations, _FLOAT * tokens * 2 * width, _FLOAT * (weights + 2 * width)
        )
    return cost + position + StageCost("", activation_bytes=_FLOAT * tokens * width)


def _encoder(config: Any, layer_types: Sequence[str], tokens: int, latents: int) -> list[StageCost]:
    width, inner = config.hidden_size, config.intermediate_size
    attention, mlp = StageCost("attention"), StageCost("mlp")
    stream, context, has_latents = 1 + tokens, 0, False
    for layer_type in layer_types:
        if layer_type == "latent_attention" and context == 0:
            stream, context = stream - tokens + (0 if has_latents else latents), tokens
            has_latents = True
        elif layer_type == "full_attention" and context > 0:
            stream, context = stream + context, 0
        attention += _attention(config, stream, context)
        weights = 2 * width * inner
        mlp += StageCost(
            "",
            2 * stream * weights,
            stream * (width * (_NORM + 1) + inner * _GELU),
            _FLOAT * stream * (3 * width + 2 * inner),
            _FLOAT * (weights + inner + 3 * width),
        )
    return [attention, mlp, _head(config, stream, tokens if context == 0 else 0)]


def _head(config: Any, stream: int, weighed: int) -> StageCost:
    """Norm of `stream` states and classifier; the mean beside the class token is weighed over so many of them."""
    width = config.hidden_size
    has_mean = isinstance(config, FocusViTConfig) and config.classifier_pooling == "cls_patch_mean"
    read = 2 * width if has_mean else width
    cost = StageCost(
        "head",
        2 * read * config.num_labels,
        stream * width * _NORM,
        _FLOAT * (2 * stream * width + read + config.num_labels),
        _FLOAT * (config.num_labels * (read + 1) + 2 * width),
    )
    if has_mean:
        averaged = weighed or stream - 1
        products, additions = (2 * averaged * width, 0) if weighed else (0, averaged * width)
        cost += StageCost("", products, additions, _FLOAT * (averaged + 1) * width)
    return cost


def _attention(config: Any, stream: int, context: int) -> StageCost:
    """One layer: `stream` queries to themselves and to `context` tokens."""
    width, keys = config.hidden_size, stream + context
    weights = 4 * width**2
    scores = stream * keys
    has_bias = getattr(config, "attention_area_bias", False)
    # Queries, keys and values written and read; the output before and after its projection; the residual.
    moved = keys + 2 * (stream + 2 * keys) + 4 * stream
    return StageCost(
        "attention",
        2 * width**2 * (2 * stream + 2 * keys) + 2 * 2 * scores * width,
        width * (_NORM * keys + stream) + scores * config.num_attention_heads * (_SOFTMAX + has_bias),
        _FLOAT * width * moved,
        _FLOAT * (weights + 4 * width + 2 * width * (2 if context else 1)),
    )
