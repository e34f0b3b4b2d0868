"""
SPOT ("Sparsification with Attention Dynamics via Token Relevance in Vision Transformers", arXiv 2511.10488): before
some layers the least relevant tokens leave. What the paper leaves open follows DynamicViT (Rao et al. 2021).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from .configuration_focusvit import FocusViTConfig
from .token_choice import gather_tokens, most_relevant, straight_through_choice, weighted_mean
from .token_merging import match_tokens, merge_tokens, merged_sums
from .token_relevance import FocusViTRelevancePredictor, TokenObserver, random_relevance


@dataclass
class TokenState:
    """
    What goes along with the tokens from layer to layer. A fused token stands behind the others.

    Args:
        area (`torch.FloatTensor` of shape `(batch_size or 1, T)`): Share of the image that each token covers.
        total (`int`): N, how many tokens there were.
        sizes (`torch.FloatTensor` of shape `(batch_size or 1, T)`, *optional*):
            How many of those each token stands for, once any were fused or merged.
        places (`torch.LongTensor` of shape `(batch_size, T)`, *optional*):
            Which of the N tokens is left; all of them where it is None. A fused token has none.
        kept (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*):
            In training with a learned choice no token leaves: 1 for one that is kept, 0 for a dropped one.
        scores (`torch.FloatTensor` of shape `(batch_size, T)`, *optional*):
            What the gate of the last layer of select-and-pack attention said of each token; the next one inherits it.
        num_fused (`int`): 1 where a fused token stands behind the others, else 0.
        observed (`dict`): What layers told of their attention, by the number of the layer, for the tokens left.
    """

    area: torch.Tensor
    total: int
    sizes: torch.Tensor | None = None
    places: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    num_fused: int = 0
    observed: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """T, the tokens in the sequence, a fused one included."""
        return self.area.shape[1]

    def column_mask(self, length: int) -> torch.Tensor | None:
        """`kept` behind ones for everything that stands before the tokens: `(batch_size, length)`."""
        if self.kept is None:
            return None
        return nn.functional.pad(self.kept, (length - self.kept.shape[1], 0), value=1.0)

    def weights(self) -> torch.Tensor:
        """The areas of the tokens that are there: `(batch_size or 1, T)`."""
        return self.area if self.kept is None else self.area * self.kept

    def proportions(self, with_area: bool) -> torch.Tensor | None:
        """
        What the attention to each token is raised by, before the logarithm: its area relative to the mean area, or
        else how many tokens it stands for. `(batch_size or 1, T)`, None where all are alike.
        """
        return self.area * self.total if with_area else self.sizes

    def to(self, device: torch.device) -> "TokenState":
        """The same on another device."""

        def moved(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else value.to(device)

        observed = {index: told.to(device) for index, told in self.observed.items()}
        return replace(
            self,
            area=self.area.to(device),
            sizes=moved(self.sizes),
            places=moved(self.places),
            kept=moved(self.kept),
            scores=moved(self.scores),
            observed=observed,
        )

    def inherited(self, stay: torch.Tensor, num_fused: int) -> torch.Tensor | None:
        """
        The scores of the tokens at the places `stay` `(batch_size, k)`. A fused token behind them is a new one, of
        which no layer said anything.
        """
        if self.scores is None:
            return None
        lowest = torch.finfo(self.scores.dtype).min
        return nn.functional.pad(gather_tokens(self.scores, stay), (0, num_fused), value=lowest)


def column_bias(state: TokenState, config: FocusViTConfig, dtype: torch.dtype) -> torch.Tensor | None:
    """
    b, what attention to each token is raised by, `(batch_size or 1, 1, 1, T)`: the logarithm of its area relative
    to the mean area, or of the number of tokens that were fused or merged in it. None where all are alike.

    Raises:
        ValueError: where attention runs on a kernel that takes no such mask.
    """
    proportions = state.proportions(config.attention_area_bias)
    if proportions is None:
        return None
    implementation = str(config._attn_implementation)
    # The bias is a mask, which flash attention does not take, and on which flex attention's CPU kernel crashes.
    if "flash" in implementation or "flex" in implementation:
        cause = "attention_area_bias=True"
        if not config.attention_area_bias:
            cause = f"sparsification_mode={config.sparsification_mode!r}"
        raise ValueError(
            f"Expected attn_implementation 'eager' or 'sdpa' with {cause}, which is a mask, got {implementation!r}."
        )
    # Of an empty token the logarithm would be infinite and its gradient not a number: it gets what is finite in the
    # types of autocast, too.
    lowest = torch.finfo(torch.float16).min
    there = proportions > 0
    bias = torch.where(there, torch.where(there, proportions, 1.0).log().clamp(min=lowest), lowest)
    return bias.to(dtype)[:, None, None, :]


class FocusViTTokenSparsification(nn.Module):
    """
    The stages of a model: before each layer of `config.sparsification_layers` some tokens leave, are fused into one,
    or are merged with others. Only a learned relevance has parameters.
    """

    def __init__(self, config: FocusViTConfig):
        super().__init__()
        self.config = config
        self.layers: tuple[int, ...] = tuple(config.sparsification_layers or ())
        if config.sparsification_relevance == "learned":
            self.predictors = nn.ModuleList(
                [FocusViTRelevancePredictor(config, self._num_descriptors(layer)) for layer in self.layers]
            )

    def window(self, layer: int) -> range:
        """The layers whose attention decides what stays before `layer`."""
        first = self.config.pooling_layer
        if self.config.descriptor_window is not None:
            first = max(first, layer - self.config.descriptor_window)
        return range(first, layer)

    def _num_descriptors(self, layer: int) -> int:
        """Six numbers a head, three where there are only latent layers, whose tokens are no queries."""
        kinds = self.config.layer_types or []
        return 6 if any(kinds[index] != "latent_attention" for index in self.window(layer)) else 3

    def stages(self, num_tokens: int) -> dict[int, int]:
        """How many tokens are left before each layer that changes their number."""
        counts = self.config.kept_counts(num_tokens)
        then = (num_tokens, *counts)
        return {layer: now for layer, now, before in zip(self.layers, counts, then, strict=False) if now < before}

    def observers(self, stages: Iterable[int]) -> dict[int, str]:
        """What each layer has to tell of its attention for some stages: a `relevance` of [`TokenObserver`]."""
        config = self.config
        if config.sparsification_mode == "merge":
            return dict.fromkeys((layer - 1 for layer in stages), "keys")
        if config.sparsification_relevance == "random":
            return {}
        observed = (index for layer in stages for index in self.window(layer))
        return dict.fromkeys(observed, config.sparsification_relevance)

    def forward(
        self, tokens: torch.Tensor, state: TokenState, layer: int, count: int, seeds: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, TokenState]:
        """
        The tokens that stay before `layer`, and what goes along with them.

        Args:
            tokens (`torch.FloatTensor` of shape `(batch_size, T, hidden_size)`): Tokens, a fused one last.
            state ([`TokenState`]): What goes along with them.
            layer (`int`), count (`int`): The stage, and how many tokens stay there, of [`stages`].
            seeds (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Of the images, for the random control.
        """
        state = state.to(tokens.device)
        if self.config.sparsification_mode == "merge":
            return self._merge(tokens, state, layer, count)
        candidates = tokens[:, : state.count - state.num_fused]
        scores = self._relevance(candidates, state, layer, seeds)
        if self.training and self.config.sparsification_relevance == "learned":
            return self._mask(tokens, state, scores)
        return self._choose(tokens, state, scores, count)

    def _relevance(
        self, tokens: torch.Tensor, state: TokenState, layer: int, seeds: torch.Tensor | None
    ) -> torch.Tensor:
        """Relevance of each token, `(batch_size, T)` without a fused one."""
        relevance = self.config.sparsification_relevance
        if relevance == "random":
            if seeds is None:
                raise ValueError("Expected the seeds of the images for random relevance, got None.")
            scores = random_relevance(seeds.to(tokens.device), state.total)
            return scores if state.places is None else scores.gather(1, state.places)
        maps = [state.observed[index] for index in self.window(layer)]
        if relevance == "attention":
            attention = torch.stack(maps).mean(dim=0)
            if state.scores is None:
                return attention
            # Nothing attends to tokens that no layer selected: among them the gate decides, below all others.
            below = state.scores[:, : attention.shape[1]].to(attention).sigmoid() - 1
            return torch.where(attention > 0, attention, below)
        described = [torch.stack([each[:, :, :3] for each in maps]).mean(dim=0)]
        rows = [each[:, :, 3:] for each in maps if each.shape[2] > 3]
        if rows:
            described.append(torch.stack(rows).mean(dim=0))
        kept = None if state.kept is None else state.kept[:, : tokens.shape[1]]
        return self.predictors[self.layers.index(layer)](tokens, torch.cat(described, dim=2), kept)

    def _choose(
        self, tokens: torch.Tensor, state: TokenState, scores: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, TokenState]:
        """The most relevant tokens are gathered; the others are dropped, or fused with what was fused before."""
        stay, rest = most_relevant(scores, count)
        chosen, area = gather_tokens(tokens, stay), gather_tokens(state.area, stay)
        places = stay if state.places is None else state.places.gather(1, stay)
        observed = {index: gather_tokens(told, stay) for index, told in state.observed.items()}
        new = replace(state, area=area, places=places, observed=observed)
        if self.config.sparsification_mode == "drop":
            return chosen, replace(new, scores=state.inherited(stay, 0))
        candidates = scores.shape[1]
        old = torch.arange(candidates, state.count, device=rest.device).expand(rest.shape[0], -1)
        rest = torch.cat((rest, old), dim=1)
        lost = gather_tokens(state.area, rest)
        fused = weighted_mean(gather_tokens(tokens, rest), lost)
        sizes = torch.ones_like(state.area) if state.sizes is None else state.sizes
        sizes, lost_sizes = gather_tokens(sizes, stay), gather_tokens(sizes, rest).sum(dim=1, keepdim=True)
        new.area = torch.cat((area, lost.sum(dim=1, keepdim=True)), dim=1)
        new.sizes = torch.cat((sizes, lost_sizes), dim=1)
        new.num_fused, new.scores = 1, state.inherited(stay, 1)
        return torch.cat((chosen, fused), dim=1), new

    def _mask(self, tokens: torch.Tensor, state: TokenState, scores: torch.Tensor) -> tuple[torch.Tensor, TokenState]:
        """All tokens stay in the sequence; those that were dropped are masked in the layers to come."""
        candidates = scores.shape[1]
        before = scores.new_ones(scores.shape) if state.kept is None else state.kept[:, :candidates]
        kept = straight_through_choice(scores, before.float())
        if self.config.sparsification_mode == "drop":
            return tokens, replace(state, kept=kept)
        area = state.area[:, :candidates]
        sizes = torch.ones_like(area) if state.sizes is None else state.sizes[:, :candidates]
        lost = (before - kept) * area
        lost_sizes = ((before - kept) * sizes).sum(dim=1, keepdim=True)
        if state.num_fused:
            lost = torch.cat((lost, state.area[:, candidates:]), dim=1)
            lost_sizes = lost_sizes + (0 if state.sizes is None else state.sizes[:, candidates:])
        fused = weighted_mean(tokens, lost)
        # Where nothing was dropped, there is nothing that could be seen.
        there = (lost_sizes.detach() > 0.5).to(kept.dtype)
        mask = torch.cat((kept, there), dim=1)
        batch = kept.shape[0]
        new_area = torch.cat((area.expand(batch, -1), lost.sum(dim=1, keepdim=True)), dim=1)
        new_sizes = torch.cat((sizes.expand(batch, -1), lost_sizes), dim=1)
        sequence = torch.cat((tokens[:, :candidates], fused), dim=1)
        every = torch.arange(candidates, device=tokens.device).expand(batch, -1)
        new = replace(state, area=new_area, sizes=new_sizes, kept=mask, num_fused=1)
        return sequence, replace(new, scores=state.inherited(every, 1))

    def _merge(
        self, tokens: torch.Tensor, state: TokenState, layer: int, count: int
    ) -> tuple[torch.Tensor, TokenState]:
        """The most similar tokens become one, whose place is that of the one that the other joins."""
        batch = tokens.shape[0]
        matched = match_tokens(state.observed[layer - 1], count)
        area = state.area.expand(batch, -1)
        sizes = torch.ones_like(area) if state.sizes is None else state.sizes.expand(batch, -1)
        stay = matched[0]
        places = stay if state.places is None else state.places.gather(1, stay)
        new = replace(
            state, area=merged_sums(area, *matched), sizes=merged_sums(sizes, *matched), places=places, observed={}
        )
        new.scores = state.inherited(stay, 0)
        return merge_tokens(tokens, area, *matched), new


class TokenChoice:
    """
    The choices of one pass through a model.

    Args:
        sparsification ([`FocusViTTokenSparsification`]): What makes them.
        num_tokens (`int`): N, the tokens before the first stage.
        seeds (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Of the images, for the random control.
    """

    def __init__(self, sparsification: FocusViTTokenSparsification, num_tokens: int, seeds: torch.Tensor | None):
        self.sparsification, self.num_tokens, self.seeds = sparsification, num_tokens, seeds
        self.layers = sparsification.layers
        # A stage that keeps all tokens is none: then the layers before it need not tell anything.
        self.stages = sparsification.stages(num_tokens)
        self.observers = sparsification.observers(self.stages)
        self.kept: list[torch.Tensor | None] = []
        self.masks: list[torch.Tensor | None] = []

    def observer(self, layer: int, state: TokenState) -> TokenObserver | None:
        """What `layer` shows its attention, for the tokens that are there; None where nobody asks."""
        if layer not in self.observers:
            return None
        candidates = state.count - state.num_fused
        prefix = self.sparsification.config.num_prefix_tokens
        return TokenObserver(self.observers[layer], candidates, state.num_fused, prefix)

    def __call__(self, tokens: torch.Tensor, state: TokenState, layer: int) -> tuple[torch.Tensor, TokenState]:
        """The tokens `(batch_size, T, hidden_size)` that stay before `layer`, and what goes along with them."""
        if layer in self.stages:
            tokens, state = self.sparsification(tokens, state, layer, self.stages[layer], self.seeds)
        candidates = state.count - state.num_fused
        self.kept.append(state.places)
        self.masks.append(None if state.kept is None else state.kept[:, :candidates])
        return tokens, state

    def outputs(self, sequence: torch.Tensor, state: TokenState, ends_in_tokens: bool) -> dict[str, Any]:
        """
        `kept_tokens`, `kept_masks` and `token_states` of [`FocusViTModelOutput`].

        Args:
            sequence (`torch.FloatTensor` of shape `(batch_size, length, hidden_size)`): The final sequence.
            state ([`TokenState`]): What goes along with the tokens.
            ends_in_tokens (`bool`): Whether the tokens stand at the end of the sequence.
        """
        batch, length = sequence.shape[:2]
        found: dict[str, Any] = {}
        if state.kept is None:
            every = torch.arange(self.num_tokens, device=sequence.device).expand(batch, -1)
            found["kept_tokens"] = tuple(every if places is None else places for places in self.kept)
        else:
            ones = state.kept.new_ones(batch, self.num_tokens)
            found["kept_masks"] = tuple(ones if mask is None else mask for mask in self.masks)
        if ends_in_tokens:
            found["token_states"] = sequence[:, length - state.count : length - state.num_fused]
        return found
