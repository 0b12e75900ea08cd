"""The smallest pieces that a number of modules leaves whole: stem, blocks and head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from hpff.cutting.blocks import blocks_of, is_list
from hpff.cutting.trace import Separator, Trace

END = 1 << 62
"""A time after everything."""


@dataclass(frozen=True)
class Unit:
    """A piece of the model.

    Attributes:
        name: of its block.
        shape: of its output, the batch left out.
        separator: where it ends; None for the last.
        parameters: how many numbers it learns.
        saved: bytes that it saves for the backward, on the example.
    """

    name: str
    shape: tuple[int, ...]
    separator: Separator | None
    parameters: int = 0
    saved: int = 0

    @property
    def end(self) -> int:
        """When it ends."""
        return self.separator.time if self.separator else END


def units_of(model: nn.Module, seen: Trace) -> list[Unit]:
    """The units of a model.

    Args:
        model: the one that was traced.
        seen: its trace.

    Returns:
        They in order; the first is the stem, or all there is.
    """
    separating = {name for separator in seen.separators for name in separator.paths}
    blocks, chain = blocks_of(model, separating)
    separators = [kept for s in seen.separators if (kept := _outside(s, blocks)) is not None]
    units = _at_weights(model, seen, separators, set(blocks))
    if chain:
        units = _joined_to_blocks(units, separators, set(blocks))
    elif (
        len(units) > 1
        and not isinstance(model, nn.Sequential)
        and _is_classifier(model, seen, units)
    ):
        units = [*units[:-2], replace(units[-2], separator=None)]
    return _measured(model, seen, units)


def preferred_name(model: nn.Module, separator: Separator, blocks: Collection[str] = ()) -> str:
    """Of the submodules that share an output: a block, else the outermost item of a list."""
    names = separator.names
    items = [name for name in names if is_list(model.get_submodule(name.rpartition(".")[0]))]
    return next((name for name in names if name in blocks), (items or names)[-1])


def _outside(separator: Separator, blocks: Sequence[str]) -> Separator | None:
    """The separator without the submodules that are inside a block, if any is left."""
    inside = [f"{block}." for block in blocks]
    paths = {n: p for n, p in separator.paths.items() if not n.startswith(tuple(inside))}
    return replace(separator, paths=paths) if paths else None


def _at_weights(
    model: nn.Module, seen: Trace, separators: Sequence[Separator], blocks: Collection[str]
) -> list[Unit]:
    """A unit ends where the next weight is about to be used."""
    units: list[Unit] = []
    start, name, shape = -1, "", seen.output_shape[1:]
    times = [*(s.time for s in separators), END]
    for separator, next_time in zip(separators, times[1:], strict=True):
        if not name and seen.has_weight_between(start, separator.time):
            name, shape = preferred_name(model, separator, blocks), separator.shape[1:]
        if name and seen.has_weight_between(separator.time, next_time):
            units.append(Unit(name, shape, separator))
            start, name = separator.time, ""
    return [*units, Unit(name or "head", shape, None)]


def _joined_to_blocks(
    units: Sequence[Unit], separators: Sequence[Separator], blocks: Collection[str]
) -> list[Unit]:
    """The stem, and a unit for each block: with what comes before it, or after the last."""
    found = {s.time: (n, s) for s in separators for n in s.paths if n in blocks}
    chain = [Unit(name, s.shape[1:], s) for _, (name, s) in sorted(found.items())]
    stem = [unit for unit in units if unit.end < chain[0].end][-1:]
    return [*stem, *chain[:-1], replace(chain[-1], separator=None)]


def _is_classifier(model: nn.Module, seen: Trace, units: Sequence[Unit]) -> bool:
    """Whether a single matrix is all that the last unit uses."""
    weights = dict(model.named_parameters())
    used = seen.parameters_between(units[-2].end, END)
    return sum(weights[name].ndim >= 2 for name in used) <= 1


def _measured(model: nn.Module, seen: Trace, units: Sequence[Unit]) -> list[Unit]:
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    ends = [-1, *(unit.end for unit in units)]
    saved = [0, *(u.separator.saved if u.separator else seen.saved for u in units)]
    return [
        replace(
            unit,
            parameters=sum(numbers[name] for name in seen.parameters_between(start, end)),
            saved=saved_after - saved_before,
        )
        for unit, (start, end), (saved_before, saved_after) in zip(
            units, pairwise(ends), pairwise(saved), strict=True
        )
    ]
