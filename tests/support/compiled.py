"""Models that are compiled as one graph, from the pixels to the gradients."""

from typing import Any

import torch


def check_gradients_of_one_graph(model: Any, pixels: torch.Tensor) -> None:
    """The gradients of a model in training, traced as one graph, are those of the model as it is."""
    labels = torch.arange(len(pixels))
    model.zero_grad()
    model(pixels, labels=labels).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    compiled(pixels, labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)
