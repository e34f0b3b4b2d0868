import os
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from focusvit_hf.benchmark import memory as benchmark_memory
from focusvit_hf.benchmark.memory import peak_memory


CPU = torch.device("cpu")
FLOATS_PER_MIB = 2**18


def takes(mib):
    """What a process of its own prepares before it is measured, and then does."""
    kept = torch.ones(30 * FLOATS_PER_MIB)

    def call():
        return torch.ones(mib * FLOATS_PER_MIB).add_(kept[0]).sum()

    return call


def takes_and_frees(mib):
    """Blocks of 1 MiB, every other of which is freed before as many more come, beside 30 MiB from before."""
    blocks = [torch.ones(30 * FLOATS_PER_MIB)]

    def call():
        blocks.extend(torch.ones(FLOATS_PER_MIB) for _ in range(mib))
        del blocks[1::2]
        blocks.extend(torch.ones(FLOATS_PER_MIB * 3 // 2) for _ in range(mib // 3))

    return call


@pytest.mark.skipif(not benchmark_memory._STATUS.exists(), reason="only Linux tells the largest resident set")
def test_a_call_counts_without_what_was_there_before_and_without_the_allocators_holes(monkeypatch):
    monkeypatch.setenv(benchmark_memory._THRESHOLD, "123")
    assert peak_memory(takes_and_frees, 90, device=CPU) == pytest.approx(90, abs=8)
    assert os.environ[benchmark_memory._THRESHOLD] == "123"


def has_compiled(mib):
    """What a process prepares with 120 MiB that it gives back."""
    torch.ones(120 * FLOATS_PER_MIB).sum()
    return takes(mib)


@pytest.mark.skipif(not benchmark_memory._CLEAR_REFS.exists(), reason="only Linux resets the largest resident set")
def test_what_preparing_took_for_a_while_can_be_forgotten():
    """Without `forget` the 120 MiB of before would hide the 40 MiB of the call."""
    assert peak_memory(has_compiled, 40, device=CPU, forget=True) == pytest.approx(40, abs=8)


@pytest.mark.skipif(not benchmark_memory._STATUS.exists(), reason="only Linux tells the largest resident set")
def test_nothing_is_made_up_where_nothing_can_be_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_memory, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert benchmark_memory._growth(1, True, takes, 1) is None
    assert benchmark_memory._growth(1, False, takes, 1) is not None


def test_a_process_that_is_killed_is_an_error_of_memory(monkeypatch):
    class Killed:
        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def submit(self, *args):
            raise BrokenProcessPool

    monkeypatch.setattr(benchmark_memory, "ProcessPoolExecutor", Killed)
    monkeypatch.setattr(benchmark_memory, "_STATUS", benchmark_memory.Path(__file__))
    with pytest.raises(RuntimeError, match="was killed, probably for too little"):
        peak_memory(takes, 1, device=CPU)


def test_nothing_is_made_up_where_nobody_can_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark_memory, "_STATUS", tmp_path / "absent")
    assert peak_memory(takes, 1, device=CPU) is None
