"""Training at several numbers of superpixels, or of tokens that stay, so that one checkpoint serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..configuration_focusvit import FocusViTConfig


class _Elastic(TrainerCallback):
    """Draws a field of a configuration anew for every step, as a function of the seed and the step."""

    def __init__(self, config: FocusViTConfig, name: str, choices: Sequence[Any], seed: int):
        self.config, self.seed = config, seed
        self._name, self._choices, self._own = name, tuple(choices), getattr(config, name)

    def at(self, step: int) -> Any:
        """The value of a step, counted from 0."""
        state = np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)
        return self._choices[int(state[0] % len(self._choices))]

    @contextmanager
    def drawn(self, step: int) -> Iterator[None]:
        """Within this context the configuration holds the value of the step."""
        setattr(self.config, self._name, self.at(step))
        try:
            yield
        finally:
            setattr(self.config, self._name, self._own)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws, for all parts of a batch whose gradients are accumulated."""
        setattr(self.config, self._name, self.at(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the configuration its own value back, before anything is measured or saved."""
        setattr(self.config, self._name, self._own)


class ElasticSuperpixels(_Elastic):
    """
    Draws the number of superpixels K anew for every step of training. Outside of the steps, in evaluation and in what
    is saved, the configuration keeps its own.

    The draw is a function of the seed and the step: K is the same on all processes of a distributed run, and a resumed
    run goes on as the uninterrupted one. The model computes the superpixels of a step itself, so the batches must not
    bring any (`do_superpixels=False` for the image processor of the collator).

    Args:
        config ([`FocusViTConfig`]): The configuration that the model reads: `model.config`.
        num_superpixels (sequence of `int`): What K is drawn from, each as likely as the others.
        seed (`int`, *optional*, defaults to 0): Seed of the run.

    Raises:
        ValueError: for no or repeated numbers, for numbers that cannot be laid out on the configuration's image, for
            a model that does not pool, and for one that does not compute superpixels itself.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTConfig
    >>> from focusvit_hf.training.elastic import ElasticSuperpixels

    >>> config = FocusViTConfig(num_superpixels=49)
    >>> elastic = ElasticSuperpixels(config, (25, 36, 49, 64))
    >>> with elastic.drawn(step=7):
    ...     drawn = config.num_superpixels
    >>> drawn == elastic.at(7), config.num_superpixels
    (True, 49)
    ```"""

    def __init__(self, config: FocusViTConfig, num_superpixels: Sequence[int], seed: int = 0):
        choices = tuple(num_superpixels)
        if not choices or len(set(choices)) < len(choices):
            raise ValueError(f"Expected one or more different numbers of superpixels to draw from, got {choices}.")
        for choice in choices:
            config.require_num_superpixels(choice)
        if config.patch_pooling == "superpixel" and config.superpixel_method != "torch":
            raise ValueError(
                f"Expected superpixel_method 'torch' to draw numbers of superpixels, got {config.superpixel_method!r}."
            )
        super().__init__(config, "num_superpixels", choices, seed)
        self.num_superpixels = choices


class ElasticKeepRatio(_Elastic):
    """
    Draws ρ, the share of the tokens that stays at each of the `sparsification_layers`, anew for every step of
    training, so that one checkpoint serves several budgets. As with [`ElasticSuperpixels`], the configuration keeps
    its own outside of the steps.

    Args:
        config ([`FocusViTConfig`]): The configuration that the model reads: `model.config`.
        keep_ratios (sequence of `float`): What ρ is drawn from, each in (0, 1].
        seed (`int`, *optional*, defaults to 0): Seed of the run.

    Raises:
        ValueError: for no, repeated or impossible ratios, and for a model in which all tokens stay.
    """

    def __init__(self, config: FocusViTConfig, keep_ratios: Sequence[float], seed: int = 0):
        choices = tuple(keep_ratios)
        if not choices or len(set(choices)) < len(choices):
            raise ValueError(f"Expected one or more different keep ratios to draw from, got {choices}.")
        if not config.sparsification_layers:
            raise ValueError("Expected a model with sparsification_layers to draw keep ratios for, got one without.")
        for choice in choices:
            # The configuration's own checks.
            FocusViTConfig.from_dict(config.to_dict(), keep_ratio=choice)
        super().__init__(config, "keep_ratio", choices, seed)
        self.keep_ratios = choices
