"""The autograd graph of one forward, its nodes placed in time by their sequence numbers."""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.autograd.graph import Node

from hpff.torch_support.model_io import Path

_BEFORE = -1  # when what comes into the model was made


@dataclass(frozen=True)
class Returned:
    """A differentiable tensor that a call returned: where in the output, and how it was made.

    Attributes:
        written: after how many operations of the forward it had its content.
    """

    path: Path
    tensor: Tensor
    node: Node
    number: int
    version: int
    written: int

    @classmethod
    def of(cls, path: Path, tensor: Tensor, written: int) -> Returned:
        """The value as it is now; operations in place may follow."""
        assert tensor.grad_fn is not None
        return cls(path, tensor, tensor.grad_fn, tensor.output_nr, tensor._version, written)

    @property
    def time(self) -> int:
        """When it was made."""
        return self.node._sequence_nr()


@dataclass
class Call:
    """One run of a submodule.

    Attributes:
        saved: bytes that the forward had saved for the backward when it ended.
        operations: how many the forward had done when it ended.
        values: what it returned.
    """

    name: str
    begin: int
    end: int = 0
    saved: int = 0
    operations: int = 0
    values: list[Returned] = field(default_factory=list)


@dataclass(frozen=True)
class Leak:
    """A value that reaches past a submodule's output without going through it."""

    producer: str | None
    consumer: str

    def __str__(self) -> str:
        if self.producer is None:
            made = "an input that requires a gradient, or a tensor that is no parameter of it,"
        else:
            made = f"a value made in {self.producer or 'the model'!r}"
        if self.consumer:
            return f"{made} reaches {self.consumer!r} without going through it"
        return (
            f"{made} reaches the model's own forward without going through it: let a submodule "
            "compute what is computed there (such as x + block(x))"
        )


@dataclass(frozen=True)
class _Edge:
    """A value on its way: which output of which node, and when it was made and used."""

    node: Node | None
    number: int
    made: int
    used: int


class Graph:
    """What leads to the logits of one forward.

    Attributes:
        counts: how often each submodule ran.
        parameter_times: when each parameter is used.
        weight_times: when one of two or more dimensions is.
        separators: for each point where the graph can be cut the calls whose output it is, the
            innermost first, and that output.
        leaks: for each submodule that ran once and past whose output a value reaches, that output.
    """

    def __init__(self, model: nn.Module, calls: list[Call], logits: Tensor) -> None:
        self._calls = calls
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._edges: list[_Edge] = []
        self._outputs: dict[Node, set[int]] = {}  # which of its outputs are used
        times: dict[str, set[int]] = defaultdict(set)
        weights: set[int] = set()
        assert logits.grad_fn is not None
        self._walk(logits.grad_fn, times, weights)
        self._end = logits.grad_fn._sequence_nr()
        self.counts: Mapping[str, int] = Counter(call.name for call in calls)
        self.parameter_times = {name: tuple(sorted(found)) for name, found in times.items()}
        self.weight_times = tuple(sorted(weights))
        self.leaks: dict[str, Returned] = {}
        self.separators = self._separators()

    def _separators(self) -> list[list[tuple[Call, Returned]]]:
        crossed = self._crossed()
        found: dict[Node, list[tuple[Call, Returned]]] = defaultdict(list)
        for call in self._calls:
            if not call.name or self.counts[call.name] > 1:
                continue
            value = self._carrier(call)
            if value is None:
                continue
            if crossed(value.time) or len(self._outputs[value.node]) > 1:
                self.leaks[call.name] = value
            else:
                found[value.node].append((call, value))
        return sorted(found.values(), key=lambda at: at[0][1].time)

    def find_leak(self, name: str) -> Leak | None:
        """A value that reaches past the output of the submodule ``name``, if there is one."""
        if name not in self.leaks:
            return None
        value = self.leaks[name]
        past = (
            edge
            for edge in self._edges
            if edge.made < value.time < edge.used
            or (edge.node is value.node and edge.number != value.number)
        )
        edge = min(past, key=lambda edge: edge.used)
        producer = None if edge.node is None else self._innermost(edge.made)
        return Leak(producer, self._innermost(edge.used))

    def _carrier(self, call: Call) -> Returned | None:
        """Of what a call made, the last that the logits depend on: it must carry everything on."""
        values = [
            value
            for value in call.values
            if call.begin < value.time < self._end
            and value.number in self._outputs.get(value.node, ())
        ]
        return max(values, key=lambda value: value.time, default=None)

    def _walk(self, root: Node, times: dict[str, set[int]], weights: set[int]) -> None:
        waiting = [root]
        self._outputs[root] = {0}
        while waiting:
            consumer = waiting.pop()
            used = consumer._sequence_nr()
            for producer, number in consumer.next_functions:
                if producer is None:
                    continue
                leaf = getattr(producer, "variable", None)
                if leaf is None:
                    self._edges.append(_Edge(producer, number, producer._sequence_nr(), used))
                    if producer not in self._outputs:
                        self._outputs[producer] = set()
                        waiting.append(producer)
                    self._outputs[producer].add(number)
                elif leaf in self._names:
                    times[self._names[leaf]].add(used)
                    if leaf.ndim >= 2:
                        weights.add(used)
                else:
                    self._edges.append(_Edge(None, 0, _BEFORE, used))

    def _crossed(self) -> Callable[[int], bool]:
        """Whether an edge jumps over a point in time, for all times, by one sweep."""
        steps: dict[int, int] = defaultdict(int)
        for edge in self._edges:
            steps[edge.made + 1] += 1
            steps[edge.used] -= 1
        times, open_edges, depth = sorted(steps), [], 0
        for time in times:
            depth += steps[time]
            open_edges.append(depth)

        def crossed(time: int) -> bool:
            position = bisect.bisect_right(times, time) - 1
            return position >= 0 and open_edges[position] > 0

        return crossed

    def _innermost(self, time: int) -> str:
        around = [call for call in self._calls if call.begin < time < call.end]
        return min(around, key=lambda call: call.end - call.begin).name if around else ""
