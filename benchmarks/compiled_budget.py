"""Compiled backprop in less memory: PyTorch's own budget, and ours; peak of a step, and arithmetic.

    python benchmarks/compiled_budget.py [--networks resnet50,...] [--write]

torch.compile has torch._functorch.config.activation_memory_budget: how much of what would wait for
the backward may wait; the rest is computed again, whatever takes the least arithmetic. "PyTorch" is
the budget, in brackets, of 1, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2 and 0.1 whose peak is the least; "waits"
what it keeps from forward to backward; "at 0.1" what waits there, and the peak. "Ours" is
torch.compile(model, options=hpff.compile_options()). The two graphs, with inductor's
decompositions, run here operation by operation under fake tensors, so the same on every machine:
kernels that inductor fuses take less in places and more in others. Each cell has GiB, and after the
stroke the arithmetic of a step over backprop's. Not compiled: checkpointing at its best, and
LocalLearner(model, method="bp", recompute="blocks"). Networks, batches and what is counted are
those of backprop_memory.py. --write puts the table into benchmarks/compiled_budget.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._inductor.lowering  # its decompositions want it
import torch.nn.functional as F
from backprop_memory import workload_of
from memory_tables import gib, table, write
from torch import Tensor, nn
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch import config
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from hpff.memory import RECOMPUTED, Strategy, Workload
from hpff.memory.arithmetic import ArithmeticCounter
from hpff.memory.counting import AllocationCounter
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.torch_support.compiled_blocks import BlockPartitioner
from hpff.torch_support.fake_tensors import FakeTensors, fake_model

NETWORKS = (
    "resnet50",
    "resnet101",
    "torchvision/densenet121",
    "timm/convnext_tiny",
    "timm/efficientnet_b0",
    "timm/vit_base_patch16_224",
    "resnet110",
)
BUDGETS = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
HEADER = (
    "network",
    "backprop",
    "compiled: PyTorch",
    "waits",
    "at 0.1",
    "compiled: ours",
    "checkpointing",
    "by blocks",
)
_Loss = Callable[[Tensor, Tensor], Tensor]
_Tensors = dict[str, Tensor]


class Compiled(NamedTuple):
    """A step of compiled backprop.

    Attributes:
        peak: bytes at the worst moment.
        waiting: bytes kept from forward to backward.
        arithmetic: of the step.
    """

    peak: int
    waiting: int
    arithmetic: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--write", action="store_true", help="write benchmarks/compiled_budget.md")
    given = parser.parse_args()
    lines = []
    for name in given.networks.split(","):
        lines.append(_cells(name, *workload_of(name)))
        print(*lines[-1], sep=" | ", flush=True)
    made = table(HEADER, lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


def _cells(name: str, workload: Workload, batch: int) -> tuple[str, ...]:
    stage = Stage(workload)
    peak, base = Rehearsal(stage, Strategy.of()).cost(batch)
    usual = best_checkpointing(stage, batch)[0].cost(batch)
    blocks = Rehearsal(stage, RECOMPUTED).cost(batch)
    steps = []
    for budget in BUDGETS:
        with config.patch(activation_memory_budget=budget):
            steps.append(compiled_step(workload, batch, min_cut_rematerialization_partition))
    least, lowest = min(steps, key=lambda step: step.peak), steps[-1]
    ours = compiled_step(workload, batch, BlockPartitioner())
    return (
        name,
        gib(peak),
        f"{_over(base, least.peak, least.arithmetic)} ({BUDGETS[steps.index(least)]:g})",
        gib(least.waiting),
        f"{gib(lowest.waiting)}: {gib(lowest.peak)}",
        _over(base, ours.peak, ours.arithmetic),
        _over(base, *usual),
        _over(base, *blocks),
    )


def _over(base: int, peak: int, arithmetic: int) -> str:
    return f"{gib(peak)} / {arithmetic / base:.2f}"


def compiled_step(workload: Workload, batch: int, partition: Callable[..., Any]) -> Compiled:
    """Count a step whose two graphs come of a partitioner."""
    mode = FakeTensors()
    model = fake_model(workload.build, mode).train()
    with mode:
        images = torch.zeros(batch, *workload.image)
        targets = torch.zeros(batch, dtype=torch.int64)
        step = _partitioned(model, partition)
        step(images, targets).backward()
        model.zero_grad()
        parameters = list(model.parameters())
        with AllocationCounter() as memory, ArithmeticCounter() as arithmetic:
            memory.track([*parameters, *model.buffers(), images, targets])
            before = memory.current
            loss = step(images, targets)
            waiting = memory.current - before
            loss.backward()
    momentum = sum(parameter.nbytes for parameter in parameters)
    return Compiled(memory.peak + momentum, waiting, arithmetic.total)


def _partitioned(model: nn.Module, partition: Callable[..., Any]) -> _Loss:
    """The model's loss, its forward and backward graphs as torch.compile would make them.

    Running statistics are left as they are.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def loss_of(trained: _Tensors, state: _Tensors, images: Tensor, targets: Tensor) -> Tensor:
        held = {**trained, **{name: buffer.clone() for name, buffer in state.items()}}
        return F.cross_entropy(torch.func.functional_call(model, held, images), targets)

    graphs = aot_function(
        loss_of,
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    return lambda images, targets: graphs(parameters, buffers, images, targets)


if __name__ == "__main__":
    main()
