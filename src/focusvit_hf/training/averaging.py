"""An exponential moving average of the weights, as a callback of Trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback


EMA_FILE = "ema.safetensors"


class ExponentialMovingAverage(TrainerCallback):
    """
    An exponential moving average of the weights, from `torch.optim.swa_utils`, updated after each optimiser step.

    After n updates the decay is `min(decay, (1 + n) / (10 + n))`: a short run is not ruled by its random start. Every
    training begins a new average, unless `resume_from` names a checkpoint whose average goes on.

    Args:
        decay (`float`): Between 0 and 1; 0.999 averages over about a thousand steps.

    Raises:
        ValueError: If `decay` is outside (0, 1).
    """

    def __init__(self, decay: float):
        if not 0.0 < decay < 1.0:
            raise ValueError(f"expected 0 < ema_decay < 1, got {decay}")
        self.decay = decay
        self.average: AveragedModel | None = None
        self.resume_from: Path | None = None

    def update(self, model: nn.Module) -> None:
        """Takes in the weights of `model`; begins with them where nothing was taken in yet."""
        average = self.average
        if average is None:
            average = self.average = AveragedModel(model, use_buffers=True).requires_grad_(False)
        updates = int(average.n_averaged)
        average.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + updates) / (10 + updates)))
        average.update_parameters(model)

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within this context `model` holds the averaged weights; before the first update nothing changes."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in model.state_dict().items()}
        try:
            model.load_state_dict(self.average.module.state_dict())
            yield
        finally:
            model.load_state_dict(own)

    def save(self, folder: Path) -> None:
        """Writes the average and its number of updates to `folder / "ema.safetensors"`."""
        if self.average is None:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.average.module.state_dict().items()}
        tensors["n_averaged"] = self.average.n_averaged.cpu()
        save_file(tensors, folder / EMA_FILE)

    def load(self, folder: Path, model: nn.Module) -> None:
        """
        Continues the average saved in `folder`, for `model`.

        Raises:
            ValueError: If the folder holds none, a damaged one, or one of another model.
        """
        path = folder / EMA_FILE
        if not path.is_file():
            raise ValueError(f"expected a moving average of the weights in {path}, got no such file; drop --ema_decay")
        average = AveragedModel(model, use_buffers=True).requires_grad_(False)
        names = {*average.module.state_dict(), "n_averaged"}
        try:
            tensors = load_file(path)
            if names != tensors.keys():
                raise ValueError(f"expected the weights {sorted(names)} in {path}, got {sorted(tensors)}")
            average.n_averaged.copy_(tensors.pop("n_averaged"))
            average.module.load_state_dict(tensors)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"expected the moving average of this model in {path}, got: {error}") from error
        self.average = average

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forgets what an earlier training of another model left, or goes on with the average of a checkpoint."""
        self.average = None
        if self.resume_from is not None:
            self.load(self.resume_from, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after each optimiser step."""
        self.update(kwargs["model"])
