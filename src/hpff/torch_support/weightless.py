"""Models without memory for their weights, to see whether they can be built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Tensors' own, and those of torch.nn.init.
_DRAWS = frozenset(("cauchy_", "exponential_", "log_normal_", "normal_"))


@contextmanager
def weightless() -> Iterator[None]:
    """Tensors made in here have sizes and no content, and random numbers are not drawn."""
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Leaves tensors as they are.

    On the device "meta" PyTorch draws some distributions in Python, and imports its compiler first:
    that takes over a second (seen in 2.13).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
