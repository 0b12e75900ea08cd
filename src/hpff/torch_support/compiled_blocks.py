"""Compiled backprop in less memory: what torch.compile keeps from the forward to the backward.

PyTorch's own partitioner chooses, among all values of a graph, those whose recomputation takes the
least arithmetic; what it computes again may pile up in the backward. Here a graph is also cut into
stretches, at points where little is all that the rest of the forward needs: that is kept, as an
anchor, and a stretch is computed again when the backward comes to it, so that one is there at a
time. The end of the graph, whose backward comes first, is left to PyTorch. That is gradient
checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) of a compiled
graph, in stretches of any lengths. Of some partitions of both kinds the best is taken.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import fx
from torch._functorch import config
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from hpff.errors import UserError
from hpff.torch_support import graph_memory, graph_pieces
from hpff.torch_support.graph_memory import graph_peak, graph_work
from hpff.torch_support.graph_pieces import Pieces, is_opaque

__all__ = ["compile_options"]

# Budgets of PyTorch's partitioner of which one may take the least; more where more is allowed.
_OWN_LEAST = (0.5, 0.4, 0.2, 0.1)
_OWN_MORE = (1.0, 0.7)
_CUTS = ((True, 2), (True, 4), (True, 6), (False, 4))  # narrow, and gradients: see Pieces
_AS_LITTLE = 1.05  # peaks so near, which are estimates, are as good


def compile_options(recompute_budget: float = 1.0) -> dict[str, Any]:
    """Options of ``torch.compile`` with which backprop takes less memory, and computes more.

    ``torch.compile(model, options=hpff.compile_options())`` computes most of the forward again in
    the backward, and keeps of it what leads to the least memory that is found. The gradients are
    those of a compiled model; no learner is needed. For PyTorch's own backend, inductor. Operations
    that draw random numbers, and those that PyTorch does not know, do not run again. A graph with
    checkpoints of the model's own (``torch.utils.checkpoint``) is left to them.

    Args:
        recompute_budget: how many times the least that a graph can take it may take, to compute
            less again; parameters and what belongs to them do not count.

    Raises:
        UserError: the budget is less than 1.
    """
    if not math.isfinite(recompute_budget) or recompute_budget < 1:
        raise UserError(
            f"recompute_budget: is {recompute_budget!r}, expected a number of at least 1"
        )
    return {"custom_partitioner_fn": BlockPartitioner(recompute_budget)}


class Partition(NamedTuple):
    """A graph of forward and backward, in two.

    Attributes:
        graphs: of forward and backward.
        peak: bytes of what they make, and of what waits between them, at the worst moment: between
            those with operations fused and one by one, as kernels are not known here.
        work: arithmetic of both.
    """

    graphs: tuple[fx.GraphModule, fx.GraphModule]
    peak: int
    work: int


class BlockPartitioner(CustomPartitionerFn):
    """Cuts a graph of forward and backward in two, for ``torch.compile``.

    Args:
        budget: how many times the least it may take, to compute less again.
    """

    def __init__(self, budget: float = 1.0) -> None:
        self._budget = budget

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The graphs of forward and backward."""
        gm.graph.eliminate_dead_code()
        if any("recompute" in node.meta for node in gm.graph.nodes):
            return min_cut_rematerialization_partition(gm, joint_inputs, **settings)
        found = list(self._partitions(gm, joint_inputs, settings))
        limit = max(_AS_LITTLE, self._budget) * min(each.peak for each in found)
        return min((p for p in found if p.peak <= limit), key=lambda p: (p.work, p.peak)).graphs

    def _partitions(
        self, gm: fx.GraphModule, inputs: Sequence[object], settings: dict[str, Any]
    ) -> Iterator[Partition]:
        outputs = settings["num_fwd_outputs"]
        if any(is_opaque(node) for node in Pieces.of(gm.graph, outputs).staying):
            budgets: Sequence[float] = (1.0,)  # below, PyTorch runs again what it does not know
        else:
            budgets = _OWN_LEAST if self._budget == 1 else (*_OWN_MORE, *_OWN_LEAST)
        for budget in budgets:
            with config.patch(activation_memory_budget=budget):
                yield _partition(_copied(gm), inputs, settings)
        tried = set()
        for narrow, gradients in _CUTS:
            marked = _copied(gm)
            pieces = Pieces.of(marked.graph, outputs, narrow=narrow)
            anchors = pieces.anchors(self._budget, gradients)
            places = tuple(point.place for point in anchors)
            if places and places not in tried:
                tried.add(places)
                _mark(pieces, {node for point in anchors for node in point.nodes}, places[-1])
                yield _partition(marked, inputs, settings)

    def uuid(self) -> bytes:
        """What compiled graphs are kept by."""
        files = (__file__, graph_memory.__file__, graph_pieces.__file__)
        return get_hash_for_files(files, extra=str(self._budget))


def _copied(gm: fx.GraphModule) -> fx.GraphModule:
    """The same with a graph of its own."""
    with warnings.catch_warnings():  # of how PyTorch describes arguments to itself
        warnings.simplefilter("ignore", FutureWarning)
        return fx.GraphModule(gm, copy.deepcopy(gm.graph))


def _mark(pieces: Pieces, kept: set[fx.Node], end: int) -> None:
    """Say what is kept, and what is computed again, as selective checkpointing does."""
    for node in pieces.nodes[:end]:
        keep = node in kept or node in pieces.staying
        again = CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.MUST_RECOMPUTE
        node.meta.update(recompute=again, ac_graph_id=1)


def _partition(gm: fx.GraphModule, inputs: Sequence[object], settings: dict[str, Any]) -> Partition:
    forward, backward = min_cut_rematerialization_partition(gm, inputs, **settings)
    graphs = (forward.graph, backward.graph)
    ways = (max(graph_peak(graph, fused=fused) for graph in graphs) for fused in (True, False))
    return Partition((forward, backward), sum(ways) // 2, graph_work(*graphs))
