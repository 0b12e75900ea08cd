"""Count a step's arithmetic: that of convolutions, matrix products and attention."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import Self

from hpff.torch_support.arithmetic import arithmetic_of


class ArithmeticCounter(TorchDispatchMode):
    """Adds up the multiplications and additions of what runs while it is active.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __enter__(self) -> Self:
        _running.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        _running.remove(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self.total += arithmetic_of(func, args, kwargs, output)
        return output


_running: list[ArithmeticCounter] = []


def count_again(arithmetic: int) -> None:
    """What was counted before happens again, though nothing runs: every counter adds it."""
    for counter in _running:
        counter.total += arithmetic
