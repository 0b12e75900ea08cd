"""Backprop that torch.compile compiles so that it takes less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from naive.rule import flat_gradients
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch.aot_autograd import aot_module
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import hpff
from hpff import LocalLearner
from hpff.errors import UserError
from hpff.memory.counting import AllocationCounter
from hpff.torch_support.compiled_blocks import BlockPartitioner
from hpff.torch_support.graph_memory import graph_peak, graph_work

# The compiler looks at it.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
IMAGES = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)).double()
TARGETS = torch.arange(8) % 4
BUDGETS = (1.0, 1.5, 10.0)
Graphs = list[tuple[fx.GraphModule, fx.GraphModule]]


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.dropout(F.relu(self.norm(self.first(x))))))


def deep(blocks: int = 8, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    chain = (Block(4, dropout) for _ in range(blocks))
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    return nn.Sequential(*chain, *head).double()


def of_squares() -> nn.Module:
    """Whose blocks are matrix products alone."""
    torch.manual_seed(0)
    layers = [layer for _ in range(32) for layer in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 256, 4)).double()


class Attention(nn.Module):
    """Self-attention over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.three = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.three(self.norm(x)).unflatten(-1, (3, 2, -1)).unbind(2)
        found = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return x + found.transpose(1, 2).flatten(2)


def of_attention() -> nn.Module:
    torch.manual_seed(0)
    blocks = [part for _ in range(4) for part in (Attention(16), nn.Linear(16, 16), nn.GELU())]
    return nn.Sequential(nn.Flatten(1, 2), *blocks, nn.Flatten(), nn.Linear(1024, 4)).double()


class Skipping(nn.Module):
    """U-shaped: early results are read again late."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.up = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(4 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = F.relu(layer(x))
            kept.append(x)
        for layer in self.up:
            x = F.relu(layer(torch.cat((x, kept.pop()), 1)))
        return self.head(x.flatten(1))


def u_shaped() -> nn.Module:
    return Skipping().double()


@torch.library.custom_op("hpff_tests::noisy", mutates_args=())
def noisy(x: Tensor) -> Tensor:
    """Half of it at random, as an operation of which PyTorch knows nothing."""
    return x * (torch.rand_like(x) > 0.5)


noisy.register_fake(torch.empty_like)
noisy.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward((output != 0).to(output)),
)


class Unknown(nn.Module):
    """With operations of its own, and numbers written into its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
        self.head = nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + noisy(torch.tanh(layer(x))) * torch.tensor([0.5, 1.0] * 8, dtype=x.dtype)
        return self.head(x.flatten(1))


def unknown() -> nn.Module:
    return Unknown().double()


class Checkpointing(nn.Module):
    """That recomputes parts itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        parts = (nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.0), nn.Linear(16, 16), nn.GELU())
        self.parts = nn.ModuleList(copy.deepcopy(nn.Sequential(*parts)) for _ in range(3))
        self.head = nn.Linear(1024, 4)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False)
        return self.head(x.flatten(1))


def checkpointing() -> nn.Module:
    return Checkpointing().double()


def compiled(model: nn.Module, partition: Callable[..., Any]) -> tuple[nn.Module, Graphs]:
    """A model with the two graphs that a partition gives, run operation by operation."""
    graphs: Graphs = []

    def noted(*args: Any, **settings: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        graphs.append(partition(*args, **settings))
        return graphs[-1]

    made = aot_module(
        model,
        fw_compiler=boxed_nop,
        bw_compiler=boxed_nop,
        partition_fn=noted,
        decompositions=select_decomp_table(),
    )
    return made, graphs


def step(model: nn.Module) -> Tensor:
    """The gradients of a step, with the same random numbers each time."""
    torch.manual_seed(1)
    F.cross_entropy(model(IMAGES), TARGETS).backward()
    return flat_gradients(model)


def peak(model: nn.Module) -> int:
    """Bytes of tensors at the worst moment of a step."""
    step(model)
    model.zero_grad()
    with AllocationCounter() as counter:
        step(model)
    return counter.peak


@pytest.mark.parametrize(
    ("make", "budget"),
    [
        (deep, 1.0),
        (deep, 1.5),
        (of_squares, 1.0),
        (of_attention, 1.0),
        (u_shaped, 1.0),
        (unknown, 1.0),
        (checkpointing, 1.0),
    ],
)
def test_gradients_and_statistics_are_the_models(
    make: Callable[[], nn.Module], budget: float
) -> None:
    plain, other = make(), compiled(make(), BlockPartitioner(budget))[0]
    torch.testing.assert_close(step(other), step(plain))
    torch.testing.assert_close(list(other.buffers()), list(plain.buffers()))


@pytest.mark.parametrize("make", [deep, pytest.param(of_squares, marks=pytest.mark.long)])
def test_it_takes_less_than_pytorchs_partition_at_any_of_its_budgets(
    make: Callable[[], nn.Module],
) -> None:
    from torch._functorch import config

    ours = peak(compiled(make(), BlockPartitioner())[0])
    theirs = []
    for budget in (1.0, 0.5, 0.1):
        with config.patch(activation_memory_budget=budget):
            theirs.append(peak(compiled(make(), min_cut_rematerialization_partition)[0]))
    assert ours < 0.7 * min(theirs)
    assert ours < 0.5 * theirs[0]


@pytest.mark.long
def test_it_grows_with_depth_as_checkpointing_does() -> None:
    short, long = (peak(compiled(deep(blocks), BlockPartitioner())[0]) for blocks in (8, 32))
    assert long < 2.3 * short, "about twice for four times the blocks"


@pytest.mark.long
def test_more_room_is_less_work() -> None:
    found = []
    for budget in BUDGETS:
        model, graphs = compiled(deep(), BlockPartitioner(budget))
        taken = peak(model)
        found.append((taken, graph_work(*(part.graph for part in graphs[0]))))
    peaks, work = zip(*found, strict=True)
    plain, kept = compiled(deep(), min_cut_rematerialization_partition)
    step(plain)
    assert list(work) == sorted(work, reverse=True)
    assert work[0] > work[-1] == graph_work(*(part.graph for part in kept[0]))
    assert peaks[0] == min(peaks)
    assert all(
        taken < 1.4 * budget * peaks[0] for taken, budget in zip(peaks, BUDGETS, strict=True)
    )


def test_the_peak_of_a_graph_is_what_is_counted() -> None:
    model, graphs = compiled(deep(), BlockPartitioner())
    counted = peak(model)
    foreseen = max(graph_peak(graph.graph, fused=False) for graph in graphs[0])
    assert foreseen == pytest.approx(counted, rel=0.1)


def test_a_graphs_peak_by_hand() -> None:
    def chain(x: Tensor) -> Tensor:
        first = x @ x
        return torch.stack((first.exp().tanh() @ first, first))

    graph = make_fx(chain)(torch.randn(32, 32)).graph
    for node in graph.nodes:
        if node.op == "placeholder":
            node.name = "primals_1"
    # At its worst: both products, what goes into the second, and the stack, as large as two.
    assert graph_peak(graph, fused=True) == 5 * 32 * 32 * 4
    assert graph_work(graph) == 2 * 2 * 32**3


@pytest.mark.long
def test_what_draws_random_numbers_is_not_drawn_again() -> None:
    again, graphs = compiled(deep(dropout=0.5), BlockPartitioner())
    kept, _ = compiled(deep(dropout=0.5), min_cut_rematerialization_partition)
    torch.testing.assert_close(step(again), step(kept))
    (_, backward), *_ = graphs
    assert not any("rand" in str(node.target) for node in _done(backward))
    assert peak(again) < 0.7 * peak(kept)


def _done(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def test_sizes_that_are_dynamic_stay_so() -> None:
    torch._dynamo.reset()
    partitions = []

    def noted(*args: Any, **settings: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        partitions.append(BlockPartitioner()(*args, **settings))
        return partitions[-1]

    plain, trained = of_squares(), of_squares()
    backend = aot_autograd(fw_compiler=boxed_nop, bw_compiler=boxed_nop, partition_fn=noted)
    model = torch.compile(trained, backend=backend, dynamic=True)
    for batch in (8, 6, 3):
        for each in (model, plain):
            each.zero_grad()
            F.cross_entropy(each(IMAGES[:batch].clone()), TARGETS[:batch]).backward()
        torch.testing.assert_close(flat_gradients(trained), flat_gradients(plain))
    assert len(partitions) == 1


def test_budgets_below_one_are_refused() -> None:
    for budget in (0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"recompute_budget: is .*, expected a number of at"):
            hpff.compile_options(budget)


def test_a_learner_refuses_other_backends_and_local_methods() -> None:
    given = {"example": IMAGES[:2], "num_classes": 4, "recompute": "blocks"}
    learner = LocalLearner(deep(4), method="bp", **given)
    with pytest.raises(UserError, match="is compiled by backend='inductor' only"):
        learner.compile(backend="aot_eager")
    with pytest.raises(UserError, match="takes mode or options, and sets the partitioner"):
        learner.compile(mode="default", options={"max_autotune": True})
    with pytest.raises(UserError, match="or method='bp' with recompute='blocks'"):
        LocalLearner(deep(4), modules=2, **given).compile()


def test_what_pytorch_does_not_know_runs_once() -> None:
    _, graphs = made = compiled(unknown(), BlockPartitioner())
    step(made[0])
    (forward, backward), *_ = graphs
    done = [[str(n.target) for n in _done(graph)] for graph in (forward, backward)]
    assert [sum("noisy" in name for name in names) for names in done] == [12, 0]
    assert any("tanh" in name for name in done[1]), "the rest runs again"


def test_a_copy_of_a_compiled_learner_recomputes_as_before() -> None:
    given = {"example": IMAGES[:2], "num_classes": 4, "recompute": "blocks"}
    learner = LocalLearner(deep(4), method="bp", **given)
    before = peak_of_learner(learner)
    learner.compile()
    assert peak_of_learner(copy.deepcopy(learner)) == before


def peak_of_learner(learner: LocalLearner) -> int:
    learner.zero_grad()
    with AllocationCounter() as counter:
        learner.backward(IMAGES, TARGETS)
    return counter.peak


@pytest.mark.long
def test_a_learner_that_is_compiled_gives_backprops_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()
    calls = []
    partition = BlockPartitioner.__call__

    def noted(self: BlockPartitioner, *args: Any, **settings: Any) -> Any:
        calls.append(partition(self, *args, **settings))
        return calls[-1]

    monkeypatch.setattr(BlockPartitioner, "__call__", noted)
    plain = deep(6)
    learner = LocalLearner(
        deep(6), method="bp", example=IMAGES[:2], num_classes=4, recompute="blocks"
    )
    learner.compile(mode="default")
    for _ in range(2):
        for model in (plain, learner):
            model.zero_grad()
        F.cross_entropy(plain(IMAGES), TARGETS).backward()
        losses = learner.backward(IMAGES, TARGETS)
    assert torch.isfinite(losses.total)
    torch.testing.assert_close(flat_gradients(learner.model), flat_gradients(plain))
    assert len(calls) == 1, "the model is one graph"
