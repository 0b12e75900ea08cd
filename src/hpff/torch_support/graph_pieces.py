"""The forward of a graph of torch.compile in pieces, and anchors between them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx

from hpff.torch_support.graph_memory import bytes_of, is_inlined, makers

_SLIGHT = 0.002  # of a graph's largest tensor: what is smaller does not count


class Point(NamedTuple):
    """Where no more is needed later than just before and after.

    Attributes:
        nodes: which made all that the rest of the forward needs.
        place: how many operations are done by then.
    """

    nodes: tuple[fx.Node, ...]
    place: int


class Piece(NamedTuple):
    """What is between two points.

    Attributes:
        needed: bytes that the backward needs of it, and that may be made again.
        staying: bytes that it needs of what does not run again.
        largest: bytes of its largest result.
    """

    needed: int
    staying: int
    largest: int


@dataclass(frozen=True)
class Pieces:
    """The forward of a graph, in pieces that follow each other.

    Attributes:
        nodes: its operations, in order.
        staying: those that may not run again.
        points: where it may be cut.
        between: the pieces, one more than there are points.
    """

    nodes: tuple[fx.Node, ...]
    staying: frozenset[fx.Node]
    points: tuple[Point, ...]
    between: tuple[Piece, ...]

    @classmethod
    def of(cls, graph: fx.Graph, outputs: int, *, narrow: bool = False) -> Pieces:
        """The forward of a graph.

        Args:
            graph: of forward and backward.
            outputs: how many of its outputs, the first ones, are the forward's.
            narrow: whether to cut only where a single tensor is needed later.
        """
        given = graph.output_node().args[0]
        assert isinstance(given, (list, tuple))
        nodes = _leading_to([n for n in given[:outputs] if isinstance(n, fx.Node)], graph)
        made_by = makers(nodes)
        staying = frozenset(node for node in nodes if _stays(node))
        there = (made_by[node] is node and not is_inlined(node) for node in nodes)
        sizes = [bytes_of(n) if is_there else 0 for n, is_there in zip(nodes, there, strict=True)]
        asked = {made_by[node] for node in _read_outside(nodes)}
        asked_sizes = [size if n in asked else 0 for n, size in zip(nodes, sizes, strict=True)]
        points = tuple(
            point
            for point in _points(nodes, made_by, max(sizes, default=0) * _SLIGHT)
            if len(point.nodes) == 1 or not narrow
        )
        pieces = []
        for start, end in pairwise([0, *(point.place for point in points), len(nodes)]):
            drawn = [nodes[i] in staying for i in range(start, end)]
            needed = asked_sizes[start:end]
            stays = sum(size for size, is_drawn in zip(needed, drawn, strict=True) if is_drawn)
            pieces.append(Piece(sum(needed) - stays, stays, max(sizes[start:end], default=0)))
        return cls(nodes, staying, points, tuple(pieces))

    def anchors(self, budget: float, gradients: int) -> list[Point]:
        """After which to cut so that it takes the least, and computes as little again as may be.

        Args:
            budget: how many times the least it may take.
            gradients: how many tensors of its largest's size are there beside a stretch.
        """
        low, high = 0, _taken(self.between, gradients) + sum(p.staying for p in self.between)
        while low < high:
            middle = (low + high) // 2
            fits = self._cut(middle, len(self.points), gradients) is not None
            low, high = (low, middle) if fits else (middle + 1, high)
        limit = max(low, int(budget * low))
        stays = list(accumulate((piece.staying for piece in self.between), initial=0))
        for first in range(len(self.points) + 1):
            head = self._cut(limit, first, gradients)
            if head is None:
                break
            held = _held(head) + stays[first]
            if held + _taken(self.between[first:], gradients) <= limit:
                return head
        ends = (self._cut(each, len(self.points), gradients) for each in (limit, low))
        return next((found for found in ends if found is not None), [])

    def _cut(self, limit: int, last: int, gradients: int) -> list[Point] | None:
        """Few anchors within so many bytes, the last of them before a piece; None if none do.

        A stretch is as long as fits beside the anchors before it.
        """
        found: list[Point] = []
        kept: set[fx.Node] = set()
        held = start = 0
        while start < last:
            end = self._furthest(start, last, limit - held, gradients)
            if end == start:
                return None
            found.append(self.points[end - 1])
            held += sum(bytes_of(node) for node in found[-1].nodes if node not in kept)
            held += sum(piece.staying for piece in self.between[start:end])
            kept.update(found[-1].nodes)
            start = end
        return found

    def _furthest(self, start: int, last: int, room: int, gradients: int) -> int:
        """The piece up to which a stretch fits."""
        needed = largest = 0
        furthest = start
        for end in range(start, last):
            piece = self.between[end]
            needed += piece.needed + piece.staying
            largest = max(largest, piece.largest)
            if needed + gradients * largest > room:
                break
            furthest = end + 1
        return furthest


def _taken(pieces: Sequence[Piece], gradients: int) -> int:
    """By a stretch while the backward works on it."""
    needed = sum(piece.needed + piece.staying for piece in pieces)
    return needed + gradients * max(piece.largest for piece in pieces)


def _held(anchors: Sequence[Point]) -> int:
    return sum(map(bytes_of, {node for point in anchors for node in point.nodes}))


def _stays(node: fx.Node) -> bool:
    """Whether it may draw random numbers or do more than it says, or is a part of what does."""
    if node.target is operator.getitem:
        return _stays(node.all_input_nodes[0])
    if is_opaque(node):
        return True
    assert isinstance(node.target, torch._ops.OpOverload)
    return torch.Tag.nondeterministic_seeded in node.target.tags


def is_opaque(node: fx.Node) -> bool:
    """Whether an operation is not PyTorch's own: of a user, of other ranks, or of operations."""
    if node.target is operator.getitem:
        return False
    known = ("aten", "prims")
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace not in known


def _leading_to(outputs: Sequence[fx.Node], graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The operations that some results come from."""
    found: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return tuple(node for node in graph.nodes if node in found and node.op == "call_function")


def _read_outside(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Those whose results operations besides them read, or what those are made of in one kernel."""
    places = set(nodes)
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        readers = (user for user in node.users if user.op != "output")
        if any(user not in places or (user in found and is_inlined(user)) for user in readers):
            found.add(node)
    return found


def _points(
    nodes: Sequence[fx.Node], made_by: dict[fx.Node, fx.Node], slight: float
) -> Iterator[Point]:
    """Where it may be cut; what is slight is not looked at."""
    found: list[tuple[float, Point]] = []
    for place, waiting in enumerate(_waiting(nodes), 1):
        made = dict.fromkeys(made_by[node] for node in waiting)
        large = tuple(n for n in made if n.op == "call_function" and bytes_of(n) > slight)
        whole = all(isinstance(node.meta.get("val"), Tensor) for node in waiting)
        size = sum(map(bytes_of, large)) if whole else math.inf
        found.append((size, Point(large, place)))
    for (before, _), (size, point), (after, other) in zip(
        found, found[1:], found[2:], strict=False
    ):
        least = 0 < size <= min(before, after) and point.nodes != other.nodes
        if least and not any(is_inlined(node) for node in point.nodes):
            yield point


def _waiting(nodes: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
    """After each operation those whose results others of them need later."""
    places = {node: place for place, node in enumerate(nodes)}
    last_use = {n: max((places[u] for u in n.users if u in places), default=-1) for n in nodes}
    waiting: list[fx.Node] = []
    for place, node in enumerate(nodes):
        waiting = [each for each in (*waiting, node) if last_use[each] > place]
        yield waiting
