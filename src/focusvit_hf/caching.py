"""Constant tensors that follow from sizes: made once for each size and device."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch


_Arguments = ParamSpec("_Arguments")
_Table = TypeVar("_Table")


def cached_table(build: Callable[_Arguments, _Table]) -> Callable[_Arguments, _Table]:
    """
    Keeps what `build` returns for each set of (hashable) arguments.

    A traced graph builds its own, since a kept tensor would leak between the graph and the outside. What is first
    asked for in inference mode is made outside of it, so that it can serve later training.
    """

    @lru_cache(maxsize=64)
    def kept(*arguments: Any, **options: Any) -> _Table:
        with torch.inference_mode(False):
            return build(*arguments, **options)

    @wraps(build)
    def table(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Table:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return build(*arguments, **options)
        return kept(*arguments, **options)  # type: ignore[arg-type]

    table.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return table
