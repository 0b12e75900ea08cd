"""What the memory of a step is made of, moment by moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hpff.engine.phase import Phase
from hpff.memory.counting import AllocationCounter

What = Literal[
    "parameters",
    "buffers",
    "gradients",
    "optimizer",
    "inputs",
    "activations",
    "recomputed",
    "auxiliary",
    "cotangents",
    "streams",
    "other",
]


class Owner(NamedTuple):
    """Whose a piece of memory is.

    Attributes:
        what: "activations" (the forward's), "recomputed" (the same, made again in a backward),
            "auxiliary" (an auxiliary network's forward and backward; at the last module the
            loss), "cotangents" (what a backward hands from layer to layer, and its temporaries),
            "streams" (what streams have held and keep for themselves), or what the other words say.
        module: j, from 1; 0 where no module owns it alone.
    """

    what: What
    module: int = 0


class Mark(NamedTuple):
    """A moment: how much has happened before."""

    events: int
    births: int


class Piece(NamedTuple):
    """What came and went in a while.

    Attributes:
        events: each a birth's place in the piece, or its complement for the death.
        births: owners, as they were in the end, and bytes.
    """

    events: tuple[int, ...]
    births: tuple[tuple[Owner, int], ...]

    def stays(self) -> set[int]:
        """The births that no death follows."""
        return set(range(len(self.births))) - {~event for event in self.events if event < 0}

    def stands_alone(self) -> bool:
        """Whether nothing died that was there before."""
        return all(~event >= 0 for event in self.events if event < 0)


class Ledger(AllocationCounter):
    """An allocation counter that knows whose each storage is.

    PyTorch's allocator keeps what a stream lets go of for that stream. Where several are planned,
    the peak is therefore the sum of all streams' own.

    Args:
        phase: kept up to date by the step that is watched.

    Attributes:
        stream: the stream that is planned for what is made now; 0 is the one that is there.
    """

    def __init__(self, phase: Phase) -> None:
        super().__init__()
        self._phase = phase
        self._owner: Owner | None = None
        self._births: list[tuple[Owner, int]] = []
        self._living: dict[int, int] = {}  # a storage's key -> its place in births
        self._events: list[int] = []  # a birth's place, or its complement for the death
        self._first = self._end = 0
        self._peak_event = 0
        self.stream = 0
        self._made_on: list[int] = []  # by birth
        self._kept_apart = 0
        self.peak_phase = Phase()

    @contextmanager
    def owned_by(self, what: What, module: int = 0) -> Iterator[None]:
        """Everything that is made inside belongs to this owner."""
        outer, self._owner = self._owner, Owner(what, module)
        try:
            yield
        finally:
            self._owner = outer

    def give(self, tensor: Tensor, what: What, module: int = 0) -> None:
        """Make a tensor that exists already the property of this owner."""
        birth = self._living[tensor.untyped_storage()._cdata]
        self._births[birth] = (Owner(what, module), self._births[birth][1])

    def mark(self) -> Mark:
        """Now."""
        return Mark(len(self._events), len(self._births))

    def piece_since(self, mark: Mark) -> Piece:
        """What came and went since then, in order."""
        return Piece(
            tuple(
                e - mark.births if e >= 0 else e + mark.births for e in self._events[mark.events :]
            ),
            tuple(self._births[mark.births :]),
        )

    def place_since(self, mark: Mark, tensor: Tensor) -> int:
        """Which of the births since then is a tensor's; less than 0 if none is."""
        return self._living[tensor.untyped_storage()._cdata] - mark.births

    def repeat(self, piece: Piece, module: int, there: Mapping[int, Tensor]) -> None:
        """Let a piece come and go once more, now for another module.

        Args:
            piece: what came and went.
            module: j, whose it is now.
            there: by its birth in the piece, each tensor that stays.
        """
        start = len(self._births)
        owners = [Owner(o.what, module if o.module else 0) for o, _ in piece.births]
        for event in piece.events:
            place = event if event >= 0 else ~event
            size = piece.births[place][1]
            self.current += size if event >= 0 else -size
            self._events.append(start + event if event >= 0 else event - start)
            if event >= 0:
                self._add_birth(owners[place], size)
        for place, tensor in there.items():
            storage = tensor.untyped_storage()
            self._living[storage._cdata] = start + place
            self._await_death(storage)

    def take_turn(self, events: Iterable[int], before: int, sizes: Sequence[int]) -> None:
        """Let temporaries come and go that belong to nobody's piece.

        Args:
            events: each a birth's place, or its complement for the death; the first ``before``
                places are of the latest births there are.
            before: how many.
            sizes: bytes of the births to come.
        """
        start = len(self._births) - before
        owner = self._owner or self._guess()
        for event in events:
            if event >= 0:
                size = sizes[event - before]
                self.current += size
                self._events.append(start + event)
                self._add_birth(owner, size)
            else:
                self._events.append(event - start)
                self.current -= self._births[start + ~event][1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The curve and the peak are those of what happens inside."""
        self._first = len(self._events)
        self._note_peak()
        yield
        self._end = len(self._events)
        if any(self._made_on):
            self._kept_apart = sum(self.peaks_of_streams().values()) - self.peak
            self.peak += self._kept_apart

    def curve(self) -> list[int]:
        """Bytes alive: at first, after each birth, and after each run of deaths, to the end."""
        alive, points = 0, [0]
        for place, event in enumerate(self._events[: self._end]):
            birth = event >= 0
            alive += self._births[event][1] if birth else -self._births[~event][1]
            if place < self._first:
                points[0] = alive
            elif birth or self._events[place - 1] >= 0 or len(points) == 1:
                points.append(alive)
            else:
                points[-1] = alive
        return points

    def at_peak(self) -> dict[Owner, int]:
        """Bytes alive at the peak by owner."""
        alive: dict[Owner, int] = {}
        for event in self._events[: self._peak_event]:
            owner, size = self._births[event if event >= 0 else ~event]
            alive[owner] = alive.get(owner, 0) + (size if event >= 0 else -size)
        alive[Owner("streams")] = self._kept_apart
        return {owner: size for owner, size in alive.items() if size}

    def peaks_of_streams(self) -> dict[int, int]:
        """Of each stream, the most bytes that were alive at once of what was made on it."""
        alive, most = Counter[int](), Counter[int]()
        for place, event in enumerate(self._events[: self._end]):
            birth = event if event >= 0 else ~event
            stream, size = self._made_on[birth], self._births[birth][1]
            alive[stream] += size if event >= 0 else -size
            if place >= self._first:
                most[stream] = max(most[stream], alive[stream])
        return {stream: max(most[stream], alive[stream]) for stream in alive}

    def _born(self, key: int, size: int) -> None:
        self._living[key] = len(self._births)
        self._events.append(len(self._births))
        self._add_birth(self._owner or self._guess(), size)

    def _add_birth(self, owner: Owner, size: int) -> None:
        self._births.append((owner, size))
        self._made_on.append(self.stream)
        if self.current > self.peak:
            self._note_peak()

    def _died(self, key: int, size: int) -> None:
        self._events.append(~self._living.pop(key))

    def _note_peak(self) -> None:
        self.peak = self.current
        self._peak_event = len(self._events)
        self.peak_phase = Phase(self._phase.doing, self._phase.module)

    def _guess(self) -> Owner:
        doing, module = self._phase.doing, self._phase.module
        in_backward = torch._C._current_graph_task_id() != -1
        if self._phase.recomputing:
            return Owner("recomputed", module)
        if doing == "auxiliary":
            return Owner("auxiliary", module)
        if doing == "forward" and not in_backward:
            return Owner("activations", module)
        if in_backward and torch.is_grad_enabled():
            return Owner("recomputed", module)
        return Owner("cotangents" if doing else "other", module)
