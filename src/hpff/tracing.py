"""What one example shows of a model: where it can be cut, and which parameters lie between cuts.

The model runs once on the example with every submodule watched. In the autograd graph of its
output, a submodule's output separates the network exactly if no edge of the graph jumps over it:
everything later depends on everything earlier only through it.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._pytree import tree_leaves

from hpff.errors import UserError


@dataclass(frozen=True)
class Separator:
    """A point where the network can be cut.

    Attributes:
        names: the submodules whose output it is, outermost last.
        time: its place in the order of computation.
        shape: of the output, the batch first.
        overwritten: whether a later operation modifies the output in place.
    """

    names: tuple[str, ...]
    time: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    overwritten: bool


@dataclass(frozen=True)
class Leak:
    """A value that reaches past a submodule's output without going through it."""

    producer: str
    consumer: str

    def __str__(self) -> str:
        return (
            f"a value made in {self.producer or 'the model'!r} reaches "
            f"{self.consumer or 'the model'!r} without going through it"
        )


@dataclass(frozen=True)
class Trace:
    """The separators in the order of computation, and when each parameter is used."""

    separators: tuple[Separator, ...]
    parameter_times: Mapping[str, tuple[int, ...]]
    weight_times: tuple[int, ...]
    calls: Mapping[str, int]
    leaking: tuple[str, ...]
    find_leak: Callable[[str], Leak | None]
    output_shape: tuple[int, ...]
    output_dtype: torch.dtype
    output_device: torch.device

    def parameters_between(self, start: int, end: int) -> list[str]:
        """Names of the parameters that are used in the half-open interval (start, end]."""
        return [
            name
            for name, times in self.parameter_times.items()
            if any(start < time <= end for time in times)
        ]

    def has_weight_between(self, start: int, end: int) -> bool:
        """Whether a parameter of two or more dimensions is used in (start, end]."""
        position = bisect.bisect_right(self.weight_times, start)
        return position < len(self.weight_times) and self.weight_times[position] <= end

    def find(self, name: str) -> Separator | None:
        return next((s for s in self.separators if name in s.names), None)


@dataclass
class _Call:
    name: str
    begin: int
    end: int
    node: Node | None = None
    output: Tensor | None = None
    version: int = 0


def call_model(model: nn.Module, example: Any) -> Any:
    """The model on a tensor, a tuple of arguments or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, (tuple, list)):
        return model(*example)
    return model(example)


def logits_of(output: Any) -> Tensor:
    """The tensor that the loss is taken of."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model returns {type(output).__name__}; expected a tensor of logits, "
            "or an object with a tensor in .logits"
        )
    return logits


def trace(model: nn.Module, example: Any) -> Trace:
    """Run ``model`` once on ``example`` (training mode, at its own device) and read its graph.

    The model comes back as it was: modes, buffers, gradients' flags and random states.

    Raises:
        UserError: the model's output carries no gradient, or is no tensor.
    """
    with _undisturbed(model):
        calls, logits = _watch(model, example)
        if logits.grad_fn is None:
            raise UserError("the model's output depends on no parameter: nothing can be trained")
        return _Graph(model, calls, logits).trace()


def _watch(model: nn.Module, example: Any) -> tuple[list[_Call], Tensor]:
    calls: list[_Call] = []
    running: list[_Call] = []
    probe = torch.zeros((), requires_grad=True)

    def now() -> int:
        node = probe.view_as(probe).grad_fn
        assert node is not None
        return node._sequence_nr()

    def before(name: str) -> None:
        running.append(_Call(name, begin=now(), end=0))

    def after(output: Any) -> None:
        call = running.pop()
        call.end = now()
        if isinstance(output, Tensor):
            call.node, call.output, call.version = output.grad_fn, output, output._version
        calls.append(call)

    try:
        with _hooks(model, before, after):
            output = call_model(model, example)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the model does not run on the example ({_shapes(example)}): {reason}; "
            "give an example, and data, of the size that the model takes"
        ) from error
    return calls, logits_of(output)


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
def _undisturbed(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        with restored_state(model), _eager(model), _no_autocast(), torch.enable_grad():
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


@contextmanager
def _no_autocast() -> Iterator[None]:
    """Autocast shares casts of a weight between modules, which is no leak of the model's."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _eager(model: nn.Module) -> AbstractContextManager[Any]:
    """The two images of an example are not worth a compilation."""
    if any(is_compiled(module) for module in model.modules()):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was applied to this very module, by either of its two forms."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


class _Graph:
    """The autograd graph of one run, its nodes placed in time by their sequence numbers."""

    def __init__(self, model: nn.Module, calls: list[_Call], logits: Tensor) -> None:
        self._calls = calls
        self._logits = logits
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._edges: list[tuple[int, int]] = []  # (time of the producer, time of its consumer)
        self._parameter_times: dict[str, set[int]] = defaultdict(set)
        self._weight_times: set[int] = set()
        self._nodes: set[Node] = set()
        assert logits.grad_fn is not None
        self._walk(logits.grad_fn)
        self._end = logits.grad_fn._sequence_nr()

    def trace(self) -> Trace:
        counts: dict[str, int] = defaultdict(int)
        for call in self._calls:
            counts[call.name] += 1
        crossed = self._crossed()
        found: dict[Node, list[_Call]] = defaultdict(list)
        leaking: dict[str, int] = {}
        for call in self._calls:
            if call.node is None or not call.name or counts[call.name] > 1:
                continue
            time = call.node._sequence_nr()
            hands_its_input_on = time < call.begin
            if hands_its_input_on or call.node not in self._nodes or time >= self._end:
                continue
            if crossed(time):
                leaking[call.name] = time
            else:
                found[call.node].append(call)
        return Trace(
            separators=tuple(
                sorted((_separator(node, at) for node, at in found.items()), key=lambda s: s.time)
            ),
            parameter_times={name: tuple(sorted(t)) for name, t in self._parameter_times.items()},
            weight_times=tuple(sorted(self._weight_times)),
            calls=counts,
            leaking=tuple(leaking),
            find_leak=lambda name: self._leak(leaking[name]) if name in leaking else None,
            output_shape=tuple(self._logits.shape),
            output_dtype=self._logits.dtype,
            output_device=self._logits.device,
        )

    def _walk(self, root: Node) -> None:
        waiting = [root]
        self._nodes.add(root)
        while waiting:
            consumer = waiting.pop()
            time = consumer._sequence_nr()
            for producer, _ in consumer.next_functions:
                if producer is None:
                    continue
                parameter = getattr(producer, "variable", None)
                if parameter is not None:
                    self._note_parameter(parameter, time)
                    continue
                self._edges.append((producer._sequence_nr(), time))
                if producer not in self._nodes:
                    self._nodes.add(producer)
                    waiting.append(producer)

    def _note_parameter(self, parameter: Tensor, time: int) -> None:
        name = self._names.get(parameter)  # type: ignore[call-overload]
        if name is not None:
            self._parameter_times[name].add(time)
            if parameter.ndim >= 2:
                self._weight_times.add(time)

    def _crossed(self) -> Any:
        """Whether an edge jumps over a point in time, for all times, by one sweep."""
        steps: dict[int, int] = defaultdict(int)
        for producer, consumer in self._edges:
            steps[producer + 1] += 1
            steps[consumer] -= 1
        times, open_edges, depth = sorted(steps), [], 0
        for time in times:
            depth += steps[time]
            open_edges.append(depth)

        def crossed(time: int) -> bool:
            position = bisect.bisect_right(times, time) - 1
            return position >= 0 and open_edges[position] > 0

        return crossed

    def _leak(self, time: int) -> Leak:
        producer, consumer = next((p, c) for p, c in self._edges if p < time < c)
        return Leak(self._innermost(producer), self._innermost(consumer))

    def _innermost(self, time: int) -> str:
        around = [call for call in self._calls if call.begin < time < call.end]
        return min(around, key=lambda call: call.end - call.begin).name if around else ""


def _separator(node: Node, calls: list[_Call]) -> Separator:
    output = calls[0].output
    assert output is not None
    return Separator(
        names=tuple(call.name for call in calls),
        time=node._sequence_nr(),
        shape=tuple(output.shape),
        dtype=output.dtype,
        device=output.device,
        overwritten=output._version != calls[-1].version,
    )
