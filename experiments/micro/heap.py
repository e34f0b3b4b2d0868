"""How glibc hands out memory, which decides how fast training is on a CPU."""

from __future__ import annotations

import os
import sys


# Large tensors come from a heap that is kept. By default each is mapped and given back: on a virtual machine faulting
# the pages in anew costs up to ten times the arithmetic.
_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def keep_heap() -> None:
    """Starts this program anew where its memory, or that of the processes it starts, is not kept yet."""
    if any(os.environ.get(name) != value for name, value in _KEPT.items()):
        os.environ.update(_KEPT)
        os.execv(sys.executable, [sys.executable, *sys.argv])
