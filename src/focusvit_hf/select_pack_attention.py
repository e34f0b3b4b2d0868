"""
SPA, select-and-pack attention ("Select and Pack Attention", arXiv 2410.23608): in a layer of this kind attention and
MLP run on the tokens that a gate selects, a different number of each image, packed over the batch. What the paper
leaves open is decided here: the gate reads and weighs the normalised tokens, since the norm would undo a weight before
it, the temperature of the choice is 1, and a token that is not selected passes unchanged.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_focusvit import FocusViTConfig
from .regions import Regions
from .selection_options import SELECT_PACK, selection_threshold, selects_statically, selects_tokens
from .sparsification_options import kept_counts
from .token_choice import gather_tokens, straight_through, straight_through_choice
from .token_packing import Packing
from .token_relevance import TokenObserver
from .token_selection import (
    FocusViTSelectionGate,
    affordable_tokens,
    budget_level,
    largest_share,
    region_means,
    region_saliency,
    selection_loss,
)
from .token_sparsification import TokenState
from .transformer_layer import FocusViTLayer


class FocusViTSelectPackLayer(FocusViTLayer):
    r"""
    A layer whose tokens are selected: s = max(f(r), s_up), r = LN₁(x); of the selected tokens
    x ← x + Attention(sigmoid(s)·r); x ← x + MLP(LN₂(x)), and the others stay as they are. What stands before them, the
    class token, registers and latents, is always selected, with the weight 1.

    In training the choice is random around the scores and passes its gradient on as a soft one would.
    """

    def __init__(self, config: FocusViTConfig, drop_path_rate: float):
        super().__init__(config, SELECT_PACK, drop_path_rate)
        self.gate = FocusViTSelectionGate(config.hidden_size)
        self.threshold = selection_threshold(config)
        self.budget = config.select_budget if selects_statically(config) else None

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        num_tokens: int,
        inherited: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        column_mask: torch.Tensor | None = None,
        observer: TokenObserver | None = None,
        count: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): Its last tokens count.
            num_tokens (`int`): T, how many tokens can be selected.
            inherited (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*): The scores of the layer before.
            attention_mask, column_mask, observer: As of [`FocusViTAttention`].
            count (`int`, *optional*): How many tokens of each image to select, instead of those above the threshold.

        Returns:
            The new states, the scores `(batch_size, T)`, which tokens were selected `(batch_size, T)` bool, and what
            the observer makes of the attention.
        """
        first = hidden_states.shape[1] - num_tokens
        scores = self._scores(hidden_states, first, inherited)
        if self.budget is not None:
            count = kept_counts(num_tokens, (self.budget,))[0]
        kept = None if column_mask is None else column_mask[:, first:]
        choice = self._choice(scores - self.gate.level, kept, count)
        selected = choice.detach() > 0.5
        weights = scores.sigmoid() * choice if self.training else scores.sigmoid()
        weights = nn.functional.pad(weights, (first, 0), value=1.0).to(hidden_states.dtype)[..., None]
        observed = None
        if observer is not None or (count is None and self.attention.config._attn_implementation == "eager"):
            # Whoever asks for the map of attention gets that of all tokens, at the cost of a dense layer.
            there = nn.functional.pad(selected, (first, 0), value=True)
            columns = there.to(torch.float32) if column_mask is None else there * column_mask
            weighed = self.layernorm_before(hidden_states) * weights
            attended, _, observed = self.attention(weighed, None, attention_mask, columns, observer, **kwargs)
            states = self._mixed(hidden_states, attended)
            hidden_states = torch.where(there[..., None], states, hidden_states)
        elif count is not None:
            hidden_states = self._gathered(
                hidden_states, weights, choice, count, first, attention_mask, column_mask, **kwargs
            )
        else:
            hidden_states = self._packed(hidden_states, weights, selected, attention_mask, column_mask)
        return hidden_states, scores, selected, observed

    def _scores(self, hidden_states: torch.Tensor, first: int, inherited: torch.Tensor | None) -> torch.Tensor:
        """
        s of the tokens behind the first ones. The norm of all tokens is computed again for the gradient: where it was
        kept, a step with 30 % of the tokens took 49 % of the memory of dense layers, and so it takes 44 %.
        """

        def scored(states: torch.Tensor, inherited: torch.Tensor | None) -> torch.Tensor:
            scores: torch.Tensor = self.gate(self.layernorm_before(states)[:, first:], inherited)
            return scores

        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return scored(hidden_states, inherited)
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        scores: torch.Tensor = checkpoint(scored, hidden_states, inherited, **options)
        return scores

    def _choice(self, scores: torch.Tensor, kept: torch.Tensor | None, count: int | None) -> torch.Tensor:
        """1 for tokens that are selected, 0 for the others, `(batch_size, T)`; in training it carries a gradient."""
        kept = None if kept is None else kept.float()
        if self.training:
            return straight_through_choice(scores, kept, self.threshold, count)
        choice = straight_through(scores.detach().sigmoid(), self.threshold, count)
        return choice if kept is None else choice * kept

    def _mixed(self, states: torch.Tensor, attended: torch.Tensor, packing: Packing | None = None) -> torch.Tensor:
        """Both branches added to the states, packed or not."""
        of: tuple[Any, ...] = () if packing is None else (packing.images, len(packing.counts))
        states = states + self._residual(attended, self.attention_scale, *of)
        return states + self._residual(self.mlp(self.layernorm_after(states)), self.mlp_scale, *of)

    def _packed(
        self,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        selected: torch.Tensor,
        attention_mask: torch.Tensor | None,
        column_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """The selected tokens of the whole batch, as many as each image has."""
        if torch.compiler.is_compiling():
            raise ValueError(
                "Expected select_budget without select_threshold in a compiled or exported model, in which the number "
                f"of tokens is fixed, got select_threshold={self.threshold}, with which it depends on the image."
            )
        batch, length = hidden_states.shape[:2]
        packing = Packing.of(nn.functional.pad(selected, (length - selected.shape[1], 0), value=True))
        bias = None if attention_mask is None else attention_mask[:, 0, 0].expand(batch, -1)
        if column_mask is not None:
            # Of tokens that are there it is log 1 = 0, and has the gradient of the choice that kept them.
            there = column_mask.clamp(min=0.5).log()
            bias = there if bias is None else bias + there
        states = packing.pack(hidden_states)
        weighed = self.layernorm_before(states) * packing.pack(weights)
        attended = self.attention.packed(weighed, packing, None if bias is None else packing.pack(bias))
        return packing.scatter(self._mixed(states, attended, packing), hidden_states)

    def _gathered(
        self,
        hidden_states: torch.Tensor,
        weights: torch.Tensor,
        choice: torch.Tensor,
        count: int,
        first: int,
        attention_mask: torch.Tensor | None,
        column_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The same number of tokens of each image, so that no shape depends on what the images show."""
        chosen = choice.detach().topk(count, dim=1).indices.sort(dim=1).values + first
        always = torch.arange(first, device=chosen.device).expand(chosen.shape[0], -1)
        places = torch.cat((always, chosen), dim=1)
        mask = None
        if attention_mask is not None:
            mask = gather_tokens(attention_mask[:, 0, 0], places)[:, None, None].expand(-1, -1, first + count, -1)
        columns = None if column_mask is None else gather_tokens(column_mask, places)
        states = gather_tokens(hidden_states, places)
        weighed = self.layernorm_before(states) * gather_tokens(weights, places)
        attended, *_ = self.attention(weighed, None, mask, columns, **kwargs)
        states = self._mixed(states, attended)
        index = places[..., None].expand(-1, -1, hidden_states.shape[2])
        return hidden_states.scatter(1, index, states.to(hidden_states.dtype))


class TokenSelection:
    """
    The selections of one pass through a model.

    Args:
        config ([`FocusViTConfig`]): Of the model.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, channels, height, width)`): The images.
        masks (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*): What matters, in [0, 1].
        region_ids (callable): The region of each cell at the present depth, `(batch_size or 1, rows, columns)`.
        training (`bool`): Whether `select_supervision` takes part where there are no masks.

    Raises:
        ValueError: where masks are given for a model that selects nothing, of another shape, or out of range, and
            where a teacher's are missing.
    """

    def __init__(
        self,
        config: FocusViTConfig,
        pixel_values: torch.Tensor,
        masks: torch.Tensor | None,
        region_ids: Callable[[bool], torch.Tensor],
        training: bool,
    ):
        check_masks(config, pixel_values, masks)
        self.config, self.pixel_values, self.masks, self.region_ids = config, pixel_values, masks, region_ids
        self.supervision = "masks" if masks is not None else config.select_supervision if training else None
        if self.supervision == "teacher":
            # Without them the gates would learn nothing, and nobody would notice.
            raise ValueError(
                "Expected selection_masks, a teacher's relevance of each pixel, in training with "
                "select_supervision='teacher', got none."
            )
        self.selected: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self._targets: dict[bool, torch.Tensor] = {}

    def __call__(
        self,
        layer: nn.Module,
        stream: torch.Tensor,
        state: TokenState,
        attention_mask: torch.Tensor | None,
        observer: TokenObserver | None,
        of_patches: bool,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The stream behind a layer, and what the observer makes of it; `of_patches`: before pooling at depth."""
        columns = state.column_mask(stream.shape[1])
        candidates = state.count - state.num_fused
        affordable = self._affordable(candidates, stream.shape[1] - candidates)
        stream, state.scores, selected, observed = layer(
            stream, state.count, state.scores, attention_mask, columns, observer, affordable, **kwargs
        )
        scores, selected = state.scores[:, :candidates], selected[:, :candidates]
        there = None if state.kept is None else state.kept[:, :candidates].detach()
        if affordable is not None:
            # Where a score is as far above the level as the threshold asks, it is above those that are not affordable.
            threshold = selection_threshold(self.config)
            asked = math.log(threshold / (1 - threshold))
            layer.gate.follow(budget_level(scores, affordable, there) - asked)  # type: ignore[operator, union-attr]
        elif self.supervision in ("masks", "saliency"):
            targets = self._region_targets(of_patches, state.total).to(scores.device)
            targets = targets if state.places is None else targets.gather(1, state.places)
            self.losses.append(selection_loss(scores, targets if there is None else targets * there))
        if state.places is not None:
            every = selected.new_zeros(selected.shape[0], state.total)
            selected = every.scatter(1, state.places, selected)
        self.selected.append(selected)
        return stream, observed

    def _affordable(self, num_tokens: int, others: int) -> int | None:
        """How many tokens of each image the budget affords in a layer, where it teaches the gates."""
        if self.supervision != "budget":
            return None
        config = self.config
        sizes = (num_tokens, others, config.hidden_size, config.intermediate_size)
        return max(1, round(affordable_tokens(float(config.select_budget or 1), *sizes)))

    def _region_targets(self, of_patches: bool, num_regions: int) -> torch.Tensor:
        """What the gate is to say of each token, in [0, 1]: `(batch_size, N)`."""
        if of_patches not in self._targets:
            ids = self.region_ids(of_patches)
            images = self.pixel_values if self.masks is None else self.masks[:, None]
            cells = nn.functional.avg_pool2d(images.float(), self.config.cell_size)
            means = region_means(cells.to(ids.device), ids, num_regions)
            if self.masks is None:
                saliency = region_saliency(means, Regions(ids, num_regions).geometry())
                self._targets[of_patches] = largest_share(saliency, float(self.config.select_budget or 1))
            else:
                self._targets[of_patches] = means.squeeze(-1).clamp(0, 1)
        return self._targets[of_patches]

    def outputs(self) -> dict[str, Any]:
        """`selected_tokens` and `selection_loss` of [`FocusViTModelOutput`]."""
        loss = None
        if self.losses:
            device = self.losses[0].device
            loss = self.config.select_alpha * torch.stack([each.to(device) for each in self.losses]).sum()
        return {"selected_tokens": tuple(self.selected), "selection_loss": loss}


def check_masks(config: FocusViTConfig, pixel_values: torch.Tensor, masks: torch.Tensor | None) -> None:
    """Raises ValueError where `selection_masks` are given that the model cannot take."""
    if masks is None:
        return
    if not selects_tokens(config):
        raise ValueError(
            f"Expected no selection_masks: no layer of this model's layer_types is {SELECT_PACK!r}, got masks of "
            f"shape {tuple(masks.shape)}."
        )
    expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
    if tuple(masks.shape) != expected:
        raise ValueError(
            f"Expected selection_masks of shape {expected}, a value for each pixel, got {tuple(masks.shape)}."
        )
    # Elsewhere values are not checked: looking at them would break a compiled graph and make a GPU wait.
    if torch.compiler.is_compiling() or masks.device.type != "cpu" or masks.dtype == torch.bool:
        return
    low, high = masks.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Expected selection_masks in [0, 1], got values from {low} to {high}.")
