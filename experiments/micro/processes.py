"""How the programs run: with memory that is kept, and several runs side by side."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


# glibc's large tensors come from a heap that is kept. By default each is mapped and given back: on a virtual machine
# faulting the pages in anew costs up to ten times the arithmetic.
_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def keep_heap() -> None:
    """Starts this program anew where its memory, or that of the processes it starts, is not kept yet."""
    if any(os.environ.get(name) != value for name, value in _KEPT.items()):
        os.environ.update(_KEPT)
        # As it was called: `sys.argv` has lost `-m` and the options of the interpreter.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def side_by_side(
    todo: Sequence[tuple[str, int]],
    finished: int,
    job_of: Callable[[str, int], Callable[[], dict[str, Any]]],
    prepare: Callable[[], Any],
    workers: int,
) -> None:
    """
    Runs what is left to do, and prints by name what comes of it.

    Args:
        todo (sequence of `(str, int)`): Name and seed of each run, see `results.runs_left`.
        finished (`int`): How many more were there before.
        job_of (callable): From a name and a seed to a call, which can be pickled, that gives the JSON of that run.
        prepare (callable): Called once before the first run, where there is one: what all of them read from the cache.
        workers (`int`): Processes.
    """
    print(f"{len(todo)} runs, {finished} finished before", flush=True)
    if not todo:
        return
    prepare()
    # One thread each: two runs side by side cost less than one on two threads, and other work slows them less.
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(job_of(name, seed)): f"{name}, seed {seed}" for name, seed in todo}
        for job in as_completed(running):
            result = job.result()
            print(f"{running[job]}: {result['accuracy']:.4f} in {result['seconds']:.0f} s", flush=True)
