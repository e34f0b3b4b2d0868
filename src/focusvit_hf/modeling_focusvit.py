"""PyTorch FocusViT model."""

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_focusvit import FocusViTConfig
from .embeddings import FocusViTEmbeddings
from .latent_attention import FocusViTAttention
from .model_outputs import FocusViTImageClassifierOutput, FocusViTModelOutput, TokenStage, tell_of_layers
from .positions import FocusViTLearnedPosition
from .regions import Regions
from .select_pack_attention import FocusViTSelectPackLayer, TokenSelection, check_masks
from .selection_options import SELECT_PACK
from .superpixel_maps import superpixel_map
from .superpixel_options import SuperpixelOptions
from .superpixel_pooling import pool_units
from .token_choice import RATIO_WEIGHT, ratio_loss
from .token_relevance import image_seeds
from .token_selection import GATE_BIAS, FocusViTSelectionGate
from .token_sparsification import FocusViTTokenSparsification, TokenChoice, TokenState, column_bias
from .transformer_blocks import FocusViTLayerScale, FocusViTPooler
from .transformer_layer import FocusViTLayer


logger = logging.get_logger(__name__)


@auto_docstring
class FocusViTPreTrainedModel(PreTrainedModel):
    config: FocusViTConfig
    config_class = FocusViTConfig
    base_model_prefix = "focusvit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "FocusViTEmbeddings",
        "FocusViTLayer",
        "FocusViTSelectPackLayer",
        "FocusViTRelevancePredictor",
    ]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": FocusViTLayer, "attentions": FocusViTAttention}
    _input_embed_layer = "units"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if getattr(module, "keeps_variance", False):
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                init.lecun_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d) and getattr(module, "begins_at_zero", False):
            init.zeros_(module.weight)
        elif isinstance(module, FocusViTSelectionGate):
            init.constant_(module.bias, GATE_BIAS)
            init.zeros_(module.level)
        elif isinstance(module, FocusViTLearnedPosition):
            init.trunc_normal_(module.table, std=std)
        elif isinstance(module, FocusViTEmbeddings):
            # Class token, distillation token and registers.
            for token in module.parameters(recurse=False):
                init.trunc_normal_(token, std=std)
        elif isinstance(module, FocusViTLayerScale):
            init.constant_(module.factor, self.config.layer_scale or 1.0)
        elif isinstance(module, FocusViTModel) and hasattr(module, "latents"):
            init.trunc_normal_(module.latents, std=std)


@auto_docstring
class FocusViTModel(FocusViTPreTrainedModel):
    def __init__(self, config: FocusViTConfig, add_pooling_layer: bool | None = None):
        r"""
        add_pooling_layer (`bool`, *optional*):
            Whether to add a pooling layer; by default what the configuration says.
        """
        super().__init__(config)
        self.embeddings = FocusViTEmbeddings(config)
        self.layer_types = tuple(config.layer_types or ())
        # Stochastic depth grows linearly with depth, from nothing in the first layer.
        rates = torch.linspace(0, config.drop_path_rate, len(self.layer_types), device="cpu").tolist()
        self.layers = nn.ModuleList(
            [
                FocusViTSelectPackLayer(config, rate) if kind == SELECT_PACK else FocusViTLayer(config, kind, rate)
                for kind, rate in zip(self.layer_types, rates, strict=True)
            ]
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if "latent_attention" in self.layer_types:
            self.latents = nn.Parameter(torch.zeros(1, config.num_latents, config.hidden_size))
        if config.sparsification_layers:
            self.sparsification = FocusViTTokenSparsification(config)
        adds_pooler = config.add_pooling_layer if add_pooling_layer is None else add_pooling_layer
        self.pooler = FocusViTPooler(config) if adds_pooler else None
        self.post_init()

    @torch.no_grad()
    def compute_superpixel_ids(self, pixel_values: torch.Tensor) -> torch.Tensor:
        r"""
        Superpixels of normalised pixels, as the processor computes them.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Normalised with the configuration's `image_mean` and `image_std`. The normalisation is undone in
                float32 and rounded to 8 bits, so that float32 input gives the processor's map bit for bit.

        Returns:
            `torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, values in [0, K).

        Raises:
            ValueError: when the configuration's `superpixel_method` is not `"torch"`.
        """
        config = self.config
        if config.superpixel_method != "torch":
            raise ValueError(
                "Expected pixel_values with the superpixel_ids that FocusViTImageProcessor returns, since the model "
                f"computes none with superpixel_method={config.superpixel_method!r}, got pixel_values alone."
            )
        mean, std = (cast(list[float], values) for values in (config.image_mean, config.image_std))
        return superpixel_map(pixel_values, SuperpixelOptions.of(config), mean, std)

    @torch.no_grad()
    def region_ids(self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        The region of each cell: the map of what the model's tokens stand for, in their order.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): Normalised images.
            superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
                The superpixels, where they are known already; without them they are computed.

        Returns:
            `torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`: superpixels in [0, K), the tiles
            of a grid in [0, K) with `patch_pooling="grid"`, or the patches, in reading order, with `"none"`. A tensor
            of its own, unless `superpixel_ids` is given, which is returned as it is.

        Raises:
            ValueError: on inputs that `forward` refuses.
        """
        self._check_inputs(pixel_values, superpixel_ids)
        if superpixel_ids is not None:
            return superpixel_ids
        if self.config.patch_pooling == "superpixel":
            return self.compute_superpixel_ids(pixel_values)
        batch, _, height, width = pixel_values.shape
        return self.embeddings.tile_map(height, width, pixel_values.device).repeat(batch, 1, 1)

    def _check_inputs(self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None) -> None:
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"Expected pixel_values of shape (batch, {config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        # A graph for any number of images must not be bound to one by asking for it.
        if not torch.compiler.is_compiling() and pixel_values.shape[0] == 0:
            raise ValueError(f"Expected at least one image, got pixel_values of shape {tuple(pixel_values.shape)}.")
        if not pixel_values.is_floating_point():
            raise ValueError(f"Expected normalised pixel_values in floating point, got {pixel_values.dtype}.")
        height, width = pixel_values.shape[-2:]
        if not config.takes_size(height, width):
            raise ValueError(f"Expected a height and a width that {config.size_step} divides, got {height} x {width}.")
        if superpixel_ids is None:
            return
        if config.patch_pooling != "superpixel":
            raise ValueError(
                f"Expected no superpixel_ids: this model pools with patch_pooling={config.patch_pooling!r}, "
                f"got a map of shape {tuple(superpixel_ids.shape)}."
            )
        expected = (pixel_values.shape[0], height // config.cell_size, width // config.cell_size)
        if tuple(superpixel_ids.shape) != expected:
            raise ValueError(
                f"Expected superpixel_ids of shape {expected}, one for each cell of {config.cell_size} x "
                f"{config.cell_size} pixels, got {tuple(superpixel_ids.shape)}."
            )
        if superpixel_ids.is_floating_point() or superpixel_ids.dtype == torch.bool:
            raise ValueError(f"Expected integer superpixel_ids, got {superpixel_ids.dtype}.")
        # Elsewhere ids are not checked: looking at values would break a compiled graph and make a GPU wait.
        if not torch.compiler.is_compiling() and superpixel_ids.device.type == "cpu" and superpixel_ids.numel() > 0:
            low, high = superpixel_ids.aminmax()
            if low < 0 or high >= config.superpixel_count:
                raise ValueError(
                    f"Expected superpixel_ids in [0, {config.superpixel_count}), got values from {low} to {high}."
                )
            if high + 1 < config.superpixel_count:
                logger.warning_once(
                    f"The largest id of these superpixel_ids is {high}, but the model pools to "
                    f"{config.superpixel_count} superpixels, so that some stay empty and accuracy suffers: give "
                    f"num_superpixels={config.num_superpixels} to the image processor, or to both."
                )

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        superpixel_ids: torch.Tensor | None = None,
        selection_masks: torch.Tensor | None = None,
        output_stages: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FocusViTModelOutput:
        r"""
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            Superpixel of each cell, values in [0, K), as `FocusViTImageProcessor` returns them. Computed from
            `pixel_values` when absent, which needs the configuration's `superpixel_method` to be `"torch"`.
        selection_masks (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            What matters in each image, in [0, 1], such as boxes or masks of objects: the gates of select-and-pack
            attention learn from them, see `selection_loss`.
        output_stages (`bool`, *optional*, defaults to `False`):
            Whether to return `token_stages` and `units`, which dense outputs are made of.
        """
        if pixel_values is None:
            raise ValueError("Expected pixel_values, got None.")
        self._check_inputs(pixel_values, superpixel_ids)
        if superpixel_ids is None and self.config.patch_pooling == "superpixel":
            superpixel_ids = self.compute_superpixel_ids(pixel_values)
        pools_at_depth = self.config.pooling_layer > 0
        prefix, tokens, area, *units = self.embeddings(
            pixel_values.to(self.dtype), None if pools_at_depth else superpixel_ids, with_units=output_stages
        )
        dtype = tokens.dtype
        state = TokenState(area, tokens.shape[1])
        choice = self._choice(pixel_values, tokens.shape[1])
        selection = self._selection(pixel_values, superpixel_ids, selection_masks)

        # The query stream Z and the static context X. Until the first latent layer Z holds the tokens itself. A layer
        # on another device moves what it is given, and leaves there what it returns.
        stream, context = torch.cat((prefix, tokens), dim=1), None
        bias = column_bias(state, self.config, dtype)
        stages = []
        if output_stages:
            region_ids = self._region_ids(pixel_values, superpixel_ids, before_pooling=pools_at_depth)
            stages.append(TokenStage(tokens, None, region_ids))
        for index, (layer, layer_type) in enumerate(zip(self.layers, self.layer_types, strict=True)):
            reduced = None
            if pools_at_depth and index == self.config.pooling_layer:
                tokens = self._tokens_of(stream, context, state.count)
                height, width = pixel_values.shape[-2:]
                reduced = self._pool(tokens, superpixel_ids, (height, width))
            elif choice is not None and index in choice.layers:
                reduced = choice(self._tokens_of(stream, context, state.count), state, index)
            if reduced is not None:
                stream, context = self._with_tokens(stream, context, state.count, reduced[0])
                state = reduced[1]
                bias = column_bias(state, self.config, dtype)
            if layer_type == "latent_attention" and context is None:
                stream, context = self._split_off_context(stream, state.count)
            elif layer_type != "latent_attention" and context is not None:
                stream, context = torch.cat((stream, context.to(stream.device)), dim=1), None
            length = stream.shape[1] + (0 if context is None else context.shape[1])
            mask = self._mask(bias, stream, length)
            observer = None if choice is None else choice.observer(index, state)
            if selection is not None and layer_type == SELECT_PACK:
                of_patches = index < self.config.pooling_layer
                stream, observed = selection(layer, stream, state, mask, observer, of_patches, **kwargs)
            else:
                stream = layer(stream, context, mask, state.column_mask(length), observer, **kwargs)
                stream, observed = (stream, None) if observer is None else stream
            if observed is not None:
                state.observed[index] = observed
            if output_stages:
                if pools_at_depth and index == self.config.pooling_layer:
                    region_ids = self._region_ids(pixel_values, superpixel_ids)
                tokens = self._tokens_of(stream, context, state.count)
                stages.append(TokenStage(tokens, None if context is None else stream, region_ids))

        sequence = self.layernorm(stream)
        pooled = sequence[:, 0]
        told = {} if choice is None else choice.outputs(sequence, state, ends_in_tokens=context is None)
        told.update({} if selection is None else selection.outputs())
        of_layers = {name: told.pop(name, None) for name in ("kept_tokens", "selected_tokens")}
        outputs = FocusViTModelOutput(
            last_hidden_state=sequence,
            pooler_output=pooled if self.pooler is None else self.pooler(pooled),
            patch_mean=self._patch_mean(sequence, state.weights() if context is None else None),
            **told,
            **({"token_stages": tuple(stages), "units": units[0]} if output_stages else {}),
        )
        tell_of_layers(outputs, of_layers, as_items=self.training)
        return outputs

    def _region_ids(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None, before_pooling: bool = False
    ) -> torch.Tensor:
        """The region of each cell, or its patch before the tokens are pooled: `(batch_size or 1, rows, columns)`."""
        if superpixel_ids is not None and not before_pooling:
            return superpixel_ids
        height, width = pixel_values.shape[-2:]
        return self.embeddings.tile_map(height, width, pixel_values.device, of_patches=before_pooling)

    def _selection(
        self, pixel_values: torch.Tensor, superpixel_ids: torch.Tensor | None, masks: torch.Tensor | None
    ) -> TokenSelection | None:
        """What selects tokens in the layers of select-and-pack attention, in this pass; None for a model without."""
        if SELECT_PACK not in self.layer_types:
            check_masks(self.config, pixel_values, masks)
            return None

        def region_ids(of_patches: bool) -> torch.Tensor:
            return self._region_ids(pixel_values, superpixel_ids, before_pooling=of_patches)

        return TokenSelection(self.config, pixel_values, masks, region_ids, self.training)

    def _choice(self, pixel_values: torch.Tensor, num_tokens: int) -> TokenChoice | None:
        """What chooses the tokens that stay, in this pass; None for a model in which all do."""
        config = self.config
        if not hasattr(self, "sparsification"):
            return None
        if config.pooling_layer:
            num_tokens = config.num_regions(*pixel_values.shape[-2:])
        seeds = None
        if config.sparsification_relevance == "random":
            seeds = image_seeds(
                pixel_values, cast(list[float], config.image_mean), cast(list[float], config.image_std)
            )
        return TokenChoice(self.sparsification, num_tokens, seeds)

    def _pool(
        self, patches: torch.Tensor, superpixel_ids: torch.Tensor | None, size: tuple[int, int]
    ) -> tuple[torch.Tensor, TokenState]:
        """Pooling at depth: tokens that stand for patches, `(batch_size, N, hidden_size)`, to those of the regions."""
        config = self.config
        height, width = size
        ids = self.embeddings.tile_map(height, width, patches.device) if superpixel_ids is None else superpixel_ids
        regions = Regions(ids.to(patches.device), config.num_regions(height, width))
        shapes = regions.geometry()
        grid = (height // config.patch_size, width // config.patch_size)
        weights = self.embeddings.patch_weights(regions, shapes, grid)
        return pool_units(patches, weights), TokenState(shapes[..., 2], weights.shape[1])

    @staticmethod
    def _tokens_of(stream: torch.Tensor, context: torch.Tensor | None, count: int) -> torch.Tensor:
        return stream[:, stream.shape[1] - count :] if context is None else context

    @staticmethod
    def _with_tokens(
        stream: torch.Tensor, context: torch.Tensor | None, count: int, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Stream and context with other tokens in the place of the last `count`."""
        if context is not None:
            return stream, tokens
        return torch.cat((stream[:, : stream.shape[1] - count], tokens), dim=1), None

    def _patch_mean(self, sequence: torch.Tensor, area: torch.Tensor | None) -> torch.Tensor | None:
        """The mean of the tokens at the end of the sequence by `area`; without it that of all behind the prefix."""
        if self.config.classifier_pooling != "cls_patch_mean":
            return None
        if area is None:
            return sequence[:, self.config.num_prefix_tokens :].mean(dim=1)
        # In training a learned choice may drop every token of an image.
        weights = (area / area.sum(dim=1, keepdim=True).clamp(min=1e-6)).to(sequence)
        return (weights[:, None] @ sequence[:, -area.shape[1] :]).squeeze(1)

    def _split_off_context(self, stream: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        [prefix; X] or [prefix; latents; X] to ([prefix; latents], X), where the prefix holds class token, distillation
        token and registers. The latents join before the first such split.
        """
        split = stream.shape[1] - num_tokens
        queries, context = stream[:, :split], stream[:, split:]
        if split == self.config.num_prefix_tokens:
            latents = self.latents.expand(stream.shape[0], -1, -1).to(stream.device)
            queries = torch.cat((queries, latents), dim=1)
        return queries, context

    @staticmethod
    def _mask(area_bias: torch.Tensor | None, stream: torch.Tensor, length: int) -> torch.Tensor | None:
        """The bias with zeros for the prefix and the latents, which stand before the tokens in every layer."""
        if area_bias is None:
            return None
        mask = nn.functional.pad(area_bias, (length - area_bias.shape[-1], 0))
        return mask.expand(stream.shape[0], -1, stream.shape[1], -1)


@auto_docstring(
    custom_intro="""
    FocusViT with an image classification head, a linear layer on the final state of the class token. Other
    `classifier_pooling` reads the tokens' mean beside it, or averages it with a second one on the distillation token.
    """
)
class FocusViTForImageClassification(FocusViTPreTrainedModel):
    def __init__(self, config: FocusViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels or 0
        self.focusvit = FocusViTModel(config, add_pooling_layer=False)
        width = config.hidden_size * (2 if config.classifier_pooling == "cls_patch_mean" else 1)
        self.classifier = nn.Linear(width, self.num_labels) if self.num_labels else nn.Identity()
        if config.classifier_pooling == "cls_dist_mean":
            self.distillation_classifier = nn.Linear(width, self.num_labels) if self.num_labels else nn.Identity()
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        superpixel_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        selection_masks: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FocusViTImageClassifierOutput:
        r"""
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            Superpixel of each cell, values in [0, K), as `FocusViTImageProcessor` returns them. Computed from
            `pixel_values` when absent, which needs the configuration's `superpixel_method` to be `"torch"`.
        labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Class of each image in [0, num_labels), or floating-point targets where `problem_type` says so.
        selection_masks (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            What matters in each image, in [0, 1], as [`FocusViTModel`] takes it.
        """
        outputs = self.focusvit(pixel_values, superpixel_ids=superpixel_ids, selection_masks=selection_masks, **kwargs)
        features = outputs.pooler_output
        if self.config.classifier_pooling == "cls_patch_mean":
            features = torch.cat((features, outputs.patch_mean), dim=1)
        logits = self.classifier(features)
        if self.config.classifier_pooling == "cls_dist_mean":
            logits = (logits + self.distillation_classifier(outputs.last_hidden_state[:, 1])) / 2
        aux_loss = None
        if outputs.kept_masks is not None:
            aux_loss = RATIO_WEIGHT * ratio_loss(outputs.kept_masks, self.config.kept_shares)
        if outputs.selection_loss is not None:
            aux_loss = outputs.selection_loss if aux_loss is None else aux_loss + outputs.selection_loss.to(aux_loss)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
            loss = loss if aux_loss is None else loss + aux_loss.to(loss)
        found = FocusViTImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            aux_loss=aux_loss,
            kept_masks=outputs.kept_masks,
            token_states=outputs.token_states,
        )
        of_layers = {"kept_tokens": outputs.kept_tokens, "selected_tokens": outputs.selected_tokens}
        tell_of_layers(found, of_layers, as_items=self.training or labels is not None)
        return found


__all__ = ["FocusViTForImageClassification", "FocusViTModel", "FocusViTPreTrainedModel"]
