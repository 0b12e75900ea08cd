"""What a graph of torch.compile takes when it runs, its elementwise operations fused."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from hpff.torch_support.arithmetic import arithmetic_of


def bytes_of(node: fx.Node) -> int:
    """Of a tensor that an operation gives; 0 of anything else."""
    value = node.meta.get("val")
    return _number(value.numel()) * value.element_size() if isinstance(value, Tensor) else 0


def makers(nodes: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each node the one that made what it gives: itself, unless it only looks at it."""
    made_by: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        source = node.all_input_nodes[0] if _looks(node) and node.all_input_nodes else node
        made_by[node] = made_by.get(source, source)
    return made_by


def graph_peak(graph: fx.Graph, *, fused: bool) -> int:
    """Bytes of tensors at the worst moment of a forward or a backward.

    Parameters and the images, which are there anyway, do not count; what the forward keeps for the
    backward does.

    Args:
        graph: of a forward or a backward.
        fused: whether what is between two convolutions, matrix products or attentions counts as one
            kernel: what only elementwise operations read is no tensor then, and nothing goes before
            its end. Otherwise operations run one by one.
    """
    nodes = list(graph.nodes)
    made_by = makers(nodes)
    inlined = {node for node in nodes if fused and is_inlined(node)}
    last_use: dict[fx.Node, int] = {}
    for place, node in reversed(list(enumerate(nodes))):
        until = last_use.get(made_by[node], place) if node in inlined else place
        for source in node.all_input_nodes:
            last_use[made_by[source]] = max(last_use.get(made_by[source], 0), until)
    ends: dict[int, int] = {}
    for node, place in last_use.items():
        ends[place] = ends.get(place, 0) + (0 if node in inlined else _counted(node))
    now = sum(_counted(n) for n in nodes if n.op == "placeholder" and n in last_use)
    peak = now
    going = 0
    for place, node in enumerate(nodes):
        if _is_product(node) or not fused:
            now, going = now - going, 0
        makes = node.op == "call_function" and made_by[node] is node and node not in inlined
        if makes and node in last_use:
            now += bytes_of(node)
            peak = max(peak, now)
        going += ends.get(place, 0)
    return peak


def is_inlined(node: fx.Node) -> bool:
    """Whether kernels that are fused make its result where they read it, of what it is made of."""
    return _is_elementwise(node) and all(map(_is_elementwise, node.users))


def _is_elementwise(node: fx.Node) -> bool:
    target = node.target
    if target is torch.ops.prims.convert_element_type.default:
        return True
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def graph_work(*graphs: fx.Graph) -> int:
    """Arithmetic: of convolutions, matrix products and attention."""
    return sum(_work(node) for graph in graphs for node in graph.nodes)


def _work(node: fx.Node) -> int:
    if not _is_product(node):
        return 0
    given = fx.map_arg((node.args, node.kwargs), lambda each: each.meta.get("val"))
    args, keywords, output = tree_map(_plain, (*given, node.meta.get("val")))
    return arithmetic_of(node.target, args, keywords, output)


def _is_product(node: fx.Node) -> bool:
    """Whether it is a convolution, a matrix product or an attention."""
    packet = _packet(node)
    return packet in flop_registry or str(packet).startswith("aten._scaled_dot_product")


def _plain(value: Any) -> Any:
    """The like of a value, whose sizes are numbers."""
    if isinstance(value, Tensor):
        return torch.empty([_number(n) for n in value.shape], dtype=value.dtype, device="meta")
    return _number(value) if isinstance(value, torch.SymInt) else value


def _number(size: int | torch.SymInt) -> int:
    """A size, of tensors like those of the first call where it is dynamic."""
    return size if isinstance(size, int) else int(size.node.hint or 1)


def _packet(node: fx.Node) -> Any:
    target = node.target
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else None


def _counted(node: fx.Node) -> int:
    given = node.op == "placeholder" and node.name.startswith("primals")
    return 0 if given else bytes_of(node)


def _looks(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return False
    return isinstance(node.target, torch._ops.OpOverload) and node.target.is_view
