"""Small trainings, by one process and by ranks that share the modules out, that must agree."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpff import LocalLearner
from hpff.memory import AllocationCounter
from hpff.parallel import ModuleParallel, step_seed

CLASSES = 4


@dataclass(frozen=True)
class Case:
    """One training: of what, how, and over which ranks."""

    settings: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    sizes: tuple[int, ...] | None = None
    steps: int = 3
    batch: int = 6
    model: str = "chain"
    accumulated: bool = False
    sent: bool = False


class Block(nn.Module):
    """A convolution with statistics, and random zeros."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, maps: Tensor) -> Tensor:
        return self.dropout(torch.relu(maps + self.norm(self.conv(maps))))


class Chain(nn.Module):
    """A stem, blocks in a list, and a head; some work between submodules."""

    def __init__(self, blocks: int = 6, channels: int = 4, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.offset = nn.Parameter(torch.zeros(channels, 1, 1))
        self.blocks = nn.ModuleList(Block(channels, dropout) for _ in range(blocks))
        self.head = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images) + self.offset
        for block in self.blocks:
            maps = block(maps)
        return self.head(maps.mean((2, 3)))


class Tokens(nn.Module):
    """A transformer: tokens of patches, positions outside of submodules, a padding mask."""

    def __init__(self, blocks: int = 6, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.positions = nn.Parameter(torch.randn(4, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True)
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).mT + self.positions
        mask = (images.mean((1, 2, 3)) > 2)[:, None].expand(-1, 4)
        for block in self.blocks:
            tokens = block(tokens, src_key_padding_mask=mask)
        return self.head(tokens.mean(1))


def learner_of(
    case: Case,
    *,
    model: nn.Module | None = None,
    channels: int = 4,
    dtype: torch.dtype = torch.float32,
) -> LocalLearner:
    torch.manual_seed(5)
    settings = {"modules": 6, "method": "dgl"} | case.settings
    example = torch.rand(2, 3, 8, 8, dtype=dtype)
    if case.model == "tokens":
        model = Tokens()
    model = (model or Chain(channels=channels)).to(dtype)
    if case.model == "shared":
        model.blocks[2].conv.weight = model.blocks[1].conv.weight
    if case.model == "channels-last":
        model = model.to(memory_format=torch.channels_last)
        example = example.contiguous(memory_format=torch.channels_last)
    return LocalLearner(model, example=example, num_classes=CLASSES, **settings)


def batches(case: Case, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    layout = torch.channels_last if case.model == "channels-last" else torch.contiguous_format
    return [
        (
            torch.rand(case.batch - step % 2, 3, 8, 8, generator=generator, dtype=dtype).contiguous(
                memory_format=layout
            ),
            torch.randint(CLASSES, (case.batch - step % 2,), generator=generator),
        )
        for step in range(case.steps)
    ]


def optimizers_of(case: Case, parameters: Any) -> Any:
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
    }
    return {j: kinds[case.optimizer](p) for j, p in parameters.items()}


def by_one(case: Case) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and statistics after a training in this process, and the final losses."""
    learner = learner_of(case)
    optimizers = optimizers_of(case, dict(enumerate(learner.module_parameters, start=1)))
    found = []
    for step, (images, targets) in enumerate(batches(case), start=1):
        torch.manual_seed(step_seed(0, step))
        losses = learner.backward(images, targets)
        for optimizer in optimizers.values():
            if steps_after(case, step):
                optimizer.step()
                optimizer.zero_grad()
        found.append(losses.final.item())
    return learner.state_dict(), found


def steps_after(case: Case, batch: int) -> bool:
    """Whether optimizers step after a batch (from 1), or its gradients wait for the next one's."""
    return not case.accumulated or batch % 2 == 0


def by_ranks(cases: list[Case]) -> list[Any]:
    """The same on this rank of several: of rank 0 the weights, of the last the losses."""
    return [_by_ranks(case) for case in cases]


def _by_ranks(case: Case) -> tuple[dict[str, Tensor] | None, list[float]]:
    batches_are = "sent" if case.sent else "drawn"
    ranks = ModuleParallel(learner_of(case), sizes=case.sizes, timeout=30, batches=batches_are)
    optimizers = optimizers_of(case, ranks.module_parameters)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    found = []
    for batch, (images, targets) in enumerate(batches(case), start=1):
        on_done = done if steps_after(case, batch) else lambda _: None
        if case.sent and ranks.rank:
            losses = ranks.backward(None, None, on_module_done=on_done)
        else:
            losses = ranks.backward(images, targets, on_module_done=on_done)
        if losses.final is not None:
            found.append(losses.final.item())
    state = ranks.state_dict()
    ranks.close()
    return state, found


def sent_wrongly() -> None:
    """The others are given a batch, too."""
    ranks = ModuleParallel(learner_of(Case()), timeout=5, batches="sent")
    images, targets = batches(Case())[0]
    ranks.backward(images, targets, on_module_done=lambda _: None)


def sent_to_evaluate() -> Tensor | None:
    """The logits of a batch that the first rank has, on the last one."""
    ranks = ModuleParallel(learner_of(Case()), timeout=30, batches="sent")
    ranks.learner.eval()
    logits = ranks.forward(None if ranks.rank else batches(Case())[0][0])
    ranks.close()
    return logits


def by_a_slow_rank(case: Case) -> tuple[dict[str, Tensor] | None, list[float]]:
    """As ``by_ranks``, but the last rank takes its time before each step."""
    if dist.get_rank() == dist.get_world_size() - 1:
        quick = ModuleParallel.backward

        def slow(*given: Any, **named: Any) -> Any:
            time.sleep(0.2)
            return quick(*given, **named)

        ModuleParallel.backward = slow
    return _by_ranks(case)


def loaded_in_training() -> list[str]:
    """Names of what is not as it was loaded, just after steps whose cascades cross ranks."""
    case = Case({"cascade": 2}, sizes=(3, 3))
    ranks = ModuleParallel(learner_of(case), sizes=case.sizes, timeout=30)
    optimizers = optimizers_of(case, ranks.module_parameters)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    for images, targets in batches(case):
        ranks.backward(images, targets, on_module_done=done)
    loaded = learner_of(case).state_dict()
    ranks.load_state_dict(loaded)
    state = ranks.state_dict() or {}
    ranks.close()
    return [name for name, value in state.items() if not torch.equal(value, loaded[name])]


def evaluated() -> Tensor | None:
    """The logits of a batch, on the last rank."""
    ranks = ModuleParallel(learner_of(Case()), timeout=30)
    ranks.learner.eval()
    logits = ranks.forward(batches(Case())[0][0])
    ranks.close()
    return logits


def warm_optimizers(learner: LocalLearner, first: int, last: int) -> dict[int, Any]:
    """SGD with momentum for some modules, with its state as after a step."""
    parameters = {j: learner.module_parameters[j - 1] for j in range(first, last + 1)}
    optimizers = optimizers_of(Case(), parameters)
    for j, own in parameters.items():
        for parameter in own:
            parameter.grad = torch.zeros_like(parameter)
        optimizers[j].step()
        optimizers[j].zero_grad()
    return optimizers


def track_standing(counter: AllocationCounter, learner: LocalLearner, optimizers: Any) -> None:
    """Count what is there between steps."""
    counter.track(learner.parameters())
    counter.track(learner.buffers())
    for optimizer in optimizers.values():
        for state in optimizer.state.values():
            counter.track(t for t in state.values() if isinstance(t, Tensor))


def counted_peak(sizes: list[int], batch: int) -> int:
    """The most bytes that this rank has in its hands in some steps."""
    learner = learner_of(Case({"cascade": 2, "patches": 2}), channels=16)
    ranks = ModuleParallel(learner, sizes=sizes, timeout=30)
    optimizers = warm_optimizers(learner, ranks.first, ranks.last)
    counter, connections = AllocationCounter(), ranks.connections

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    def tracked(receive: Any) -> Any:
        def received(*given: Any) -> Tensor:
            tensor = receive(*given)
            counter.track([tensor])
            return tensor

        return received

    for name in ("receive_output", "receive_gradient"):
        setattr(connections, name, tracked(getattr(connections, name)))
    with counter:
        track_standing(counter, learner, optimizers)
        for _ in range(5):
            images, targets = torch.rand(batch, 3, 8, 8), torch.zeros(batch, dtype=torch.int64)
            ranks.backward(images, targets, on_module_done=done)
        ranks.finish()
    ranks.close()
    return counter.peak


def held_bytes() -> int:
    """What this rank's parameters take."""
    ranks = ModuleParallel(learner_of(Case(), channels=32), timeout=30)
    storages = {p.untyped_storage().data_ptr(): p for p in ranks.learner.parameters()}
    ranks.close()
    return sum(p.untyped_storage().nbytes() for p in storages.values())


def different_learners() -> None:
    ModuleParallel(learner_of(Case({"cascade": 1 + dist.get_rank()})), timeout=10)


def tied() -> None:
    model = Chain()
    model.blocks[5].conv.weight = model.blocks[0].conv.weight
    ModuleParallel(learner_of(Case(), model=model), timeout=10)


def gone() -> None:
    ranks = ModuleParallel(learner_of(Case()), timeout=10)
    for step, (images, targets) in enumerate(batches(Case())):
        if step == 1 and ranks.rank == 1:
            os._exit(1)
        ranks.backward(images, targets, on_module_done=lambda _: None)


def silent() -> None:
    ranks = ModuleParallel(learner_of(Case()), timeout=1)
    if ranks.rank == 0:
        time.sleep(3)
    else:
        ranks.backward(*batches(Case())[0], on_module_done=lambda _: None)


class Remembers(Chain):
    """Reads again, past the cuts, what an early block gave."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        early = maps.detach().mean()
        for block in self.blocks:
            maps = block(maps)
        return self.head(maps.mean((2, 3)) + early)


def never_closes() -> None:
    ranks = ModuleParallel(learner_of(Case()), timeout=1)
    if ranks.rank == 0:
        time.sleep(3)
    else:
        ranks.close()
