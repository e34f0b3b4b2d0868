"""What a model costs before any clock runs: parameters, FLOPs, element-wise operations and bytes, stage by stage."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker
from transformers import PreTrainedModel

from ..modeling_focusvit import FocusViTPreTrainedModel


# The stage of a module's own work, in the order of the path. A module that is not listed belongs to the one around it,
# so that another attention or another kind of layer needs no entry. What lies in none of them is the head's.
_STAGES = {
    "FocusViTConvEmbedding": "embedding",
    "FocusViTPatchEmbedding": "embedding",
    "ViTEmbeddings": "embedding",
    "FocusViTEmbeddings": "pooling",
    "FocusViTLayer": "attention",
    "FocusViTSelectPackLayer": "attention",
    "ViTLayer": "attention",
    "FocusViTMLP": "mlp",
    "FocusViTSwiGLU": "mlp",
    "ViTMLP": "mlp",
}
_HEAD = "head"
# The name by which both of torch's counters call what runs in no module, or in any.
_EVERYWHERE = "Global"
# The counter knows the attention kernels of GPUs, not the CPU's.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class StageCost:
    """
    What one stage costs for one image in float32.

    Args:
        stage (`str`): Its name.
        matmul_flops (`int`): Of matrix products and convolutions, a multiplication and an addition counting as two.
        element_operations (`int`):
            Elements that all other operators go through, for each operator the larger of what it reads and writes.
        activation_bytes (`int`):
            Read and written by the operators that are not element-wise: what is left to move once a compiler has fused
            the element-wise ones. Weights are not among them.
        weight_bytes (`int`): Of the parameters, read once for a whole batch.
    """

    stage: str
    matmul_flops: int = 0
    element_operations: int = 0
    activation_bytes: int = 0
    weight_bytes: int = 0


def model_costs(model: PreTrainedModel, resolution: int) -> dict[str, Any]:
    """
    Costs of one image of `resolution` x `resolution` pixels, from pixels to logits. The model is left in evaluation
    mode.

    Returns:
        `dict`: `parameters`; `flops`, counted by [`~torch.utils.flop_counter.FlopCounterMode`], which sees matrix
        products, convolutions and attention only; `stages`, the [`stage_costs`] where the model has them, else None.
        Neither holds anything of scikit-image's superpixels, whose cost nobody counts.
    """
    stages = stage_costs(model, resolution)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flops": count_flops(model, resolution) if stages is None else sum(stage.matmul_flops for stage in stages),
        "stages": None if stages is None else [asdict(stage) for stage in stages],
    }


def count_flops(model: PreTrainedModel, resolution: int) -> int:
    """
    FLOPs of a forward pass with one image, by torch's counter; attention on a CPU counts as on a GPU. The model is
    left in evaluation mode.
    """
    return _forward_counts(model, _blank(model, resolution), {})["matmul_flops"][_EVERYWHERE]


def stage_costs(model: PreTrainedModel, resolution: int) -> list[StageCost] | None:
    """
    What each stage of a FocusViT or a ViT does, counted while it runs.

    Args:
        model ([`PreTrainedModel`]): A model with its head; it is left in evaluation mode.
        resolution (`int`): Side of the image in pixels.

    Returns:
        List of [`StageCost`] in the order of the path: `superpixels` (torch's, from normalised pixels; left out for
        scikit-image's), `embedding`, `pooling` (with projection and position), `attention` (layers without their MLP,
        norms included), `mlp`, and `head` (all else). `None` for other models.
    """
    root = type(model).__name__
    stage_of = {
        f"{root}.{name}": _STAGES[type(module).__name__]
        for name, module in model.named_modules()
        if name and type(module).__name__ in _STAGES
    }
    if not stage_of:
        return None
    stage_of[root] = _HEAD
    pixel_values = _blank(model, resolution)
    stages, given = [], {}
    if isinstance(model, FocusViTPreTrainedModel) and model.config.patch_pooling == "superpixel":
        backbone: Any = model.base_model
        # Any map of all K numbers will do for what follows, and scikit-image's is not counted.
        given["superpixel_ids"] = backbone.embeddings.tile_map(resolution, resolution, model.device)
        if model.config.superpixel_method == "torch":
            counts = _counts(lambda: backbone.region_ids(pixel_values))
            stages.append(StageCost("superpixels", **{kind: count[_EVERYWHERE] for kind, count in counts.items()}))
    counts = _forward_counts(model, pixel_values, given)
    counts["weight_bytes"] = _weight_bytes(model)
    own = {kind: _own_of_stages(count, stage_of) for kind, count in counts.items()}
    for stage in dict.fromkeys((*_STAGES.values(), _HEAD)):
        if stage in stage_of.values():
            stages.append(StageCost(stage, **{kind: count[stage] for kind, count in own.items()}))
    return stages


def _blank(model: PreTrainedModel, resolution: int) -> torch.Tensor:
    return torch.zeros(1, model.config.num_channels, resolution, resolution, device=model.device)


def _own_of_stages(counts: Mapping[str, int], stage_of: Mapping[str, str]) -> Counter[str]:
    """From counts by module, in which modules include those inside, to counts by stage, in which nothing is twice."""
    own: Counter[str] = Counter()
    for name, stage in stage_of.items():
        own[stage] += counts[name]
        around = name.rpartition(".")[0]
        while around and around not in stage_of:
            around = around.rpartition(".")[0]
        if around:
            own[stage_of[around]] -= counts[name]
    return own


def _weight_bytes(model: PreTrainedModel) -> Counter[str]:
    """Bytes of the parameters by module, those inside included."""
    root = type(model).__name__
    return Counter(
        {
            f"{root}.{name}" if name else root: sum(parameter.nbytes for parameter in module.parameters())
            for name, module in model.named_modules()
        }
    )


def _forward_counts(
    model: PreTrainedModel, pixel_values: torch.Tensor, inputs: Mapping[str, torch.Tensor]
) -> dict[str, Counter[str]]:
    model.eval()
    # Where a module is handed a parameter that requires a gradient, torch's counter fails for want of one.
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return _counts(lambda: functional_call(model, weights, (pixel_values,), dict(inputs)), weights)


def _counts(call: Callable[[], Any], weights: Mapping[str, torch.Tensor] | None = None) -> dict[str, Counter[str]]:
    """What a call costs, by kind and by module, modules inside included."""

    def attention_flops(query: Any, key: Any, value: Any, *arguments: Any, **options: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # The first call fills tables that later ones find.
    with torch.no_grad():
        call()
    flops = FlopCounterMode(display=False, custom_mapping={_CPU_ATTENTION: attention_flops})
    moves = _Moves(weights or {})
    with ExitStack() as modes:
        for mode in (torch.no_grad(), flops, moves.modules, moves):
            modes.enter_context(mode)
        call()
    by_module = {name: sum(counts.values()) for name, counts in flops.get_flop_counts().items()}
    return {
        "matmul_flops": Counter(by_module),
        "element_operations": moves.elements,
        "activation_bytes": moves.bytes,
    }


# torch documents this class as the way to see every operator; the module has an underscore all the same.
class _Moves(TorchDispatchMode):
    """Elements and bytes that operators go through, by module; views cost nothing."""

    def __init__(self, weights: Mapping[str, torch.Tensor]):
        super().__init__()
        self.modules = ModuleTracker()
        self.elements: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self._weights = {_storage(weight) for weight in weights.values()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        written = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        is_view = not func._schema.is_mutable and {_storage(value) for value in written} <= {
            _storage(value) for value in read
        }
        if written and not is_view:
            read = [value for value in read if _storage(value) not in self._weights]
            is_product = func.overloadpacket in flop_registry or func.overloadpacket == _CPU_ATTENTION
            elements = 0 if is_product else max(sum(value.numel() for value in side) for side in (read, written))
            moved = 0 if torch.Tag.pointwise in func.tags else sum(value.nbytes for value in (*read, *written))
            for name in self.modules.parents:
                self.elements[name] += elements
                self.bytes[name] += moved
        return result


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
