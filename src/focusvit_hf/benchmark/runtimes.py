"""Models in ONNX Runtime: any classifier of transformers as a graph, and graphs that are timed one after the other."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..export.onnx import ONNX_OPSET


class ImagesToLogits(nn.Module):
    """A classifier behind the normalisation to -1..1: `(batch_size, 3, side, side)` in uint8 to logits."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.float() / 127.5 - 1).logits


def write_graph(model: PreTrainedModel, file: Path, resolution: int) -> None:
    """[`ImagesToLogits`] as ONNX by torch's exporter alone, for any number of images of `resolution` pixels."""
    images = torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)
    write_module(ImagesToLogits(model), {"images": images}, file)


def write_module(
    module: nn.Module, inputs: Mapping[str, torch.Tensor], file: Path, outputs: list[str] | None = None
) -> None:
    """A module as ONNX by torch's exporter alone, traced with a batch of two images and taking any number of them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    program: Any = torch.onnx.export(
        module.eval(),
        (),
        kwargs=dict(inputs),
        dynamo=True,
        dynamic_shapes={name: {0: "batch"} for name in inputs},
        output_names=outputs,
        opset_version=ONNX_OPSET,
        verbose=False,
    )
    program.save(file)


def one_session_at_a_time(
    files: Mapping[str, Path], images: np.ndarray, output: str, rounds: int = 7, runs: int = 20, warmup: int = 5
) -> dict[str, list[float]]:
    """
    Times graphs as a server of one model runs them: in each round every graph gets a session of its own, whose threads
    spin as ONNX Runtime's do by default, and which is gone before that of the next one begins. Among several sessions
    of a process a single image takes 1.3 to 2 times as long, since the threads of the others take its cores and their
    weights its cache.

    Args:
        files (mapping from names to paths): The graphs, each with one input.
        images (`np.ndarray`): What all of them get.
        output (`str`): The output that is asked for; of a graph without one of this name the first.
        rounds (`int`, *optional*, defaults to 7): Sessions of each graph.
        runs (`int`, *optional*, defaults to 20): Timed runs of each session, after `warmup` that do not count.

    Returns:
        `dict[str, list[float]]`: Seconds of each run, `rounds * runs` for each graph.
    """
    from ..export.runtime import onnx_session

    seconds: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(rounds):
        for name, file in files.items():
            session = onnx_session(file, spinning=True)
            names = [found.name for found in session.get_outputs()]
            asked = [output if output in names else names[0]]
            given = {session.get_inputs()[0].name: images}
            for turn in range(warmup + runs):
                start = time.perf_counter()
                session.run(asked, given)
                if turn >= warmup:
                    seconds[name].append(time.perf_counter() - start)
            del session
    return seconds
