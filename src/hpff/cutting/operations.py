"""The operations of one forward, below autograd: what each makes, reads and changes."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpff.cutting.backwards import comes_beside, needs_its_result
from hpff.torch_support.arithmetic import arithmetic_of

_WORK_OF_A_BYTE = 16  # writing it takes about as long as so many multiplications and additions
_SMALL = 32  # what is smaller than a tensor by this factor does not count beside it
_DEAR = {
    "convolution",
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
}


def is_dear(function: Any) -> bool:
    """Whether an operation is one of those that make up a step's arithmetic."""
    return function.overloadpacket.__name__ in _DEAR


class Saved(NamedTuple):
    """A tensor's storage that a forward saves for its backward.

    Attributes:
        time: after how many operations it was saved.
        size: in bytes.
        address: of the storage, which lives as long as the graph.
        made: after how many operations it has its content; 0 where that was there before.
        made_of: the places of the saved tensors that lead to it past no other.
        work: that leads from these to it.
        coming: bytes that come to the operations which may save it, in their backward: of a
            gradient, and of attention's own result.
        own: whether the operation that made it needs it in its own backward.
    """

    time: int
    size: int
    address: int
    made: int = 0
    made_of: tuple[int, ...] = ()
    work: int = 0
    coming: int = 0
    own: bool = False


class Lifetime(NamedTuple):
    """After how many operations a storage was made, and for the last time read; 0 for never."""

    made: int
    read: int


@dataclass(frozen=True)
class Point:
    """An operation after which one tensor is all that later operations need of earlier ones.

    Attributes:
        time: how many operations have run then.
        leaf: which of its outputs the tensor is; operations in place return what they change.
        output_bytes: of the tensor.
        saved: bytes that the forward up to here saves for the backward.
        forks: whether several operations read it, so that its gradient is a sum.
        spared: work that leads to this tensor alone and to nothing that is saved: where the
            tensor is kept, no backward needs it again.
    """

    time: int
    leaf: int
    output_bytes: int
    saved: int
    forks: bool
    spared: int


@dataclass
class _Storage:
    index: int
    address: int
    size: int
    reference: weakref.ref[Any]
    born: int
    written: int
    leaf: int
    read: int = 0
    reads: int = 0
    coming: int = 0
    writers: list[int] = field(default_factory=list)


class _Operation(NamedTuple):
    """The indices of the storages that an operation reads, and its work.

    Work is arithmetic, and bytes that are written, by the time that they take.
    """

    reads: tuple[int, ...]
    work: int


class Operations(TorchDispatchMode):
    """Watches the operations that run while it is active.

    Args:
        apart: tensors that are there anyway: parameters, buffers, what the model is given.

    Attributes:
        names: of all operations so far, in order; aliases that only detach are left out.
        paused: whether what runs now is not the forward's.
    """

    def __init__(self, apart: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self._done: list[_Operation] = []
        self.paused = False
        self._apart = {t.untyped_storage()._cdata for t in apart if _is_plain(t)}
        self._last: dict[int, int] = {}
        self._all: list[_Storage] = []
        self._living: dict[int, _Storage] = {}  # by address

    @property
    def work(self) -> list[int]:
        """Of all operations so far: arithmetic, and bytes written, as much as they take."""
        return [operation.work for operation in self._done]

    def last_read(self, tensor: Tensor) -> int:
        """After how many operations the storage of a tensor that is still there was read."""
        return self._last.get(tensor.untyped_storage()._cdata, 0)

    def last_written(self, tensor: Tensor) -> int:
        """After how many operations a tensor that is still there had its content."""
        known = self._known(tensor)
        return known.written if known is not None else 0

    def place(self, tensor: Tensor) -> int | None:
        """Which of the storages that were made a tensor that is still there has."""
        known = self._known(tensor)
        return None if known is None else known.index

    def lifetimes(self) -> Iterator[Lifetime]:
        """Of all storages that were made, in order."""
        return (Lifetime(storage.born, storage.read) for storage in self._all)

    def forks(self, tensor: Tensor) -> bool:
        """Whether several operations have read a tensor that is still there."""
        known = self._known(tensor)
        return known is not None and known.reads > 1

    def with_makers(self, saves: Sequence[Saved]) -> Iterator[Saved]:
        """What a forward saved, and how that came about."""
        places: dict[int, int] = {}  # by a storage's index
        for place, save in enumerate(saves):
            if save.address in self._living:
                places.setdefault(self._living[save.address].index, place)
        for save in saves:
            known = self._living.get(save.address)
            if known is None:
                yield save._replace(coming=save.size)
                continue
            operations, found = self._way_to(known, places)
            own = needs_its_result(self.names[known.written - 1])
            yield save._replace(
                made=known.written,
                made_of=tuple(sorted(places[index] for index in found)),
                work=sum(self._done[time - 1].work for time in operations),
                coming=max(known.coming, known.size if own else 0),
                own=own,
            )

    def _way_to(self, wanted: _Storage, there: Container[int]) -> tuple[set[int], set[int]]:
        """The times of the operations that lead from some storages to another, and which."""
        operations: set[int] = set()
        found: set[int] = set()
        waiting = list(wanted.writers)
        while waiting:
            time = waiting.pop()
            if time in operations:
                continue
            operations.add(time)
            for index in self._done[time - 1].reads:
                if index == wanted.index:
                    continue
                if index in there:
                    found.add(index)
                else:
                    waiting += (t for t in self._all[index].writers if t < time)
        return operations, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Fake tensors ask for their device by an operation.
        if self.paused or func is torch.ops.aten.detach.default or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        self.names.append(str(func))
        self._done.append(_Operation((), 0))  # what a model catches has run for nothing
        now = len(self.names)
        reads: set[int] = set()
        for leaf in tree_leaves((args, kwargs)):
            if _is_plain(leaf):
                self._last[leaf.untyped_storage()._cdata] = now
                known = self._known(leaf)
                if known is not None:
                    known.read = now
                    known.reads += not _is_view(func)
                    reads.add(known.index)
        output = func(*args, **(kwargs or {}))
        changes = func._schema.is_mutable
        written = flowing = 0
        for place, leaf in enumerate(tree_leaves(output)):
            if _is_plain(leaf) and leaf.untyped_storage()._cdata not in self._apart:
                size = self._follow(leaf, place, now, changes=changes)
                written += size
                flowing += size if leaf.is_floating_point() else 0
        for index in reads:
            read = self._all[index]
            read.coming = max(read.coming, comes_beside(func, output, flowing, read.size))
        work = arithmetic_of(func, args, kwargs or {}, output) + written * _WORK_OF_A_BYTE
        self._done[now - 1] = _Operation(tuple(reads), work)
        return output

    def _known(self, tensor: Tensor) -> _Storage | None:
        known = self._living.get(tensor.untyped_storage()._cdata)
        return known if known is not None and known.reference() is not None else None

    def _follow(self, tensor: Tensor, place: int, now: int, *, changes: bool) -> int:
        """Note what an operation returns; the bytes of it that it has written."""
        known = self._known(tensor)
        if known is None:
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            known = _Storage(len(self._all), address, size, weakref.ref(storage), now, now, place)
            self._living[address] = known
            self._all.append(known)
        elif changes:
            known.written, known.leaf, known.reads = now, place, 0
        else:
            return 0
        known.writers.append(now)
        return min(tensor.nbytes, known.size)

    def points(self, saves: Sequence[Saved]) -> Iterator[Point]:
        """The operations after which one tensor is all that later ones need, in order."""
        change = Counter[int]()  # of the bytes that are there and will be read
        for storage in self._all:
            if storage.read > storage.born:
                change[storage.born] += storage.size
                change[storage.read] -= storage.size
        candidates = {s.written: s for s in self._all if s.read > s.written}
        needed = 0
        waiting = list(saves)
        before: list[Saved] = []
        saved = 0
        for time in range(1, len(self.names) + 1):
            needed += change[time]
            while waiting and waiting[0].time <= time:
                before.append(waiting.pop(0))
                saved += before[-1].size
            found = candidates.get(time)
            if found is not None and needed - found.size <= found.size // _SMALL:
                forks = found.reads > 1
                last = self._last_made(before, but=found.address)
                spared = sum(each.work for each in self._done[last:time])
                yield Point(time, found.leaf, found.size, saved, forks, spared)

    def _last_made(self, saves: Sequence[Saved], *, but: int) -> int:
        """After how many operations the last of these tensors is there, but for one of them."""
        known = (self._living.get(save.address) for save in saves if save.address != but)
        return max((storage.written for storage in known if storage is not None), default=0)


def _is_view(function: Any) -> bool:
    """Whether an operation gives the same content in another shape."""
    returns = function._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided
