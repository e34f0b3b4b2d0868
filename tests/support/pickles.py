"""Pickles that tell whether they were run, and the names under which libraries keep pickles."""

from pathlib import Path

from focusvit_hf.hub.loading import PICKLES


class Planted:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


# Where Transformers, PEFT, accelerate and torch keep pickles, beside any name with an ending of theirs.
PICKLE_NAMES = [
    "pytorch_model.bin",
    "adapter_model.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "training_args.bin",
    "custom_checkpoint_0.pkl",
    *(f"model{ending}" for ending in PICKLES),
]
