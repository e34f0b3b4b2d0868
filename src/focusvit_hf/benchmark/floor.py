"""What a machine can do, and the time that no program for a model can beat on it: the floor under a measured time."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .cost import model_costs
from .timing import interleaved


_SIDE, _SIDE_ON_CPU = 8192, 2048
_COPIED = 2**26
_SMALL_OPERATIONS = 1000
_SLOWER_IN_TURN = 3
# A product may be a little faster in one shape than in the one that the machine was measured with.
_SLACK = 0.8


@dataclass(frozen=True)
class Machine:
    """
    What a device reaches at best, measured.

    Args:
        gflops (`float`): 10⁹ operations a second of a large matrix product.
        gigabytes (`float`): 10⁹ bytes a second, read and written, of a large copy.
        dispatch_us (`float`): Microseconds of one operation on a tensor that holds next to nothing.
    """

    gflops: float
    gigabytes: float
    dispatch_us: float


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """What `device` reaches in `dtype` with the present number of threads; takes about a second."""
    side = _SIDE_ON_CPU if device.type == "cpu" else _SIDE
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = shortest(lambda: left @ right, device)
    source = torch.ones(_COPIED, device=device)
    target = torch.empty_like(source)
    copy = shortest(lambda: target.copy_(source), device)
    small = torch.zeros(8, device=device)

    def operations() -> None:
        for _ in range(_SMALL_OPERATIONS):
            small.add(small)

    dispatch = shortest(operations, device)
    return Machine(2e-9 * side**3 / product, 2e-9 * source.nbytes / copy, 1e6 * dispatch / _SMALL_OPERATIONS)


def shortest(call: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of the shortest of five calls, after two that do not count."""
    return min(interleaved({"": call}, 5, 2, device=device)[""])


def model_floor(model: Any, pixel_values: torch.Tensor, machine: Machine) -> dict[str, float]:
    """
    The floor of a forward pass, and what it is made of.

    Args:
        model ([`PreTrainedModel`]): In evaluation mode, in the type that it is measured in.
        pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, side, side)`): What it is measured with.
        machine ([`Machine`]): Of the model's device and type.

    Returns:
        `dict[str, float]`: of an image `mflop` (matrix products and convolutions alone) and `megabytes` (the weights,
        shared by the batch, and the pixels); of the pass the number of dispatched `operations`; and in milliseconds an
        image `products_ms`, `bytes_ms`, the larger of these two as `floor_ms`, and `dispatch_ms`, what PyTorch takes
        for so many operations beside what they compute: a graph that is compiled or exported has fewer.
    """
    batch = len(pixel_values)
    # Of a copy, since LeViT keeps tables of the type in which it ran last.
    flops = model_costs(deepcopy(model).float(), pixel_values.shape[-1])["flops"]
    moved = sum(weight.nbytes for weight in model.parameters()) / batch + pixel_values[0].nbytes
    with torch.no_grad():
        # The first pass also makes the tables that later ones look up.
        model(pixel_values)
        with OperationCounter() as counter:
            model(pixel_values)
    floor = {
        "mflop": flops / 1e6,
        "megabytes": moved / 1e6,
        "operations": counter.total,
        "products_ms": flops / machine.gflops / 1e6,
        "bytes_ms": moved / machine.gigabytes / 1e6,
        "dispatch_ms": counter.total * machine.dispatch_us / 1e3 / batch,
    }
    return {**floor, "floor_ms": max(floor["products_ms"], floor["bytes_ms"])}


# torch documents this class as the way to see every operator; the module has an underscore all the same.
class OperationCounter(TorchDispatchMode):
    """
    Within this context `total` counts what torch dispatches, views included: each takes microseconds, whatever the
    size of its tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        return func(*args, **(kwargs or {}))


def check_plausible(
    seconds: dict[str, list[float]], alone: dict[str, list[float]], floors: dict[str, float] | None = None
) -> None:
    """
    Refuses times that cannot be a subject's own.

    Args:
        seconds (`dict[str, list[float]]`): Of each subject, timed in turn with the others.
        alone (`dict[str, list[float]]`): Of each subject, timed alone.
        floors (`dict[str, float]`, *optional*): Seconds that no program for a subject can beat.

    Raises:
        ValueError: where a subject takes far longer in turn than alone, since threads of one runtime then held the
            cores while another was timed; and where one is faster than the machine.
    """
    for name, values in seconds.items():
        found, expected = median(values), median(alone[name])
        if found > _SLOWER_IN_TURN * expected:
            raise ValueError(
                f"expected {name} to take at most {_SLOWER_IN_TURN} times as long in turn with the others as alone "
                f"({1000 * expected:.1f} ms), got {1000 * found:.1f} ms: nothing is written"
            )
        least = (floors or {}).get(name, 0.0) * _SLACK
        if found < least:
            raise ValueError(
                f"expected {name} to take at least {1000 * least:.2f} ms, below which this machine cannot compute it, "
                f"got {1000 * found:.2f} ms: nothing is written"
            )
