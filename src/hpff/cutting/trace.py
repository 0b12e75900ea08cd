"""What one example shows of a model: where it can be cut, and which parameters lie between cuts.

The model runs once on the example with every submodule watched. In the autograd graph of its
output, a submodule's output separates the network exactly if no edge of the graph jumps over it:
everything later depends on everything earlier only through it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from math import prod
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hpff.cutting.autograd_graph import Call, Graph, Leak, Returned
from hpff.cutting.operations import Lifetime, Operations, Point, Saved
from hpff.errors import UserError
from hpff.torch_support.autocast import autocast_off
from hpff.torch_support.model_io import Path, call_model, outputs_of, tensors_in
from hpff.torch_support.modes import modes_restored
from hpff.torch_support.out_of_memory import is_out_of_memory


@dataclass(frozen=True)
class Separator:
    """A point where the network can be cut.

    Attributes:
        paths: the submodules whose output carries everything on, outermost last, and for each
            where in its output the tensor that does so lies.
        time: its place in the order of computation.
        shape: of the tensor, the batch first.
        overwritten: whether a later operation modifies the tensor in place.
        saved: bytes that the forward up to here saves for the backward, on the example.
        operations: how many the forward does up to here.
        written: after how many of them the tensor has its content.
        read_until: after how many the tensor's content is read for the last time.
        forks: whether several operations read it.
        place: of the tensor's storage among all lifetimes; None where it was there before.
    """

    paths: Mapping[str, Path]
    time: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    overwritten: bool
    saved: int
    operations: int
    written: int
    read_until: int
    forks: bool
    place: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The submodules, outermost last."""
        return tuple(self.paths)

    @property
    def output_bytes(self) -> int:
        """Of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Trace:
    """The separators in the order of computation, and when each parameter is used.

    Attributes:
        calls: how often each submodule ran.
        leaks: for each submodule past whose output a value reaches, the time of that output.
        find_leak: that value, by the submodule's name.
        other_order: for each submodule whose output would separate the model, but does not have
            the batch first, its shape.
        saved: bytes that the whole forward saves for the backward, on the example.
        saves: what these are, in order.
        operations: the names of the operations that it does, in order.
        work: of each.
        points: the operations after which it could be taken up again from one tensor.
        lifetimes: of the storages that it makes, in order.
    """

    separators: tuple[Separator, ...]
    parameter_times: Mapping[str, tuple[int, ...]]
    weight_times: tuple[int, ...]
    calls: Mapping[str, int]
    leaks: Mapping[str, int]
    find_leak: Callable[[str], Leak | None]
    other_order: Mapping[str, tuple[int, ...]]
    output_shape: tuple[int, ...]
    output_dtype: torch.dtype
    output_device: torch.device
    saved: int
    saves: tuple[Saved, ...]
    operations: tuple[str, ...]
    work: tuple[int, ...]
    points: tuple[Point, ...]
    lifetimes: tuple[Lifetime, ...]

    def parameters_between(self, start: int, end: int) -> list[str]:
        """Names of the parameters that are used in the half-open interval (start, end]."""
        uses = self._uses
        first, last = (bisect.bisect_right(uses, time, key=itemgetter(0)) for time in (start, end))
        places = sorted({place for _, place in uses[first:last]})
        names = list(self.parameter_times)
        return [names[place] for place in places]

    @cached_property
    def _uses(self) -> list[tuple[int, int]]:
        """When a parameter is used, and its place among the names, in order."""
        return sorted(
            (time, place)
            for place, times in enumerate(self.parameter_times.values())
            for time in times
        )

    def has_weight_between(self, start: int, end: int) -> bool:
        """Whether a parameter of two or more dimensions is used in (start, end]."""
        position = bisect.bisect_right(self.weight_times, start)
        return position < len(self.weight_times) and self.weight_times[position] <= end

    def find(self, name: str) -> Separator | None:
        """The separator that is the output of the submodule ``name``."""
        return next((s for s in self.separators if name in s.paths), None)


Traces = dict[tuple[nn.Module, str], "Trace"]
_kept: ContextVar[Traces | None] = ContextVar("_kept", default=None)


@contextmanager
def traces_kept(traces: Traces) -> Iterator[None]:
    """Inside, a model that does not change is run once, however often it is traced.

    Args:
        traces: those so far, and then those made inside too.
    """
    token = _kept.set(traces)
    try:
        yield
    finally:
        _kept.reset(token)


def trace(model: nn.Module, example: Any) -> Trace:
    """Run a model once in training mode, where it lies, and read its graph.

    The model comes back as it was: modes, buffers, gradients' flags and random states.

    Args:
        model: any module.
        example: a small input: a tensor, or a tuple or dict of forward's arguments.

    Returns:
        Where the model can be cut, and what lies between the cuts.

    Raises:
        UserError: the model does not run on the example, or its output carries no gradient or is
            no tensor.
    """
    kept = _kept.get()
    if kept is None:
        return _trace(model, example)
    key = model, _shapes(example)
    if key not in kept:
        kept[key] = _trace(model, example)
    return kept[key]


def _trace(model: nn.Module, example: Any) -> Trace:
    with undisturbed(model):
        watched = _Watched(model, example)
        logits = watched.logits
        if watched.root.grad_fn is None:
            raise UserError("the model's output depends on no parameter: nothing can be trained")
        graph = Graph(model, watched.calls, watched.root)
        found = [_separator(calls, watched) for calls in graph.separators]
        batch = {len(logits), *(len(tensor) for _, tensor in tensors_in(example) if tensor.ndim)}
        return Trace(
            separators=tuple(s for s in found if s.shape and s.shape[0] in batch),
            parameter_times=graph.parameter_times,
            weight_times=graph.weight_times,
            calls=graph.counts,
            leaks={name: value.time for name, value in graph.leaks.items()},
            find_leak=graph.find_leak,
            other_order={
                n: s.shape for s in found for n in s.paths if not s.shape or s.shape[0] not in batch
            },
            output_shape=tuple(logits.shape),
            output_dtype=logits.dtype,
            output_device=logits.device,
            saved=watched.saved,
            saves=tuple(watched.operations.with_makers(watched.saves)),
            operations=tuple(watched.operations.names),
            work=tuple(watched.operations.work),
            points=tuple(watched.operations.points(watched.saves)),
            lifetimes=tuple(watched.operations.lifetimes()),
        )


def _separator(at: list[tuple[Call, Returned]], watched: _Watched) -> Separator:
    """A separator from the calls that share it, innermost first."""
    tensor = at[0][1].tensor
    return Separator(
        paths={call.name: value.path for call, value in at},
        time=at[0][1].time,
        shape=tuple(tensor.shape),
        dtype=tensor.dtype,
        device=tensor.device,
        overwritten=tensor._version != at[-1][1].version,
        saved=at[0][0].saved,
        operations=at[0][0].operations,
        written=at[0][1].written,
        read_until=watched.operations.last_read(tensor),
        forks=watched.operations.forks(tensor),
        place=watched.operations.place(tensor),
    )


class _Watched:
    """One run of a model: its submodules' calls in the order of their ends, and its logits."""

    def __init__(self, model: nn.Module, example: Any) -> None:
        self.calls: list[Call] = []
        self._running: list[Call] = []
        self._probe = torch.zeros((), requires_grad=True)
        apart = [*model.parameters(), *model.buffers(), *tree_leaves(example)]
        self.operations = Operations(apart)
        self._saved = _SavedBytes(apart, self.operations.names)
        hooks = _hooks(model, self._before, self._after)
        try:
            with modes_restored(), hooks, self._saved.counted(), self.operations:
                output = call_model(model, example)
        except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"the model does not run on the example ({_shapes(example)}): {reason}; "
                "give an example, and data, of the size that the model takes"
            ) from error
        self.logits, own_head = outputs_of(output)
        self.root = self.logits if own_head is None else _joined(self.logits, own_head)

    @property
    def saved(self) -> int:
        """Bytes saved for the backward so far."""
        return self._saved.total

    @property
    def saves(self) -> list[Saved]:
        """These bytes, tensor by tensor."""
        return self._saved.all

    def _now(self) -> int:
        self.operations.paused = True
        node = self._probe.view_as(self._probe).grad_fn
        self.operations.paused = False
        assert node is not None
        return node._sequence_nr()

    def _before(self, name: str) -> None:
        self._running.append(Call(name, begin=self._now()))

    def _after(self, output: Any) -> None:
        call = self._running.pop()
        call.end = self._now()
        call.saved = self.saved
        call.operations = len(self.operations.names)
        call.values = [
            Returned.of(path, tensor, self.operations.last_written(tensor))
            for path, tensor in tensors_in(output)
            if tensor.grad_fn is not None
        ]
        self.calls.append(call)


class _SavedBytes:
    """Counts what a forward saves for its backward, some tensors apart.

    The graph keeps it alive, so it must hold nothing of the graph: Python's garbage collector does
    not see cycles through a graph.
    """

    def __init__(self, apart: Sequence[Any], operations: Sequence[str]) -> None:
        self.total = 0
        self.all: list[Saved] = []
        self._operations = operations
        self._known = {t.untyped_storage()._cdata for t in apart if isinstance(t, Tensor)}

    def counted(self) -> AbstractContextManager[Any]:
        """What runs inside is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.total += storage.nbytes()
            now = len(self._operations)
            self.all.append(Saved(now, storage.nbytes(), storage._cdata))
        return tensor.detach()  # the tensor itself would make such a cycle


def _joined(logits: Tensor, own_head: Tensor) -> Tensor:
    """A tensor that depends on both outputs: a cut must separate what leads to either."""
    return torch.stack([logits.sum(), own_head.sum()])


def _shapes(example: Any) -> str:
    tensors = [leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)]
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors) or "no tensor"


@contextmanager
def _hooks(model: nn.Module, before: Any, after: Any) -> Iterator[None]:
    handles = []
    try:
        for name, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(lambda *_, name=name: before(name)),
                module.register_forward_hook(lambda *given: after(given[-1])),
            ]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in training mode with nothing frozen; afterwards it is as it was."""
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        # Autocast shares casts of a weight between modules, which is no leak of the model's.
        with restored_state(model), _eager(model), autocast_off(), torch.enable_grad():
            model.train()
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def restored_state(module: nn.Module) -> Iterator[None]:
    """Put buffers (also those that are assigned anew) and random states back afterwards."""
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                owner._buffers[name] = buffer.copy_(value)


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """The two images of an example are not worth a compilation."""
    if any(is_compiled(module) for module in model.modules()):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was applied to this very module, by either of its two forms."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")
