"""Into which K local modules a model is cut."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from math import prod
from operator import itemgetter
from typing import Any

from torch import nn

from hpff.cutting import balance as balancing
from hpff.cutting.balance import Balance
from hpff.cutting.local_modules import InnerPoint, LocalModule, OperationKey, Partition, Save
from hpff.cutting.published_cuts import published_cuts
from hpff.cutting.trace import Separator, Trace, trace
from hpff.cutting.units import END, Unit, preferred_name, units_of
from hpff.errors import UserError, did_you_mean
from hpff.torch_support.model_io import Path


def partition(
    model: nn.Module,
    modules: int | Sequence[str] | None,
    example: Any,
    *,
    balance: Balance = "blocks",
) -> Partition:
    """Cut ``model`` into local modules.

    Args:
        model: any module; it comes back as it was.
        modules: K, or the names of the submodules after which to cut, in any order, or None for
            the finest cut: as many modules as there are blocks, the stem counted as one.
        example: a small input: a tensor, or a tuple or dict of forward's arguments.
        balance: for a number K, how to share out the model's blocks. "blocks": the published
            split where there is one, otherwise as many for each module, later ones taking one
            more where K does not divide them; the stem (what runs before the first block)
            belongs to module 1, unless K is one more than the number of blocks: then it is a
            module of its own. "parameters": the module with the most has as few as can be.
            "memory": the same for the bytes that a module saves for its backward, measured on
            the example.

    Returns:
        The K modules, without their features.

    Raises:
        UserError: K is more than the model's blocks allow; a name is unknown, does not run
            exactly once, or its output does not separate the model (a leak, which is named).
    """
    balancing.check(balance)
    if isinstance(modules, bool) or not isinstance(modules, (int, Sequence, type(None))):
        raise UserError(f"modules is {modules!r}; expected a number or a list of submodule names")
    seen = trace(model, example)
    units = units_of(model, seen)
    if modules is None:
        modules = len(units)
    if isinstance(modules, int):
        cuts = _cuts_for_number(model, seen, units, modules, balance)
    else:
        cuts = _cuts_by_name(model, seen, units, [modules] if isinstance(modules, str) else modules)
    return _describe(model, seen, units, cuts)


def _cuts_for_number(
    model: nn.Module, seen: Trace, units: Sequence[Unit], count: int, balance: Balance
) -> list[Separator]:
    if not 1 <= count <= len(units):
        raise UserError(
            f"modules={count}: this model can be cut into 1 to {len(units)} modules "
            f"({len(units)} blocks, the stem counted as one); lower modules or name the cuts"
            f"{_why_no_more(model, seen, units)}"
        )
    published = published_cuts(units, count) if balance == "blocks" else None
    if published is not None:
        return published
    if balance == "blocks":
        sizes = balancing.evenly(len(units), count)
    else:
        costs = [unit.saved if balance == "memory" else unit.parameters for unit in units]
        sizes = balancing.lightest(costs, count)
    ends = [units[last - 1].separator for last in accumulate(sizes)]
    return [end for end in ends if end is not None]


def _why_no_more(model: nn.Module, seen: Trace, units: Sequence[Unit]) -> str:
    """What stands in the way of a further cut: the outermost part that is no block's."""
    composite = {name for name, part in model.named_modules() if any(True for _ in part.children())}
    inside = tuple(f"{unit.name}." for unit in units)
    leaking = [n for n in seen.leaks if not n.startswith(inside)]
    parts = [*(n for n in leaking if n in composite), *seen.other_order] or leaking
    if not parts:
        return ""
    name = min(parts, key=lambda part: (part not in composite, part.count(".")))
    leak = seen.find_leak(name)
    if leak is not None:
        return f"; a cut after {name!r} would leak: {leak}"
    return f"; the output of {name!r} {_not_batch_first(seen, name)}"


def _not_batch_first(seen: Trace, name: str) -> str:
    shape = "×".join(map(str, seen.other_order[name]))
    return f"({shape} on the example) does not have the batch first"


def _cuts_by_name(
    model: nn.Module, seen: Trace, units: Sequence[Unit], names: Sequence[str]
) -> list[Separator]:
    cuts: dict[int, Separator] = {}
    for name in names:
        separator = seen.find(name) if isinstance(name, str) else None
        if separator is None:
            raise UserError(_why_not(model, seen, units, name))
        if separator.time in cuts:
            raise UserError(f"modules: {name!r} names the same cut twice; name each cut once")
        cuts[separator.time] = replace(separator, paths={name: separator.paths[name]})
    return [cuts[time] for time in sorted(cuts)]


def _why_not(model: nn.Module, seen: Trace, units: Sequence[Unit], name: Any) -> str:
    known = dict(model.named_modules())
    if name not in known or not name:
        guess = did_you_mean(str(name), [n for n in known if n])
        return f"modules: the model has no submodule {name!r}{guess}; {_cuts_that_work(units)}"
    leak = seen.find_leak(name)
    if leak is not None:
        return f"cannot cut after {name!r}: {leak}; {_nearest_cuts(model, seen, seen.leaks[name])}"
    runs = seen.calls.get(name, 0)
    why = "its output ends the model or has no gradient"
    if runs != 1:
        why = f"it runs {runs} times in a step, not once"
    elif name in seen.other_order:
        why = f"its output {_not_batch_first(seen, name)}"
    return f"cannot cut after {name!r}: {why}; {_cuts_that_work(units)}"


def _cuts_that_work(units: Sequence[Unit]) -> str:
    cuts = [unit.separator.names[-1] for unit in units if unit.separator is not None]
    listed = ", ".join(cuts[:6]) + (", ..." if len(cuts) > 6 else "")
    return f"cuts that work: {listed or 'none but the whole model'}"


def _nearest_cuts(model: nn.Module, seen: Trace, time: int) -> str:
    before = [s for s in seen.separators if s.time < time][-1:]
    after = [s for s in seen.separators if s.time > time][:1]
    cuts = ", ".join(preferred_name(model, separator) for separator in (*before, *after))
    return f"nearest cuts that work: {cuts or 'none but the whole model'}"


def _describe(
    model: nn.Module, seen: Trace, units: Sequence[Unit], cuts: Sequence[Separator]
) -> Partition:
    numbers = {name: parameter.numel() for name, parameter in model.named_parameters()}
    blocks = {unit.name for unit in units}
    bounds = [-1, *(cut.time for cut in cuts), END]
    saved = [0, *(cut.saved for cut in cuts), seen.saved]
    modules = []
    for index, (start, end) in enumerate(pairwise(bounds)):
        cut = cuts[index] if index < len(cuts) else None
        name = preferred_name(model, cut, blocks) if cut else None
        names = seen.parameters_between(start, end)
        inside = [unit for unit in units if start < unit.end <= end]
        shape = cut.shape if cut else seen.output_shape
        dtype = cut.dtype if cut else seen.output_dtype
        before = cuts[index - 1] if index else None
        keys = _operation_keys(seen, before, cut)
        modules.append(
            LocalModule(
                index=index + 1,
                cut=name,
                submodules=tuple(unit.name for unit in inside) or ((name,) if name else ()),
                block_shapes=tuple(unit.shape for unit in inside),
                parameter_names=tuple(names),
                parameters=sum(numbers[name] for name in names),
                output_shape=shape[1:],
                dtype=dtype,
                device=cut.device if cut else seen.output_device,
                path=cut.paths[name] if cut and name else (),
                saved=saved[index + 1] - saved[index],
                output_bytes=cut.output_bytes if cut else prod(shape) * dtype.itemsize,
                maker=keys.get(cut.written) if cut else None,
                forks=bool(cut and cut.forks),
                overwritten=bool(cut and cut.overwritten),
                read_later=_is_read_later(cuts[index : index + 2]),
                shares=_shares(seen, before, cut),
                saves=_saves(seen, saved[index], saved[index + 1], keys),
                work=sum(seen.work[time - 1] for time in keys),
                inner=_inner_points(seen, before, cut, keys),
                passing=_passing(seen.separators, start, cut),
            )
        )
    return Partition(tuple(modules))


def _operation_keys(
    seen: Trace, before: Separator | None, cut: Separator | None
) -> dict[int, OperationKey]:
    """The operations from one cut to the next, by how many the model has done then."""
    start = before.operations if before else 0
    end = cut.operations if cut else len(seen.operations)
    numbers: Counter[str] = Counter()
    keys = {}
    for time, name in enumerate(seen.operations[start:end], start=start + 1):
        numbers[name] += 1
        keys[time] = OperationKey(name, numbers[name])
    return keys


def _saves(seen: Trace, start: int, end: int, keys: Mapping[int, OperationKey]) -> tuple[Save, ...]:
    """What is saved after so many bytes, until there are so many."""
    totals = list(accumulate(save.size for save in seen.saves))
    first, last = bisect.bisect_right(totals, start), bisect.bisect_right(totals, end)
    return tuple(
        Save(
            save.size,
            keys.get(save.made),
            tuple(place - first for place in save.made_of if first <= place < last),
            save.work,
            save.coming,
            save.own,
        )
        for save in seen.saves[first:last]
    )


def _inner_points(
    seen: Trace,
    before: Separator | None,
    cut: Separator | None,
    keys: Mapping[int, OperationKey],
) -> tuple[InnerPoint, ...]:
    """The points from one cut to the next."""
    saved_before = before.saved if before else 0
    work = dict(zip(keys, accumulate(seen.work[time - 1] for time in keys), strict=True))
    return tuple(
        InnerPoint(
            operation=keys[point.time],
            leaf=point.leaf,
            output_bytes=point.output_bytes,
            saved=point.saved - saved_before,
            forks=point.forks,
            spared=point.spared,
            work=work[point.time],
        )
        for point in seen.points
        if point.time in keys and not (cut and point.time == cut.written)
    )


def _passing(
    separators: Sequence[Separator], start: int, cut: Separator | None
) -> tuple[tuple[str, Path], ...]:
    """The submodules between two cuts whose outputs are only passed on."""
    end, operations = (cut.time, cut.operations) if cut else (END, END)
    return tuple(
        (s.names[-1], s.paths[s.names[-1]])
        for s in separators
        if start < s.time < end and not s.overwritten and s.read_until <= operations
    )


def _shares(seen: Trace, before: Separator | None, cut: Separator | None) -> bool:
    """Whether something that is made between two cuts is read after them, but for the output."""
    if cut is None:
        return False
    made = itemgetter(0)
    first = bisect.bisect_right(seen.lifetimes, before.operations if before else 0, key=made)
    last = bisect.bisect_right(seen.lifetimes, cut.operations, key=made)
    return any(
        seen.lifetimes[place].read > cut.operations
        for place in range(first, last)
        if place != cut.place
    )


def _is_read_later(cuts: Sequence[Separator]) -> bool:
    """Whether the first cut's tensor is read after the second cut."""
    return len(cuts) == 2 and cuts[0].read_until > cuts[1].operations
