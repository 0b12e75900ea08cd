"""Streams that keep account of what they waited for, and a check that it was enough."""

from __future__ import annotations

import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpff.engine.phase import Phase
from hpff.engine.streams import SeveralStreams

Clock = Counter["Stream"]


@dataclass(frozen=True)
class Stream:
    """A stream that knows what of other streams is done before what comes next on it."""

    number: int
    clock: Clock = field(default_factory=Counter, compare=False)


class Device:
    """A device of simulated streams (a `Machine`)."""

    def __init__(self) -> None:
        self.main = Stream(0)
        self.left = 0
        self.elsewhere = self.broken = False
        self._current = self.main
        self._created: list[Stream] = []

    def current(self) -> Stream:
        return replace(self._current)  # PyTorch gives another object each time, too

    def switch(self, stream: Stream) -> None:
        self._current = stream

    def create(self, number: int, beside: Stream) -> list[Stream]:
        assert beside == self.main
        self._created += [Stream(n) for n in range(len(self._created) + 1, number + 1)]
        return self._created[:number]

    def mark(self, stream: Stream) -> Clock:
        if self.broken:
            raise RuntimeError("the recording has failed")
        return Counter(stream.clock)

    def wait(self, stream: Stream, mark: Clock) -> None:
        stream.clock.update(mark - stream.clock)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and not self.elsewhere

    def leave(self) -> None:
        self.left += 1


class Memory:
    """What is known of a storage: who made it, wrote to it last and has used it since."""

    def __init__(self, home: Stream) -> None:
        self.home = home
        self.written: Clock = Counter()
        self.used: Clock = Counter()


class Races(TorchDispatchMode):
    """Checks that work on a device's streams could run at any time that their waits allow."""

    def __init__(self, device: Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.streams = Counter[Stream]()
        self.found: list[str] = []
        self.most = Counter[Stream]()  # bytes alive at once of what was made there
        self._alive = Counter[Stream]()
        self._known: dict[int, tuple[Any, Memory]] = {}
        self._let_go: dict[Stream, list[Memory]] = defaultdict(list)  # given back to it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        here = self.device.current()
        here.clock[here] += 1
        self.streams[here] += 1
        name, changes = str(func), func._schema.is_mutable
        if not changes and any(returned.alias_info for returned in func._schema.returns):
            return output  # a view: nothing is read
        for tensor in self._tensors((args, kwargs)):
            if memory := self._memory(tensor):
                self._after(here, memory.written, f"{name} reads what is yet to be written")
                memory.used[here] = here.clock[here]
        for tensor in self._tensors(output):
            memory = self._memory(tensor)
            if memory is None:
                memory = self._born(tensor, here, name)
            elif not changes:
                continue
            self._after(here, memory.used, f"{name} overwrites what is yet to be read")
            memory.written, memory.used = (Counter({here: here.clock[here]}) for _ in range(2))
        return output

    def _tensors(self, tree: Any) -> Iterator[Tensor]:
        return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))

    def _memory(self, tensor: Tensor) -> Memory | None:
        known = self._known.get(tensor.untyped_storage()._cdata)
        return known[1] if known else None

    def _born(self, tensor: Tensor, here: Stream, name: str) -> Memory:
        for memory in self._let_go.pop(here, []):
            self._after(here, memory.used, f"{name} is given memory that is yet to be read")
        storage = tensor.untyped_storage()
        key, size, memory = storage._cdata, storage.nbytes(), Memory(here)
        self._alive[here] += size
        self.most[here] = max(self.most[here], self._alive[here])

        def forget(_: Any) -> None:
            self._alive[here] -= size
            del self._known[key]
            self._let_go[memory.home].append(memory)

        self._known[key] = weakref.ref(storage, forget), memory
        return memory

    def _after(self, stream: Stream, clock: Clock, fault: str) -> None:
        if any(stream.clock[other] < time for other, time in clock.items()):
            self.found.append(fault)


@contextmanager
def simulated(patch: pytest.MonkeyPatch) -> Iterator[Races]:
    """Learners that are made inside work on a simulated device's streams, and are watched."""
    device = Device()

    def streams_on(_: torch.device, number: int) -> Any:
        return SeveralStreams(number, device)

    with patch.context() as context, Races(device) as races:
        context.setattr("hpff.learner.Phase", lambda: Phase(streams_on=streams_on))
        yield races
