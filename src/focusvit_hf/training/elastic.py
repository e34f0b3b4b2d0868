"""Training at several numbers of superpixels, so that one checkpoint serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from transformers import TrainerCallback

from ..configuration_focusvit import FocusViTConfig


class ElasticSuperpixels(TrainerCallback):
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
        self.config = config
        self.num_superpixels = choices
        self.seed = seed
        self._own = config.num_superpixels

    def at(self, step: int) -> int:
        """K of a step, counted from 0."""
        state = np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)
        return self.num_superpixels[int(state[0] % len(self.num_superpixels))]

    @contextmanager
    def drawn(self, step: int) -> Iterator[None]:
        """Within this context the configuration holds the K of the step."""
        self.config.num_superpixels = self.at(step)
        try:
            yield
        finally:
            self.config.num_superpixels = self._own

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draws, for all parts of a batch whose gradients are accumulated."""
        self.config.num_superpixels = self.at(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gives the configuration its own number back, before anything is measured or saved."""
        self.config.num_superpixels = self._own
