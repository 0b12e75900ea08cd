"""Recompute what a forward computed, tensor by tensor, instead of keeping it for the backward.

A :class:`Tape` notes the operations of a piece of any model's forward, below autograd. What
autograd saves there, the tape remembers by how it came about. When a backward asks for it, the
operations that lead to it run again, from what is there: the same kernels on the same values, with
the same random numbers. No layer's forward is called, so running statistics move once.

Three ways are offered:

- "once" lets go of a module's values only while other modules are at work, so the graphs of one
  module are there at a time. Each operation runs once more.
- "blocks" keeps some outputs of blocks inside a module, its anchors: in a backward the values
  between two anchors are there at a time. An operation runs once more for each backward: once in
  the modules that no cascade is carried through, twice in the others. Where there is room, what
  comes last is kept from the forward on, and does not run again.
  Values that give many bytes for little work do not wait for their use, but are made once more.
- "repeatedly" keeps, while a backward runs, what convolutions and matrix products read from its
  making to its last use; anything else goes at once, to be made again from those, and so does the
  module's output. Each of these dear operations runs three to four times more in a step.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hpff.cutting.local_modules import OperationKey
from hpff.engine.anchors import START, Kept
from hpff.engine.leaves import leaves_of, mapped, tensors_in
from hpff.engine.operation import (
    Operation,
    Value,
    View,
    copy_of,
    random_state,
    whole_of,
)
from hpff.engine.phase import Phase
from hpff.engine.traits import Traits, traits_of
from hpff.errors import UserError
from hpff.torch_support.autocast import autocast_off

Recompute = Literal["never", "blocks", "once", "repeatedly"]

_SMALL = 32  # what is smaller than the module's input by this factor is kept


class FreedTensors:
    """Tensors whose content is gone, while others may still hold the tensors themselves."""

    def __init__(self) -> None:
        self._stand_ins: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._addresses: set[int] = set()  # of their storages

    def add(self, tensor: Tensor) -> None:
        """Take the content away: the tensor keeps its shape, and must not be read any more."""
        key = tensor.dtype, tensor.device
        if key not in self._stand_ins:
            stand_in = torch.full((), math.nan, dtype=key[0], device=key[1])
            self._stand_ins[key] = stand_in
            self._addresses.add(stand_in.untyped_storage()._cdata)
        tensor.data = self._stand_ins[key].expand(tensor.shape)

    def check(self, tensors: list[Tensor]) -> None:
        """Raise UserError if one of them is freed."""
        freed = self._addresses
        if freed and any(tensor.untyped_storage()._cdata in freed for tensor in tensors):
            raise UserError(
                "the model reads a module's output again after the next module is done with it; "
                "its content is gone by then: use recompute='never'"
            )


@dataclass
class _Demand:
    """What one backward has yet to ask for, and what is there for it."""

    left: Counter[Value] = field(default_factory=Counter)
    present: dict[Value, Tensor] = field(default_factory=dict)


class Tape(TorchDispatchMode):
    """The notes of one piece of a forward.

    Args:
        start: the tensor that the piece begins from; None where the model takes none.
        freed: what must not be read any more.
        phase: told when something is recomputed.
        recompute: in which way.
        kept: what "blocks" keeps.
    """

    def __init__(
        self,
        start: Tensor | None,
        freed: FreedTensors,
        phase: Phase,
        recompute: Recompute,
        kept: Kept | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.freed = freed
        self._phase = phase
        kept = kept or Kept()
        self._points = {point.operation: point.leaf for point in kept.anchors}
        self._graph_after = kept.graph_after
        self._numbers: Counter[str] = Counter()
        self._keeps_until_backward = recompute == "once" or kept.graph_after == START
        self._keeps_dear_only = recompute == "repeatedly"
        self._made_again = kept.made_again
        self._waits = kept.waits
        self._named = {key.name for key in (*self._points, *self._made_again)}
        self._small = 0 if start is None else start.nbytes // _SMALL
        self._live: dict[int, tuple[weakref.ref[Any], int]] = {}  # by a storage's address
        self._versions: list[int] = []  # of each storage made on the tape
        self._operations: list[Operation] = []
        self._maker: dict[Value, Operation] = {}
        self._fleeting: set[Value] = set()  # made when asked for, and not before
        self._read: set[int] = set()  # addresses of storages made elsewhere that were read
        self._uses: Counter[Value] = Counter()  # by a backward
        self._kept: dict[Value, Tensor] = {}
        self._anchors: dict[Value, Tensor] = {}
        self._waiting: dict[Value, Tensor] = {}  # until the last backward has used it
        self._demand = _Demand()
        self._is_last = False

    def start(self) -> None:
        """From now on, what runs is noted, and what autograd saves of it is left to the tape."""
        torch._C._autograd._push_saved_tensors_default_hooks(self._pack, self._unpack)
        self.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """What runs is not noted any more; after ``start``, and only once."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        torch._C._autograd._pop_saved_tensors_default_hooks()
        present = self._demand.present
        self._demand.present = {v: whole for v, whole in present.items() if self._uses[v]}

    @contextmanager
    def backward(self, *, last: bool = False) -> Iterator[None]:
        """One backward through what was noted runs inside.

        Args:
            last: none comes after it, so that anchors may go as it passes them.
        """
        self._demand.left = self._uses.copy()
        self._is_last = last
        try:
            yield
        finally:
            self._demand = _Demand()
            if last:
                self._waiting.clear()

    def rest(self) -> None:
        """No backward comes for a while: let go of what can be recomputed, and is not to wait."""
        self._demand = _Demand()

    def keep(self, tensor: Tensor) -> None:
        """Hold a tensor's content, which is then there without recomputation."""
        view = self._view(tensor)
        if view is not None:
            self._kept[view.value] = whole_of(tensor)

    @contextmanager
    def away(self, tensor: Tensor) -> Iterator[None]:
        """Inside, a tensor made on the tape has its content only until a backward has used it.

        Afterwards it is recomputed. Nothing happens unless the least is to be kept.
        """
        view = self._view(tensor)
        if not self._keeps_dear_only or view is None or view.value not in self._maker:
            yield
            return
        self._kept.pop(view.value, None)
        if self._uses[view.value]:
            self._demand.present[view.value] = whole_of(tensor)
        self.freed.add(tensor)
        yield
        self.rest()
        whole = self._make(view.value)
        tensor.data = view.of(whole)
        self._kept[view.value] = whole

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        traits = traits_of(func)
        given = tensors_in((args, kwargs))
        self.freed.check(given)
        results: list[Value] = []
        if traits.only_looks:
            output = func(*args, **kwargs)
        else:
            output, results = self._run(func, traits, given, args, kwargs)
        if traits.name in self._named:
            self._numbers[traits.name] += 1
            key = OperationKey(traits.name, self._numbers[traits.name])
            self._anchor(key, output)
            if key in self._made_again:
                self._fleeting.update(results)
        return output

    def _run(
        self, function: Any, traits: Traits, given: list[Tensor], args: Any, kwargs: Any
    ) -> tuple[Any, list[Value]]:
        """What an operation gives, and the values that it makes and changes, which are noted."""
        if "rrelu_with_noise" in traits.name:  # autograd has saved the noise before it is drawn
            raise UserError("nn.RReLU cannot be recomputed; use recompute='never'")
        changed = traits.changed(args, kwargs)
        for tensor in changed:
            self._adopt(tensor)
        random = random_state(given, kwargs) if traits.draws else None
        views = [self._view(tensor) for tensor in given]
        elsewhere = {_address(t) for t, view in zip(given, views, strict=True) if view is None}
        output = function(*args, **kwargs)
        makes = {
            place: self._new(leaf)
            for place, leaf in enumerate(leaves_of(output))
            if isinstance(leaf, Tensor) and self._is_new(leaf, elsewhere)
        }
        changes = dict(self._changes(changed))
        results = [*makes.values(), *changes.values()]
        if results:
            self._read |= elsewhere
            # In the order in which `mapped` comes to them.
            noted = iter([view or tensor for tensor, view in zip(given, views, strict=True)])
            arguments, keywords = mapped(Tensor, lambda _: next(noted), (args, kwargs))
            reads = frozenset(view.value for view in views if view)
            operation = Operation(
                function, arguments, keywords, reads, makes, changes, random, len(self._operations)
            )
            self._operations.append(operation)
            self._maker |= dict.fromkeys(results, operation)
        if self._keeps_dear_only:
            self._fleeting.update(results)
            if traits.dear:
                read = {view.value: whole_of(t) for t in given if (view := self._view(t))}
                self._fleeting -= read.keys()
                self._demand.present |= read
        return output, results

    def _anchor(self, key: OperationKey, output: Any) -> None:
        """Hold what an operation gave until the last backward has passed it, if it is chosen."""
        leaf = self._points.get(key)
        if leaf is None:
            return
        tensor = leaves_of(output)[leaf]
        view = self._view(tensor)
        if view is not None:
            self._anchors[view.value] = whole_of(tensor)
        self._keeps_until_backward |= key == self._graph_after

    def _pack(self, tensor: Tensor) -> Tensor | View:
        view = self._view(tensor)
        if view is None or tensor.untyped_storage().nbytes() <= self._small:
            return tensor.detach()  # the tensor itself could make a cycle through the graph
        self._uses[view.value] += 1
        if self._keeps_until_backward and view.value not in self._fleeting:
            there = self._waiting if self._waits else self._demand.present
            there[view.value] = whole_of(tensor)
        return view

    def _unpack(self, packed: Tensor | View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        value, demand = packed.value, self._demand
        if self._is_last:
            self._let_go_of_anchors_after(value)
        whole = self._make(value)
        demand.left[value] -= 1
        if demand.left[value] > 0:
            demand.present[value] = whole
        else:
            demand.present.pop(value, None)
            if self._is_last:
                self._waiting.pop(value, None)
        return packed.of(whole)

    def _let_go_of_anchors_after(self, value: Value) -> None:
        """A backward that asks for a value has passed what was made later."""
        maker = self._maker.get(value)
        place = -1 if maker is None else maker.place
        for anchor in [a for a in self._anchors if not self._demand.left[a]]:
            if self._maker[anchor].place > place:
                del self._anchors[anchor]

    def _there(self, value: Value) -> Tensor | None:
        """A value that need not be recomputed now."""
        for held in (self._demand.present, self._anchors, self._waiting, self._kept):
            if value in held:
                return held[value]
        return None

    def _make(self, wanted: Value) -> Tensor:
        """A value, recomputed from the nearest ones that are there."""
        found = self._there(wanted)
        if found is not None:
            return found
        operations, needs, whole = self._way_to(wanted)
        there = set(whole)
        # What was noted lies below autocast.
        with torch.no_grad(), autocast_off(), self._phase.in_recomputation():
            for operation in operations:
                needs.subtract(operation.reads)
                others = (
                    {v for v in whole if needs[v] or v in there} if operation.changes else set()
                )
                operation.run(whole, others)
                for value in (*operation.reads, *operation.results()):
                    stays = value in whole and value not in self._fleeting
                    if stays and self._demand.left[value]:
                        self._demand.present[value] = whole[value]
                        there.add(value)
                    if not needs[value]:
                        whole.pop(value, None)
        return whole[wanted]

    def _way_to(self, wanted: Value) -> tuple[list[Operation], Counter[Value], dict[Value, Tensor]]:
        """The operations that make a value, in order.

        Also how often each value is needed, and what is there of them.
        """
        operations: dict[int, Operation] = {}
        needs = Counter([wanted])
        there: dict[Value, Tensor] = {}
        waiting = [wanted]
        while waiting:
            value = waiting.pop()
            found = self._there(value)
            if found is not None:
                there[value] = found
                continue
            operation = self._maker.get(value)
            if operation is None or operation.place in operations:
                continue
            operations[operation.place] = operation
            needs.update(operation.reads)
            waiting += operation.reads
        return [operations[place] for place in sorted(operations)], needs, there

    def _view(self, tensor: Tensor) -> View | None:
        """How to look at what the tape has made, if the tensor is a part of it."""
        storage, node = self._live.get(_address(tensor), (None, -1))
        if storage is None or storage() is None:
            return None
        value = Value(node, self._versions[node])
        return View(
            value, tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset())
        )

    def _is_new(self, tensor: Tensor, elsewhere: set[int]) -> bool:
        address = _address(tensor)
        known = not address or address in elsewhere
        return not known and self._view(tensor) is None

    def _new(self, tensor: Tensor) -> Value:
        storage = tensor.untyped_storage()
        self._live[storage._cdata] = weakref.ref(storage), len(self._versions)
        self._versions.append(0)
        return Value(len(self._versions) - 1, 0)

    def _adopt(self, tensor: Tensor) -> None:
        """A tensor made elsewhere is about to be changed: keep what it was, for those it fed."""
        if self._view(tensor) is not None or not _is_plain(tensor):
            return
        before, address = copy_of(whole_of(tensor)), _address(tensor)
        self._kept[self._new(tensor)] = before
        if address in self._read:
            for operation in self._operations:
                operation.replace(lambda t: self._view(t) if _address(t) == address else None)

    def _changes(self, changed: list[Tensor]) -> Iterator[tuple[Value, Value]]:
        views = [view for tensor in changed if (view := self._view(tensor)) is not None]
        for node, version in {view.value for view in views}:
            self._versions[node] = version + 1
            self._demand.present.pop(Value(node, version), None)
            self._anchors.pop(Value(node, version), None)
            self._waiting.pop(Value(node, version), None)
            yield Value(node, version), Value(node, version + 1)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_conj() and not tensor.is_neg()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if _is_plain(tensor) else 0
