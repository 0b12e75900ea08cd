"""Count the memory of tensors, exactly, on any device or none."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import Self

from hpff.torch_support.fake_tensors import FakeTensors

_DEVICE = torch.ops.prim.device.default


class AllocationCounter(TorchDispatchMode):
    """Follows every tensor storage that is made while it is active, and when it dies.

    Works under fake tensors too, where nothing is allocated. Scratch space inside a kernel is not
    a tensor and does not count.

    Attributes:
        current: bytes alive now.
        peak: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}
        self._away = False
        self._ends: list[Callable[[], None] | None] = []  # of watching fake tensors

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already, such as a model's parameters."""
        for tensor in tensors:
            self._count(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch wraps what follows, which takes longer than it does itself

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            return args[0].device  # fake tensors are asked for it all the time
        output = func(*args, **(kwargs or {}))
        self._look(output)
        return output

    def __enter__(self) -> Self:
        fakes = FakeTensors.active()
        if fakes is None:
            super().__enter__()  # type: ignore[no-untyped-call]
        self._ends.append(fakes.watch(self._look) if fakes else None)
        return self

    def __exit__(self, *raised: object) -> None:
        end = self._ends.pop()
        if end is None:
            super().__exit__(*raised)  # type: ignore[no-untyped-call]
        else:
            end()

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """What is made inside does not count."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def _look(self, output: Any) -> None:
        if self._away:
            return
        if isinstance(output, Tensor):
            self._count(output)
        elif output is not None:
            self.track(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._await_death(storage)
        self.current += size
        self._born(key, size)
        self.peak = max(self.peak, self.current)

    def _await_death(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: Any) -> None:
            del self._known[key]
            self.current -= size
            self._died(key, size)

        self._known[key] = weakref.ref(storage, forget)

    def _born(self, key: int, size: int) -> None:
        """A storage of ``size`` bytes was made; no other living one has its ``key``."""

    def _died(self, key: int, size: int) -> None:
        """The storage with this ``key`` is gone."""
