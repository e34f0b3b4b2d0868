"""The floor under a measured time, and times that cannot be true."""

import pytest
import torch

from focusvit_hf.benchmark.cost import count_flops
from focusvit_hf.benchmark.floor import Machine, OperationCounter, check_plausible, measure_machine, model_floor


CPU = torch.device("cpu")


def test_a_machine_is_measured_in_units_that_people_know(monkeypatch):
    monkeypatch.setattr("focusvit_hf.benchmark.floor._SIDE_ON_CPU", 64)
    monkeypatch.setattr("focusvit_hf.benchmark.floor._COPIED", 2**12)
    machine = measure_machine(CPU, torch.float32)
    assert 0.01 < machine.gflops < 1e5 and 0.01 < machine.gigabytes < 1e5 and 0.01 < machine.dispatch_us < 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_floor_of_a_model_by_hand(tiny_model, dtype):
    model, pixels = tiny_model(num_hidden_layers=1).to(dtype), torch.zeros(4, 3, 32, 32, dtype=dtype)
    floor = model_floor(model, pixels, Machine(gflops=2.0, gigabytes=4.0, dispatch_us=3.0))
    flops = count_flops(tiny_model(num_hidden_layers=1), 32)
    moved = dtype.itemsize * (sum(weight.numel() for weight in model.parameters()) / 4 + 3 * 32 * 32)
    assert floor["mflop"] == pytest.approx(flops / 1e6) and floor["megabytes"] == pytest.approx(moved / 1e6)
    assert floor["products_ms"] == pytest.approx(1000 * flops / 2e9)
    assert floor["bytes_ms"] == pytest.approx(1000 * moved / 4e9)
    assert floor["floor_ms"] == max(floor["products_ms"], floor["bytes_ms"])
    with OperationCounter() as counter, torch.no_grad():
        model(pixels)
    assert floor["operations"] == counter.total > 50
    assert floor["dispatch_ms"] == pytest.approx(counter.total * 0.003 / 4)
    assert model.dtype == dtype


def test_a_subject_that_others_hold_up_is_refused():
    """As ViT in torch, 19 ms alone, that took 1,500 ms beside the spinning threads of ONNX Runtime."""
    alone = {"ViT, torch": [0.019, 0.020, 0.019], "ViT, ONNX Runtime": [0.030, 0.030, 0.031]}
    check_plausible({"ViT, torch": [0.025] * 9, "ViT, ONNX Runtime": [0.04] * 9}, alone)
    with pytest.raises(ValueError, match=r"ViT, torch to take .* \(19\.0 ms\), got 1500\.0 ms: nothing is written"):
        check_plausible({"ViT, ONNX Runtime": [0.03] * 9, "ViT, torch": [1.5] * 9}, alone)


def test_a_time_below_the_floor_is_refused():
    check_plausible({"ViT": [0.019] * 3}, {"ViT": [0.019]}, {"ViT": 0.018})
    with pytest.raises(ValueError, match=r"expected ViT to take at least 16\.00 ms, .* got 1\.00 ms"):
        check_plausible({"ViT": [0.001] * 3}, {"ViT": [0.001]}, {"ViT": 0.020})
