"""FocusViT model configuration."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, configuration_utils
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.utils import logging

from .errors import refuse_misspelt
from .segmentation_options import LAY_BACKS, check_segmentation
from .selection_options import SELECT_PACK, SUPERVISIONS, check_selection
from .sparsification_options import MODES, RELEVANCES, check_sparsification, kept_counts, kept_shares
from .superpixel_options import (
    LARGEST_SIZE,
    SHARED_FIELDS,
    SuperpixelOptions,
    check_options,
    check_range,
    superpixel_count,
    superpixel_layout,
)


# Installed with the package. A copy of this file that came with a checkpoint has no such folder beside it.
_PRESETS = Path(__file__).with_name("presets")
logger = logging.get_logger(__name__)

LAYER_TYPES = ("full_attention", "latent_attention", SELECT_PACK)
# A constant of the library is changed here because nothing smaller works: before it resumes, Trainer reads a
# checkpoint's config.json as a PreTrainedConfig, whose own check of `layer_types` knows the library's kinds of layers
# only, asks no subclass and offers no registration. Without this no run with latent layers could be resumed.
configuration_utils.ALLOWED_ATTN_LAYER_TYPES = tuple(  # type: ignore[assignment]
    dict.fromkeys((*configuration_utils.ALLOWED_ATTN_LAYER_TYPES, *LAYER_TYPES))
)
_CHOICES = {
    "embedding_type": ("conv", "patch"),
    "patch_pooling": ("superpixel", "grid", "none"),
    "superpixel_assignment": ("soft", "hard"),
    "position_embedding_type": ("dynamic", "learned"),
    "mlp_type": ("mlp", "swiglu"),
    "classifier_pooling": ("cls", "cls_dist_mean", "cls_patch_mean"),
    "sparsification_relevance": RELEVANCES,
    "sparsification_mode": MODES,
    "select_supervision": (None, *SUPERVISIONS),
    "segmentation_lay_back": LAY_BACKS,
}
# Smallest and largest value of each whole number and of each other number that is the configuration's own.
_COUNTS = {
    "num_channels": (1, LARGEST_SIZE),
    "hidden_size": (1, LARGEST_SIZE),
    # Each layer is built, however narrow: a thousand take seconds.
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, LARGEST_SIZE),
    "intermediate_size": (1, LARGEST_SIZE),
    "stem_channels": (1, LARGEST_SIZE),
    "stem_blocks": (0, 1000),
    "num_latents": (1, LARGEST_SIZE),
    "segmentation_hidden_size": (1, LARGEST_SIZE),
    "pack_length": (1, LARGEST_SIZE),
    "num_register_tokens": (0, LARGEST_SIZE),
    "num_labels": (0, LARGEST_SIZE),
}
_NUMBERS = {
    "layer_norm_eps": (1e-20, 1.0),
    "initializer_range": (1e-12, 1e3),
    "layer_scale": (1e-20, 1e6),
    "select_alpha": (0.0, 1e6),
}
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
_BACKBONE_FIELDS = ("out_features", "out_indices")
# Keys that every configuration takes though they are no attributes of its class.
_OTHER_KEYS = ("torch_dtype", "attn_implementation")
# Five times the parameters of the largest ViT.
_MOST_PARAMETERS = 100_000_000_000


@strict
class FocusViTConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    Configuration of a FocusViT ("Focus Your Attention: Towards Data-Intuitive Lightweight Vision Transformers",
    arXiv 2506.18791) and of its controls, the dense ViT and pooling over a regular grid.

    Args:
        image_size (`int` or (height, width), *optional*, defaults to 224):
            Size in pixels the model is trained at. Other sizes work in `forward`. The patch divides them where any
            part is made of patches (linear ones, a token a patch, a learned position), else the superpixels' cell.
        patch_size (`int`, *optional*, defaults to 16): Side of a patch in pixels.
        num_channels (`int`, *optional*, defaults to 3): Channels of `pixel_values`.
        hidden_size (`int`, *optional*, defaults to 192): Width D of the tokens.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of layers.
        num_attention_heads (`int`, *optional*, defaults to 3): Heads of each attention; divides `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 768): Width of the MLP.
        mlp_type (`str`, *optional*, defaults to `"mlp"`):
            `"mlp"`: two linear layers; `"swiglu"`: gated by SiLU, as in the largest DINOv2.
        hidden_act (`str`, *optional*, defaults to `"gelu"`): Activation of the MLP; SwiGLU has its own.
        hidden_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout after embedding, attention and MLP.
        attention_probs_dropout_prob (`float`, *optional*, defaults to 0.0): Dropout of the attention weights.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth: share of images a residual branch is skipped for, rising linearly to this in the last
            layer.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of initial weights.
        layer_norm_eps (`float`, *optional*, defaults to 1e-12): Epsilon of the layer norms.
        qkv_bias (`bool`, *optional*, defaults to `True`): Whether queries, keys and values have a bias.
        layer_scale (`float`, *optional*):
            Initial value of the learned scale of each channel of a residual branch (LayerScale); none by default.
        use_distillation_token (`bool`, *optional*, defaults to `False`):
            Whether DeiT's distillation token stands behind the class token.
        num_register_tokens (`int`, *optional*, defaults to 0):
            Number of register tokens (Darcet et al. 2023), which stand behind those and have no position.
        embedding_type (`str`, *optional*, defaults to `"conv"`):
            Units that are pooled: `"conv"`, cells of a small convolutional stem, pooled by mean and maximum;
            `"patch"`, linear patches as in ViT and the paper, pooled by their mean. The stem is batch-normalised: it
            keeps running statistics, learns poorly from batches of a few images, and where several processes train,
            each normalises by its own part, unless `torch.nn.SyncBatchNorm.convert_sync_batchnorm` was called.
        stem_channels (`int`, *optional*, defaults to 32): Channels of the convolutional stem.
        stem_blocks (`int`, *optional*, defaults to 0):
            Residual blocks, of two 3 x 3 convolutions each, in the stem: for small images, whose cells are few.
        patch_pooling (`str`, *optional*, defaults to `"superpixel"`):
            What a token is pooled over: `"superpixel"`; `"grid"`, as many tiles of a regular grid; `"none"`, one token
            a patch (the dense control).
        num_superpixels (`int` or (rows, columns), *optional*, defaults to 49):
            K, the number of tokens of an image. An `int` must factor into tiles of an aspect of at most 2.
        superpixel_compactness (`float`, *optional*, defaults to 10.0): m of SLIC: larger is squarer.
        superpixel_iterations (`int`, *optional*, defaults to 5): Rounds of SLIC.
        superpixel_cell_size (`int`, *optional*):
            Side in pixels of the cells that superpixels are made of; divides the patch. Defaults to the largest
            divisor of the patch that is at most a quarter of it.
        superpixel_method (`str`, *optional*, defaults to `"torch"`):
            `"torch"`, or `"skimage"` for the processor's slow reference. `forward` on pixels alone is `"torch"` only.
        superpixel_assignment (`str`, *optional*, defaults to `"soft"`):
            `"soft"`: a patch counts for every superpixel by its overlap; `"hard"`: for the one with the largest.
        position_embedding_type (`str`, *optional*, defaults to `"dynamic"`):
            `"dynamic"`: an MLP on each token's place, area and extent; `"learned"`: the table of a ViT, pooled like
            the patches.
        position_antialias (`bool`, *optional*, defaults to `False`):
            Whether the learned table is smoothed where it is interpolated to fewer patches.
        layer_types (`list[str]`, *optional*):
            Per layer `"full_attention"`, `"latent_attention"` or `"select_pack_attention"`. Defaults to latent
            attention in all layers.
        num_latents (`int`, *optional*, defaults to 16): M, the number of learned latent tokens.
        attention_area_bias (`bool`, *optional*, defaults to `False`):
            Whether attention to a token is raised by the logarithm of its area relative to the mean area.
        pooling_layer (`int`, *optional*, defaults to 0):
            The layer before which the tokens are pooled over the regions of `patch_pooling`. 0: before the encoder,
            as SPPP has it. A later layer sees a token for each patch until then; the tokens are pooled by their mean.
        sparsification_layers (`list[int]`, *optional*):
            SPOT: the layers, counted from 0, before which tokens leave; none by default. Not before the first layer,
            since the attention of the layer before tells which ones, and only after `pooling_layer`.
        keep_ratio (`float` or `list[float]`, *optional*, defaults to 0.7):
            ρ: of N tokens ⌊N·ρˢ⌋ are left after the s-th of those layers; or for each of them the share of all N
            tokens that is left. It can be changed when a model is loaded, and while it trains.
        sparsification_relevance (`str`, *optional*, defaults to `"attention"`):
            Which tokens stay. `"attention"`: those with the most attention, from the class token and on the average of
            the tokens, in the layer before; no parameters, no training. `"learned"`: by a small predictor on the
            tokens and on moments of their attention, which has to be trained. `"random"`: a control, drawn from the
            image itself.
        sparsification_mode (`str`, *optional*, defaults to `"drop"`):
            `"drop"`: the other tokens are gone; `"fuse"`: they become one token, their mean by area; `"merge"`: tokens
            whose keys were most alike become one (token merging), whatever their relevance. Attention to a token is
            raised by the logarithm of the number of tokens that were fused or merged in it.
        descriptor_window (`int`, *optional*, defaults to 1):
            Over how many layers before it a stage averages attention; None for all. Their maps of attention are
            computed in full, while other layers run on the fast kernels.
        select_threshold (`float`, *optional*):
            SPA: the sigmoid of its score, in (0, 1), from which on a layer of select-and-pack attention selects a
            token. 0.5 by default, where `select_budget` does not say how many tokens are selected. A score counts
            from the `level` of its gate, which is 0 unless a budget taught it.
        select_budget (`float`, *optional*):
            The share of the tokens that those layers select, in (0, 1]. Alone it fixes the number of tokens of each
            image, as compiled and exported models need it. Beside `select_threshold` it is what `select_supervision`
            aims at.
        select_supervision (`str`, *optional*):
            What the gates learn from in training where no `selection_masks` are given. `"budget"`: the loss of the
            task, while a layer selects as many tokens as the share `select_budget` of the FLOPs of a dense one
            affords, of each image in training and on the average in inference; `"saliency"`: the tokens that stand out
            most from their surroundings; `"teacher"`: a teacher's relevance, which the caller gives as
            `selection_masks` at every step, so that a step without them is an error.
        select_alpha (`float`, *optional*, defaults to 0.01): α, weight of the gates' cross entropy in the loss.
        pack_length (`int`, *optional*, defaults to 64): Tokens in a container that selected tokens are packed into.
        classifier_pooling (`str`, *optional*, defaults to `"cls"`):
            What the classifier reads. `"cls"`: the class token; `"cls_dist_mean"`: a classifier on the class token and
            another on the distillation token, averaged (DeiT); `"cls_patch_mean"`: the class token beside the mean of
            the tokens, weighted by their area, or of the latents where the last layer is a latent one (DINOv2).
        add_pooling_layer (`bool`, *optional*, defaults to `False`):
            Whether `pooler_output` of [`FocusViTModel`] is a linear layer and tanh on the class token instead of the
            class token itself. A classifier has none.
        semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
            Label of pixels that the loss of [`FocusViTForSemanticSegmentation`] passes over.
        segmentation_hidden_size (`int`, *optional*, defaults to 64): Width of its head.
        segmentation_cell_features (`bool`, *optional*):
            Whether its head reads the stem's own feature of each cell, for detail, beside the token of the cell's
            region. By default where there is a stem, `embedding_type="conv"`.
        segmentation_kernel_size (`int`, *optional*, defaults to 1):
            Side in cells, odd, of a depthwise convolution that mixes neighbouring cells in its head; 1 is none.
        segmentation_lay_back (`str`, *optional*, defaults to `"nearest"`):
            How a token becomes a value of each cell: `"nearest"`, that of the cell's region; `"bilinear"`, between the
            centres of the regions, which tiles and patches have in rows and columns and superpixels have not.
        out_features, out_indices (`list[str]`, `list[int]`, *optional*):
            What [`FocusViTBackbone`] gives, by name or by place in `stage_names`: `"stem"`, the tokens before the
            first layer, and `"stage1"`, `"stage2"`, … after each layer. The last one by default.
        image_mean, image_std (`float` or `list[float]`, *optional*, default to 0.5):
            For all channels or for each. Normalisation of `pixel_values`, undone to compute superpixels from them.

    Raises:
        ValueError: on values out of range or at odds with each other, and on an unknown key that looks like a
            misspelt field. Other unknown keys are kept, so that configurations of later versions load.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTConfig, FocusViTForImageClassification

    >>> config = FocusViTConfig(num_superpixels=36, num_labels=10)
    >>> model = FocusViTForImageClassification(config)
    ```"""

    model_type = "focusvit"
    keys_to_ignore_at_inference = [
        "kept_tokens",
        "kept_masks",
        "token_states",
        "selected_tokens",
        "aux_loss",
        "superpixel_ids",
    ]
    attribute_map = {"layer_norm_epsilon": "layer_norm_eps"}

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 192
    num_hidden_layers: int = 12
    num_attention_heads: int = 3
    intermediate_size: int = 768
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    mlp_type: str = "mlp"
    layer_scale: float | int | None = None
    use_distillation_token: bool = False
    num_register_tokens: int = 0
    embedding_type: str = "conv"
    stem_channels: int = 32
    stem_blocks: int = 0
    patch_pooling: str = "superpixel"
    num_superpixels: int | list[int] | tuple[int, int] = 49
    superpixel_compactness: float | int = 10.0
    superpixel_iterations: int = 5
    superpixel_cell_size: int | None = None
    superpixel_method: str = "torch"
    superpixel_assignment: str = "soft"
    position_embedding_type: str = "dynamic"
    position_antialias: bool = False
    layer_types: list[str] | None = None
    num_latents: int = 16
    attention_area_bias: bool = False
    pooling_layer: int = 0
    sparsification_layers: list[int] | tuple[int, ...] | None = None
    keep_ratio: float | int | list[float | int] | tuple[float | int, ...] = 0.7
    sparsification_relevance: str = "attention"
    sparsification_mode: str = "drop"
    descriptor_window: int | None = 1
    select_threshold: float | None = None
    select_budget: float | int | None = None
    select_supervision: str | None = None
    select_alpha: float | int = 0.01
    pack_length: int = 64
    classifier_pooling: str = "cls"
    add_pooling_layer: bool = False
    semantic_loss_ignore_index: int = 255
    segmentation_hidden_size: int = 64
    segmentation_cell_features: bool | None = None
    segmentation_kernel_size: int = 1
    segmentation_lay_back: str = "nearest"
    image_mean: float | int | list[float | int] | tuple[float | int, ...] = 0.5
    image_std: float | int | list[float | int] | tuple[float | int, ...] = 0.5

    def __post_init__(self, **kwargs: Any) -> None:
        self._refuse_misspelt(kwargs)
        # A configuration may come from anywhere: before anything as large as a size is built.
        self._check_ranges(kwargs)
        self._check_number_of_parameters(kwargs)
        if self.layer_types is None:
            self.layer_types = ["latent_attention"] * self.num_hidden_layers
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            listed = [values] * self.num_channels if isinstance(values, (int, float)) else values
            setattr(self, name, [float(value) for value in listed])
        out_features, out_indices = (kwargs.pop(name, None) for name in _BACKBONE_FIELDS)
        super().__post_init__(**kwargs)
        self._check_sizes()
        self.validate_layer_type()
        check_sparsification(self)
        check_selection(self)
        check_segmentation(self)
        self.set_output_features_output_indices(out_features, out_indices)
        for field, reason in self._idle_fields().items():
            logger.warning_once(f"{field}={getattr(self, field)!r} has no effect: {reason}.")

    @classmethod
    def from_preset(cls, name: str | os.PathLike[str], **overrides: Any) -> "FocusViTConfig":
        """
        The configuration of a size that this package recommends, such as `"focusvit-tiny"`.

        Args:
            name (`str` or path): Name of a preset, or the path of a JSON file with fields of a configuration.
            overrides: Fields of the configuration, instead of the preset's.

        Raises:
            ValueError:
                When there is no such preset (the known ones are named) or no such file, when the file holds no JSON
                object, and on the values that [`FocusViTConfig`] refuses.

        Example:

        ```python
        >>> from focusvit_hf import FocusViTConfig

        >>> config = FocusViTConfig.from_preset("focusvit-tiny", num_superpixels=100, num_labels=10)
        ```"""
        path = Path(name) if os.fspath(name).endswith(".json") else _PRESETS / f"{name}.json"
        if not path.is_file():
            known = sorted(preset.stem for preset in _PRESETS.glob("*.json"))
            presets = f"one of the presets {known}" if known else "a preset, which only the installed package has"
            raise ValueError(f"Expected {presets}, or the path of a JSON file, got {os.fspath(name)!r}.")
        try:
            preset = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"Expected JSON in {path}, got what cannot be read: {error}.") from error
        if not isinstance(preset, dict):
            raise ValueError(f"Expected a JSON object of configuration fields in {path}, got {type(preset).__name__}.")
        return cls(**{**preset, **overrides})

    def __getattribute__(self, name: str) -> Any:
        # The library looks each name up in two tables first, a microsecond and a half, and its pipeline asks for the
        # names of a thousand classes one by one for every image. torch.compile follows the library's way alone.
        if name == "id2label" and not torch.compiler.is_compiling():
            return object.__getattribute__(self, name)
        return super().__getattribute__(name)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class, but fields given beside the dictionary are checked like those in it."""
        cls._refuse_misspelt(kwargs)
        own = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        given = {name: kwargs.pop(name) for name in (*own, *_BACKBONE_FIELDS) if name in kwargs}
        # What is stored goes by the stored number of layers, and each of the two follows from the other.
        stale = _BACKBONE_FIELDS if {"num_hidden_layers", *_BACKBONE_FIELDS} & given.keys() else ()
        stored = {name: value for name, value in config_dict.items() if name not in stale}
        return super().from_dict({**stored, **given}, **kwargs)

    @classmethod
    def _refuse_misspelt(cls, kwargs: Mapping[str, Any]) -> None:
        names = [field.name for field in fields(cls)] + ["num_labels", *_BACKBONE_FIELDS]
        # Attributes that are no fields but that every configuration knows, such as num_labels.
        known = {*cls.attribute_map, *_OTHER_KEYS, *(key for key in kwargs if hasattr(cls, key))}
        refuse_misspelt(kwargs, names, "configuration field", known)

    def _check_ranges(self, kwargs: Mapping[str, Any]) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"Expected {name} to be one of {choices}, got {getattr(self, name)!r}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"Expected hidden_act to be one of {sorted(ACT2FN)}, got {self.hidden_act!r}.")
        # The number of labels is no field.
        given = {name: getattr(self, name) for name in (*_COUNTS, *_NUMBERS) if name != "num_labels"}
        given["num_labels"] = kwargs.get("num_labels")
        for name, value in given.items():
            if value is None and name in ("num_labels", "layer_scale"):
                continue
            check_range(name, value, *{**_COUNTS, **_NUMBERS}[name], whole=name in _COUNTS)
        for value in self.image_height_and_width:
            check_range("image_size", value, 1, LARGEST_SIZE, whole=True)
        for name in _PROBABILITIES:
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"Expected {name} in [0, 1), got {getattr(self, name)}.")
        check_options({name: getattr(self, name) for name in ("patch_size", *SHARED_FIELDS)})
        if self.classifier_pooling == "cls_dist_mean" and not self.use_distillation_token:
            raise ValueError(
                "Expected use_distillation_token=True with classifier_pooling='cls_dist_mean', got False."
            )

    def _check_number_of_parameters(self, kwargs: Mapping[str, Any]) -> None:
        num_labels = kwargs.get("num_labels") or 0
        count = self._parameters_of_matrices() + num_labels * self.hidden_size
        if count > _MOST_PARAMETERS:
            raise ValueError(
                f"Expected sizes of at most {_MOST_PARAMETERS:.0e} parameters, got {count:.1e} from "
                f"hidden_size={self.hidden_size}, num_hidden_layers={self.num_hidden_layers}, "
                f"intermediate_size={self.intermediate_size}, num_labels={num_labels}, "
                f"patch_size={self.patch_size} and image_size={self.image_size}."
            )

    def _parameters_of_matrices(self) -> int:
        """Parameters of the model without those of vectors such as biases and norms, which are few beside them."""
        width = self.hidden_size
        attention = 4 * width * width  # queries, keys, values, output
        mlp = (3 if self.mlp_type == "swiglu" else 2) * width * self.intermediate_size
        if self.embedding_type == "conv":
            cells = self.num_channels * (2 * self.cell_size) ** 2 * self.stem_channels
            mixing = (1 + 2 * self.stem_blocks) * 3**2 * self.stem_channels**2
            embedding = cells + mixing + 2 * self.stem_channels * width
        else:
            embedding = self.num_channels * self.patch_size**2 * width
        learned_tokens = self.num_latents + self.num_register_tokens
        if self.position_embedding_type == "learned":
            height, length = self.image_height_and_width
            learned_tokens += (height // self.patch_size) * (length // self.patch_size)
        return self.num_hidden_layers * (attention + mlp) + embedding + learned_tokens * width

    def _idle_fields(self) -> dict[str, str]:
        """
        Fields that were given and change nothing, with the reason. The controls, a grid and the dense model, have the
        fields of the model they stand beside, and those are theirs to ignore.
        """
        by_cells = (
            self.embedding_type == "conv" and self.position_embedding_type == "dynamic" and not self.pooling_layer
        )
        superpixels = self.patch_pooling == "superpixel"
        kinds = set(self.layer_types or ())
        full = "latent_attention" not in kinds
        nothing_selected = (SELECT_PACK not in kinds, f"no layer of layer_types is {SELECT_PACK!r}")
        selecting = ("select_threshold", "select_budget", "select_alpha", "pack_length")
        reasons = {
            "superpixel_assignment": (
                by_cells and superpixels,
                "with embedding_type='conv' and position_embedding_type='dynamic' each cell lies in one superpixel",
            ),
            "stem_channels": (self.embedding_type == "patch", "embedding_type='patch' has no stem"),
            "stem_blocks": (self.embedding_type == "patch", "embedding_type='patch' has no stem"),
            "position_antialias": (
                self.position_embedding_type == "dynamic",
                "position_embedding_type='dynamic' has no table to interpolate",
            ),
            "hidden_act": (self.mlp_type == "swiglu", "mlp_type='swiglu' has an activation of its own"),
            "num_latents": (superpixels and full, "no layer of layer_types is 'latent_attention'"),
            "drop_path_rate": (
                self.num_hidden_layers == 1,
                "it rises from 0 in the first layer, which is the only one",
            ),
            **dict.fromkeys(selecting, nothing_selected),
        }
        defaults = {field.name: field.default for field in fields(self)}
        return {
            name: reason for name, (idle, reason) in reasons.items() if idle and getattr(self, name) != defaults[name]
        }

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"Expected a hidden_size that num_attention_heads={self.num_attention_heads} divides, "
                f"got {self.hidden_size}."
            )
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != self.num_channels:
                raise ValueError(
                    f"Expected {name} with one value for each of the {self.num_channels} channels, got {values}."
                )
        height, width = self.image_height_and_width
        if not self.takes_size(height, width):
            raise ValueError(f"Expected an image_size that {self.size_step} divides, got {self.image_size}.")
        if self.patch_pooling != "none":
            self.require_num_superpixels(self.num_superpixels)
        if not isinstance(self.num_superpixels, int):
            self.num_superpixels = list(self.num_superpixels)

    def require_num_superpixels(self, num_superpixels: int | Sequence[int]) -> None:
        """Raises ValueError unless images of `image_size` can be pooled to as many tokens (or rows, columns)."""
        if self.patch_pooling == "none":
            raise ValueError(
                f"Expected patch_pooling 'superpixel' or 'grid' for {num_superpixels} tokens, got 'none'."
            )
        height, width = self.image_height_and_width
        superpixel_layout(num_superpixels, height // self.cell_size, width // self.cell_size)

    def validate_layer_type(self) -> None:
        """Raises ValueError unless `layer_types` names one of [`LAYER_TYPES`] for each layer."""
        layer_types = self.layer_types or []
        unknown = sorted(set(layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"Expected layer_types from {LAYER_TYPES}, got {unknown}.")
        if len(layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"Expected {self.num_hidden_layers} layer_types, one for each layer, got {len(layer_types)}."
            )

    @property
    def image_height_and_width(self) -> tuple[int, int]:
        """`image_size` as (height, width)."""
        size: int | Sequence[int] = self.image_size
        if isinstance(size, int):
            return size, size
        if len(size) != 2:
            raise ValueError(f"Expected image_size as one number or (height, width), got {size}.")
        return size[0], size[1]

    @property
    def cell_size(self) -> int:
        """Side of a superpixel cell in pixels: `superpixel_cell_size` or its default."""
        return SuperpixelOptions.of(self).cell_size

    @property
    def size_step(self) -> str:
        """What divides height and width of every image, for messages: the field and its value in pixels."""
        if self._uses_patches:
            return f"patch_size={self.patch_size}"
        return f"superpixel_cell_size={self.cell_size}"

    def takes_size(self, height: int, width: int) -> bool:
        """Whether the model works on images of `height` x `width` pixels."""
        step = self.patch_size if self._uses_patches else self.cell_size
        return min(height, width) > 0 and height % step == 0 and width % step == 0

    def region_layout(self, height: int, width: int) -> tuple[int, int]:
        """
        (rows, columns) of the regions of an image of `height` x `width` pixels: of its patches with
        `patch_pooling="none"`, else of the tiles, which superpixels start from and a grid pools over.

        Raises:
            ValueError: when `num_superpixels` cannot be laid out over the image, see [`superpixel_layout`].
        """
        if self.patch_pooling == "none":
            return height // self.patch_size, width // self.patch_size
        return superpixel_layout(self.num_superpixels, height // self.cell_size, width // self.cell_size)

    def num_regions(self, height: int, width: int) -> int:
        """The number of tokens that an image of `height` x `width` pixels is pooled to: K, or its patches."""
        if self.patch_pooling == "none":
            return (height // self.patch_size) * (width // self.patch_size)
        return self.superpixel_count

    @property
    def _uses_patches(self) -> bool:
        pooled_cells = self.embedding_type == "conv" and self.patch_pooling != "none"
        return not pooled_cells or self.position_embedding_type == "learned" or self.pooling_layer > 0

    @property
    def num_prefix_tokens(self) -> int:
        """Class token, distillation token and registers, which stand before all others in this order."""
        return 1 + int(self.use_distillation_token) + self.num_register_tokens

    @property
    def num_tokens(self) -> int:
        """K: the number of tokens an image of `image_size` is pooled to."""
        return self.num_regions(*self.image_height_and_width)

    @property
    def kept_shares(self) -> tuple[float, ...]:
        """The share of the tokens that is left after each of the `sparsification_layers`."""
        return kept_shares(self.keep_ratio, len(self.sparsification_layers or ()))

    def kept_counts(self, num_tokens: int) -> tuple[int, ...]:
        """How many of `num_tokens` tokens are left after each of the `sparsification_layers`."""
        return kept_counts(num_tokens, self.kept_shares)

    @property
    def stage_names(self) -> list[str]:
        """Names of what [`FocusViTBackbone`] can give: the tokens before the first layer and after each."""
        return ["stem", *(f"stage{index + 1}" for index in range(self.num_hidden_layers))]

    @property
    def uses_cell_features(self) -> bool:
        """Whether the segmentation head reads the stem's own feature of each cell."""
        given = self.segmentation_cell_features
        return self.embedding_type == "conv" if given is None else given

    @property
    def superpixel_count(self) -> int:
        """K as one number."""
        return superpixel_count(self.num_superpixels)


__all__ = ["FocusViTConfig"]
