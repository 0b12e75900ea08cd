"""Backprop with gradient checkpointing, for any model: runs of blocks are recomputed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpff.cutting.local_modules import Partition
from hpff.cutting.partition import partition
from hpff.cutting.trace import restored_state
from hpff.memory.counting import AllocationCounter
from hpff.torch_support.model_io import call_model

Block = list[nn.Module]
T = TypeVar("T")


def chain(model: nn.Module, example: Any) -> list[list[Block]]:
    """The blocks that can be recomputed together, in runs.

    In a run each block takes what the one before gave, and nothing else; between two runs the
    model does something of its own. Submodules that overwrite their input are of one block with
    the one before.
    """
    candidates = _candidates(model, partition(model, None, example))
    versions: dict[nn.Module, int] = {}
    calls: list[tuple[nn.Module, object, object]] = []

    def begins(module: nn.Module, arguments: Any, keywords: Any) -> None:
        alone = len(arguments) == 1 and not keywords and isinstance(arguments[0], Tensor)
        versions[module] = arguments[0]._version if alone else -1

    def ends(module: nn.Module, arguments: Any, output: Any) -> None:
        calls.append((module, arguments[0] if versions[module] >= 0 else None, output))

    with ExitStack() as stack, restored_state(model), torch.no_grad():
        for module in candidates:
            stack.callback(module.register_forward_pre_hook(begins, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(ends).remove)
        call_model(model, example)
    runs: list[list[Block]] = []
    before: object = None
    for module, given, output in calls:
        if given is None or sum(module is other for other, _, _ in calls) > 1:
            before = None
            continue
        assert isinstance(given, Tensor)
        if given is not before:
            runs.append([])
        overwrites = given._version != versions[module]
        if overwrites and runs[-1]:
            runs[-1][-1].append(module)
        else:
            runs[-1].append([module])
        before = output
    return runs


def _candidates(model: nn.Module, blocks: Partition) -> list[nn.Module]:
    """The items of every container that holds a block: all of a Sequential, a ModuleList's blocks.

    Of items inside one another the outermost that holds no such container.
    """
    named = dict(model.named_modules())
    names = [name for block in blocks for name in block.submodules if name in named]
    parents = {name.rpartition(".")[0] for name in names}
    items: list[str] = []
    for parent in parents:
        if isinstance(named[parent], nn.Sequential):
            children = [child for child, _ in named[parent].named_children()]
            items += [f"{parent}.{child}" if parent else child for child in children]
        elif isinstance(named[parent], nn.ModuleList):
            items += [name for name in names if name.rpartition(".")[0] == parent]
    whole = [item for item in items if not any(f"{p}.".startswith(f"{item}.") for p in parents)]
    return [named[a] for a in whole if not any(a.startswith(f"{b}.") for b in whole)]


def segments_of(runs: Sequence[Sequence[T]], length: int) -> list[Sequence[T]]:
    """The runs in segments of ``length`` blocks or less, none of them across two runs."""
    return [run[i : i + length] for run in runs for i in range(0, len(run), length)]


def likely_lengths(runs: Sequence[Sequence[BlockBytes]]) -> list[int]:
    """Lengths of segments, those that will probably take the least memory first.

    At the worst moment the inputs of all segments are there, and the largest segment whole.
    """

    def estimate(length: int) -> int:
        *recomputed, last = segments_of(runs, length)
        inputs = sum(segment[0].input for segment in recomputed)
        whole = max(sum(block.kept for block in segment) for segment in (*recomputed, last))
        return inputs + whole

    return sorted(range(1, max(map(len, runs), default=0) + 1), key=estimate)


class BlockBytes(NamedTuple):
    """Bytes of a block's input, and of all that its forward leaves behind."""

    input: int
    kept: int


def block_bytes(
    runs: Sequence[Sequence[Block]], forward: Callable[[], object], counter: AllocationCounter
) -> list[list[BlockBytes]]:
    """What each block takes in ``forward()``, which the counter watches."""
    before: dict[nn.Module, tuple[int, int]] = {}  # by a block's first submodule
    after: dict[nn.Module, int] = {}  # by its last

    def begins(module: nn.Module, given: tuple[Tensor]) -> None:
        before[module] = given[0].nbytes, counter.current

    def ends(module: nn.Module, _: object, __: object) -> None:
        after[module] = counter.current

    with ExitStack() as stack:
        for block in (block for run in runs for block in run):
            stack.callback(block[0].register_forward_pre_hook(begins).remove)
            stack.callback(block[-1].register_forward_hook(ends).remove)
        forward()
    return [
        [BlockBytes(before[b[0]][0], after[b[-1]] - before[b[0]][1]) for b in run] for run in runs
    ]


@contextmanager
def checkpointed(segments: Sequence[Sequence[Block]]) -> Iterator[None]:
    """Inside, each segment but the last keeps only its input, and is recomputed in the backward.

    The last would be recomputed at once.
    """
    flat = [[module for block in segment for module in block] for segment in segments[:-1]]
    changed = [module for segment in flat for module in segment]
    before = [module.__dict__.get("forward") for module in changed]
    try:
        for first, *rest in flat:
            first.forward = _recomputing([module.forward for module in (first, *rest)])
            for module in rest:
                module.forward = _hand_on
        yield
    finally:
        for module, forward in zip(changed, before, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def _recomputing(calls: Sequence[Any]) -> Any:
    def run(x: Tensor) -> Tensor:
        for call in calls:
            x = call(x)
        return x

    return lambda x: checkpoint(run, x, use_reentrant=False)


def _hand_on(x: Tensor) -> Tensor:
    return x
