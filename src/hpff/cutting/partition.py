"""Into which K local modules a model is cut."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple, overload

import torch
from torch import nn

from hpff.cutting import balance as balancing
from hpff.cutting.balance import Balance
from hpff.cutting.published_cuts import published_cuts
from hpff.cutting.trace import Separator, Trace, trace
from hpff.cutting.units import END, Unit, preferred_name, units_of
from hpff.errors import UserError, did_you_mean
from hpff.features import FeatureKind, Vectors
from hpff.torch_support.model_io import Path


class OperationKey(NamedTuple):
    """An operation inside a local module: its name, and which of that name it is, from 1."""

    name: str
    number: int


class Save(NamedTuple):
    """A tensor that a local module saves for its backward.

    Attributes:
        size: in bytes, on the example.
        maker: the operation that made it; None where it was not made in the local module.
        made_of: the places of the tensors among the module's own that lead to it past no other.
        work: that leads from these to it.
    """

    size: int
    maker: OperationKey | None = None
    made_of: tuple[int, ...] = ()
    work: int = 0


@dataclass(frozen=True)
class InnerPoint:
    """An operation after which one tensor is all that the rest of a local module needs.

    Attributes:
        leaf: which of its outputs the tensor is.
        output_bytes: of the tensor, on the example.
        saved: bytes that the local module saves for its backward up to here, on the example.
        forks: whether several operations read it, so that its gradient is a sum.
        spared: work that no backward needs again if the tensor is kept.
        work: of the local module's forward up to here.
    """

    operation: OperationKey
    leaf: int
    output_bytes: int
    saved: int
    forks: bool = False
    spared: int = 0
    work: int = 0


@dataclass(frozen=True)
class LocalModule:
    """One local module.

    Attributes:
        index: j, from 1.
        cut: name of the submodule whose output ends it; None for the last module.
        submodules: the blocks that it runs, in order.
        block_shapes: of the output of each, the batch left out.
        parameter_names: of the backbone's parameters that it uses.
        parameters: how many numbers these are.
        output_shape: of its output on the example, the batch left out. Where the submodule returns
            several tensors, the output is the one that carries everything on.
        dtype, device: of its output.
        features: what its output is: a map, tokens, a sequence or a vector.
        path: where in what the submodule returns the output lies; () where it returns a tensor.
        saved: bytes that its forward saves for its backward, on the example.
        saves: the tensors that these are, in order.
        work: of its forward, on the example: arithmetic, and bytes written.
        output_bytes: of its output, on the example.
        maker: the operation that makes its output; None for the last module.
        forks: whether several operations read its output.
        patches: n in force at its output (n×n patches, or n pieces of a sequence); 1 where PFF is
            off or does not fit.
        overwritten: whether the next module modifies the output in place.
        read_later: whether the output's content is read after the next module, which autograd
            does not see.
        shares: whether something else that it computes is read after it, such as a mask.
        inner: where its forward could be taken up again, in order.
        passing: submodules inside whose output is not read after the module, in order, and where
            in what they return it lies.
    """

    index: int
    cut: str | None
    submodules: tuple[str, ...]
    block_shapes: tuple[tuple[int, ...], ...]
    parameter_names: tuple[str, ...]
    parameters: int
    output_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    features: FeatureKind = field(default_factory=Vectors)
    path: Path = ()
    saved: int = 0
    output_bytes: int = 0
    maker: OperationKey | None = None
    forks: bool = False
    patches: int = 1
    overwritten: bool = False
    read_later: bool = False
    shares: bool = False
    saves: tuple[Save, ...] = ()
    work: int = 0
    inner: tuple[InnerPoint, ...] = ()
    passing: tuple[tuple[str, Path], ...] = ()

    @property
    def end(self) -> str:
        """The name of the submodule whose output ends it; not for the last module."""
        assert self.cut is not None, "the last module ends with the model"
        return self.cut


@dataclass(frozen=True)
class Partition(Sequence[LocalModule]):
    """The K local modules of a model, in order."""

    modules: tuple[LocalModule, ...]

    @overload
    def __getitem__(self, index: int) -> LocalModule: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LocalModule, ...]: ...
    def __getitem__(self, index: int | slice) -> LocalModule | tuple[LocalModule, ...]:
        return self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[LocalModule]:
        return iter(self.modules)

    def with_features(self, features: Sequence[FeatureKind], patches: Sequence[int]) -> Partition:
        """The same cut with the features and n in force at each module's output but the last."""
        described = tuple(
            replace(m, features=kind, patches=n)
            for m, kind, n in zip(self.modules, features, patches, strict=False)
        )
        return Partition((*described, self.modules[-1]))

    def __str__(self) -> str:
        rows = [("module", "ends after", "parameters", "output", "features", "patches")]
        for m in self.modules:
            shape = "×".join(map(str, m.output_shape))
            kind, n = str(m.features) if m.cut else "", str(m.patches)
            cut = f"{n}×{n}" if m.features.kind in ("map", "tokens") else n
            name = m.cut or "the head"
            rows.append((str(m.index), name, f"{m.parameters:,}", shape, kind, cut))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


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
