"""PyTorch FocusViT with dense outputs: semantic segmentation, and a backbone of tokens laid back on their regions."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from .configuration_focusvit import FocusViTConfig
from .lay_back import values_of_cells
from .model_outputs import TokenStage, tell_of_layers
from .modeling_focusvit import FocusViTModel, FocusViTPreTrainedModel
from .segmentation_head import FocusViTSegmentationHead
from .segmentation_options import require_dense
from .transformer_layer import FocusViTLayer


@dataclass
class FocusViTSemanticSegmenterOutput(SemanticSegmenterOutput):
    r"""
    superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`):
        The region of each cell, at the resolution of the logits: superpixels, tiles of a grid or patches. With it
        `FocusViTImageProcessor.post_process_semantic_segmentation` can follow the borders of superpixels.
    aux_loss (`torch.FloatTensor` of shape `()`, *optional*):
        What the gates of select-and-pack attention add to the loss, as `selection_loss` of [`FocusViTModelOutput`];
        part of `loss` where that is given.
    selected_tokens: As of [`FocusViTModelOutput`].
    """

    superpixel_ids: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    selected_tokens: tuple[torch.Tensor, ...] | None = None


class FocusViTDenseModel(FocusViTPreTrainedModel):
    """
    What both dense models share. Latent layers leave the tokens as they are, and latents know no place in the image.
    So behind a latent layer the tokens read them once, by a layer with the roles exchanged:
    X ← X + LLA(LN₁(X), LN_x(Z)); X ← X + MLP(LN₂(X)).
    """

    focusvit: FocusViTModel
    reading: FocusViTLayer | None

    def _build(self, config: FocusViTConfig, stages: list[int]) -> None:
        """The encoder, and the reading layer where one of these stages lies behind a latent layer."""
        require_dense(config, type(self).__name__)
        kinds = [None, *(config.layer_types or ())]
        self.focusvit = FocusViTModel(config, add_pooling_layer=False)
        reads = any(kinds[stage] == "latent_attention" for stage in stages)
        self.reading = FocusViTLayer(config, "latent_attention", config.drop_path_rate) if reads else None

    def _tokens(self, stage: TokenStage) -> torch.Tensor:
        """The tokens of a stage, informed and normalised: `(batch_size, T, hidden_size)`."""
        tokens = stage.tokens
        if stage.latents is not None and self.reading is not None:
            tokens = self.reading(tokens.to(stage.latents.device), stage.latents)
        return self.focusvit.layernorm(tokens)


@auto_docstring(
    custom_intro="""
    FocusViT with a semantic segmentation head, which classifies each cell by the token of its region, for the context,
    and by the stem's own feature of the cell, for detail. The logits have the resolution of the cells.
    """
)
class FocusViTForSemanticSegmentation(FocusViTDenseModel):
    def __init__(self, config: FocusViTConfig):
        super().__init__(config)
        if not config.num_labels:
            raise ValueError(f"Expected num_labels >= 1 for semantic segmentation, got {config.num_labels}.")
        self.num_labels = config.num_labels
        self._build(config, [config.num_hidden_layers])
        self.segmentation_head = FocusViTSegmentationHead(config)
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
    ) -> FocusViTSemanticSegmenterOutput:
        r"""
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            Superpixel of each cell, as [`FocusViTModel`] takes it.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel in [0, num_labels), or `semantic_loss_ignore_index` where it does not count.
        selection_masks (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            What matters in each image, in [0, 1], as [`FocusViTModel`] takes it.
        """
        if labels is not None and pixel_values is not None:
            self._check_labels(labels, pixel_values)
        outputs = self.focusvit(
            pixel_values,
            superpixel_ids=superpixel_ids,
            selection_masks=selection_masks,
            output_stages=True,
            **kwargs,
        )
        stage = outputs.token_stages[-1]
        cells = outputs.units if self.config.uses_cell_features else None
        logits = self.segmentation_head(self._tokens(stage), stage.region_ids, cells)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, ignore_index=self.config.semantic_loss_ignore_index, **kwargs)
            added = outputs.selection_loss
            loss = loss if added is None else loss + added.to(loss)
        found = FocusViTSemanticSegmenterOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            superpixel_ids=stage.region_ids.expand(logits.shape[0], -1, -1),
            aux_loss=outputs.selection_loss,
        )
        of_layers = {"selected_tokens": outputs.selected_tokens}
        tell_of_layers(found, of_layers, as_items=self.training or labels is not None)
        return found

    def _check_labels(self, labels: torch.Tensor, pixel_values: torch.Tensor) -> None:
        expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
        if tuple(labels.shape) != expected:
            raise ValueError(f"Expected labels of shape {expected}, one for each pixel, got {tuple(labels.shape)}.")
        if labels.dtype != torch.int64:
            raise ValueError(f"Expected labels of type torch.int64, got {labels.dtype}.")
        # Looking at values would break a compiled graph and make a GPU wait.
        if torch.compiler.is_compiling() or labels.device.type != "cpu":
            return
        outside = (labels < 0) | (labels >= self.num_labels)
        outside &= labels != self.config.semantic_loss_ignore_index
        if outside.any():
            wrong = labels[outside].unique().tolist()
            raise ValueError(
                f"Expected labels in [0, {self.num_labels}) or semantic_loss_ignore_index="
                f"{self.config.semantic_loss_ignore_index}, got {wrong[:10]}."
            )


@auto_docstring(
    custom_intro="""
    FocusViT as a backbone. Each feature map is the tokens of a stage, normalised and laid back on their regions, at
    the resolution of the cells.
    """
)
class FocusViTBackbone(BackboneMixin, FocusViTDenseModel):
    def __init__(self, config: FocusViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self._build(config, self._stages())
        self.post_init()

    def _stages(self) -> list[int]:
        """The stages that are given, in ascending order, from 0."""
        return [index for index, name in enumerate(self.stage_names) if name in self.out_features]

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        superpixel_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        superpixel_ids (`torch.LongTensor` of shape `(batch_size, height / cell, width / cell)`, *optional*):
            Superpixel of each cell, as [`FocusViTModel`] takes it.

        Example:

        ```python
        >>> import torch
        >>> from focusvit_hf import FocusViTBackbone, FocusViTConfig

        >>> backbone = FocusViTBackbone(FocusViTConfig(num_hidden_layers=4, out_features=["stage2", "stage4"]))
        >>> [tuple(map.shape) for map in backbone(torch.zeros(1, 3, 224, 224)).feature_maps]
        [(1, 192, 56, 56), (1, 192, 56, 56)]
        ```"""
        outputs = self.focusvit(pixel_values, superpixel_ids=superpixel_ids, output_stages=True, **kwargs)
        stages = [outputs.token_stages[index] for index in self._stages()]
        maps: Any = tuple(
            values_of_cells(self._tokens(stage), stage.region_ids).permute(0, 3, 1, 2) for stage in stages
        )
        return BackboneOutput(feature_maps=maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


__all__ = ["FocusViTBackbone", "FocusViTForSemanticSegmentation"]
