"""Graphs that are timed one after the other."""

import numpy as np
import onnxruntime
import torch

from focusvit_hf.benchmark import runtimes
from focusvit_hf.export import runtime


class Doubled(torch.nn.Module):
    """Values twice over, behind as many zeros as there are other outputs."""

    def __init__(self, others):
        super().__init__()
        self.others = others

    def forward(self, values):
        return *[values * 0] * self.others, values * 2


def test_each_graph_is_timed_in_a_session_that_is_alone(tmp_path, monkeypatch):
    files = {}
    for name, outputs in (("one", ["double"]), ("two", ["other", "double"])):
        files[name] = tmp_path / f"{name}.onnx"
        runtimes.write_module(Doubled(len(outputs) - 1), {"values": torch.zeros(2, 3)}, files[name], outputs)
    alive, asked = [], []

    class Session(onnxruntime.InferenceSession):
        def run(self, names, given):
            asked.append(names)
            return super().run(names, given)

        def __del__(self):
            alive.remove(self.number)

    def begun(file, spinning):
        assert not alive and spinning
        session = Session(file, providers=["CPUExecutionProvider"])
        session.number = len(asked)
        alive.append(session.number)
        return session

    monkeypatch.setattr(runtime, "onnx_session", begun)
    seconds = runtimes.one_session_at_a_time(files, np.ones((1, 3), np.float32), "double", rounds=2, runs=3, warmup=1)
    assert {name: len(values) for name, values in seconds.items()} == {"one": 6, "two": 6}
    assert all(value > 0 for values in seconds.values() for value in values)
    assert asked == [["double"]] * 16 and not alive
