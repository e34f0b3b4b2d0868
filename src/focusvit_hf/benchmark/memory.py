"""Peak memory of a forward pass or a training step: of the allocator on a GPU, of a process of its own on a CPU."""

import gc
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_MIB = 2**20
_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"


def peak_memory(
    prepare: Callable[..., Callable[[], Any]], *arguments: Any, device: torch.device, forget: bool = False
) -> float | None:
    """
    MiB by which one call raises the memory in use: what is there before does not count.

    On a CPU the call runs in a fresh process and the growth of its resident set is read from Linux' `/proc`.

    Args:
        prepare (callable): Builds, from `arguments`, what is to be called. For a CPU both can be pickled.
        device (`torch.device`): Where it computes.
        forget (`bool`, *optional*, defaults to `False`):
            On a CPU, whether to lower the process's high-water mark to what is in use before the call. A compiler that
            `prepare` ran has raised it above what the call will take.

    Returns:
        `float`, or `None` where neither CUDA nor `/proc` can tell, or cannot forget.

    Raises:
        RuntimeError: when there is too little memory.
    """
    if device.type == "cuda":
        call = prepare(*arguments)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    if device.type != "cpu" or not _STATUS.exists():
        return None
    # Not forked: a library's threads would not be there, and whoever waits for them waits for ever.
    with _blocks_given_back(), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        try:
            return processes.submit(_growth, torch.get_num_threads(), forget, prepare, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the process that measures memory was killed, probably for too little of it") from error


@contextmanager
def _blocks_given_back() -> Iterator[None]:
    """
    For processes started within, glibc's allocator gives each block above 64 KiB back as soon as it is free, so that
    the resident set follows the tensors that are alive. By default it keeps holes, more or fewer from run to run.
    """
    before = os.environ.get(_THRESHOLD)
    os.environ[_THRESHOLD] = str(2**16)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THRESHOLD]
        else:
            os.environ[_THRESHOLD] = before


def _growth(threads: int, forget: bool, prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float | None:
    torch.set_num_threads(threads)
    call = prepare(*arguments)
    _wake_libraries()
    if forget and not _forget_peak():
        return None
    before = _peak_resident_mib()
    call()
    return _peak_resident_mib() - before


def _wake_libraries() -> None:
    """Thread pools and kernel libraries take memory once, whatever they are used for."""
    net = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(), nn.Linear(8 * 8 * 8, 10))
    net(torch.zeros(2, 3, 32, 32)).sum().backward()


def _forget_peak() -> bool:
    """Lowers the largest resident set so far to the present one; whether that could be done."""
    gc.collect()
    try:
        # See proc_pid_clear_refs(5).
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _peak_resident_mib() -> float:
    """The largest resident set so far. `getrusage` would count the process that started this one, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) / 1024
