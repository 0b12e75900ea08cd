"""Find how to train a network within a budget of memory, in the least time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpff.engine.recomputation import Recompute
from hpff.errors import UserError
from hpff.memory.planning import RECOMPUTED, largest_batch, peak_by_batch
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.memory.steps import Strategy, Workload
from hpff.presets import PresetName
from hpff.settings import BASELINE, LIGHT, LocalSettings

_COUNTS = (2, 4, 8, 16)
_WAYS: tuple[tuple[Recompute, ...], ...] = (("never",), ("once", "blocks"), ("repeatedly",))
NEAREST: tuple[PresetName, ...] = ("accurate", "balanced", "light")
"""Presets by their errors in benchmarks/study.md, the one nearest to backprop's first."""
_ROOM_TRIALS = 5
MOST_WORK = (
    4
    + _ROOM_TRIALS
    + (1 + len(NEAREST)) * (sum(map(len, _WAYS)) * (len(_COUNTS) + 1) + _ROOM_TRIALS)
)
"""How often ``observe`` is called at most."""


@dataclass(frozen=True)
class Choice:
    """One way to train, and what a step takes.

    Attributes:
        modules: K; 1 for backprop.
        peak: bytes at the worst moment.
        operations: arithmetic over backprop's: what its time would be if nothing else took any.
        fits: whether the peak is within the budget.
    """

    strategy: Strategy
    modules: int
    peak: int
    operations: float
    fits: bool

    @property
    def preset(self) -> str | None:
        """The preset that its settings are, but for recomputation."""
        return self.strategy.settings.preset_name()

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "label": str(self.strategy),
            "preset": self.preset,
            **self.strategy.to_plain(),
            "modules": self.modules,
            "balance": "memory",
            "peak_bytes": self.peak,
            "operations_over_bp": self.operations,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Fit:
    """What was tried for a workload, and what is best.

    Attributes:
        baselines: backprop, with checkpointing where the model allows it, and recomputed by blocks;
            where backprop does not fit and that does, also with more of the budget used.
        tried: local learning, in the order in which it was tried.
        largest_batch: of the leanest way that was tried; where nothing fits.
        standing: bytes of the model's parameters and buffers and the optimizer's state, which no
            way of training does without. If they do not fit, no local learning was tried.
    """

    workload: Workload
    batch: int
    budget: int
    baselines: tuple[Choice, ...]
    tried: tuple[Choice, ...]
    largest_batch: int | None
    standing: int = 0

    @property
    def best(self) -> Choice | None:
        """Of local learning what fits with the least arithmetic; None if nothing does."""
        return _quickest(choice for choice in self.tried if choice.fits)

    @property
    def nearest(self) -> Choice | None:
        """Backprop if a way to do it fits; or the preset that was nearest to it in the study."""
        fitting = [choice for choice in self.baselines if choice.fits]
        if not fitting:
            fitting = [choice for choice in self.tried if choice.fits and choice.preset]
        return _quickest(choice for choice in fitting if choice.preset == fitting[0].preset)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch},
            "budget_bytes": self.budget,
            "baselines": [choice.to_plain() for choice in self.baselines],
            "tried": [choice.to_plain() for choice in self.tried],
            "best": self.best.to_plain() if self.best else None,
            "nearest": self.nearest.to_plain() if self.nearest else None,
            "largest_batch": self.largest_batch,
            "standing_bytes": self.standing,
        }


def fit(
    workload: Workload,
    *,
    batch: int,
    budget: int,
    method: str = "dgl",
    light: bool = True,
    presets: Sequence[PresetName] = NEAREST,
    observe: Callable[[str], None] = lambda _: None,
) -> Fit:
    """How to train ``workload`` within a budget: nearest to backprop, and with least arithmetic.

    Where backprop does not fit, presets are tried in turns until one does; then HPFF. For each way
    of recomputation, from the one that computes least, the number of modules grows until the step
    fits; cuts share out the memory of activations. A way that computes more is tried only where the
    ones before do not fit. What is recomputed by blocks may use the budget to recompute less.

    Args:
        workload: its modules and balance are not used.
        batch: images in a batch, 2 or more.
        budget: bytes.
        method: of local learning, with k = 2 and n = 2.
        light: auxiliary networks of a stated narrow width on pooled maps (``hpff.settings.LIGHT``)
            in place of the method's published ones.
        presets: to try; they are left out where the model has no more blocks than a cascade has
            modules, or where it is cut at vectors, which their networks do not take.
        observe: called before each piece of work.

    Raises:
        UserError: the model is unknown, or does not run on such images.
    """
    if batch < 2:
        raise UserError(f"batch is {batch}; expected 2 or more, as BatchNorm needs")
    if method == BASELINE:
        raise UserError("method is 'bp'; expected one of local learning: backprop is tried anyway")
    search = _Search(workload, batch, budget, observe)
    baselines = search.baselines()
    if search.standing > budget:
        return Fit(workload, batch, budget, baselines, (), 0, search.standing)
    tried: list[Choice] = []
    for name in presets:
        if any(choice.fits for choice in (*baselines, *tried)):
            break
        tried += search.by_ways(Strategy(LocalSettings(preset=name)), is_offered=True)
    tried += search.by_ways(Strategy.of(method, 2, 2, **(LIGHT if light else {})))
    every = (*baselines, *tried)
    fits = any(choice.fits for choice in every)
    largest = None if fits else search.largest_batch(every)
    return Fit(workload, batch, budget, baselines, tuple(tried), largest, search.standing)


def _quickest(choices: Iterable[Choice]) -> Choice | None:
    return min(choices, key=lambda choice: choice.operations, default=None)


class _Search:
    """Rehearses ways to train one workload, each once."""

    def __init__(
        self, workload: Workload, batch: int, budget: int, observe: Callable[[str], None]
    ) -> None:
        self._stage = Stage(replace(workload, modules=None, balance="memory"))
        self._batch, self._budget, self._observe = batch, budget, observe
        self._base = 1
        self._blocks = 1
        self.standing = 0

    def baselines(self) -> tuple[Choice, ...]:
        """Backprop, with checkpointing, and recomputed by blocks."""
        self._observe("backprop")
        plain = Rehearsal(self._stage, Strategy.of())
        self._blocks = len(plain.step.partition)
        self.standing = sum(tensor.nbytes for _, tensor in plain.step.standing())
        _, self._base = plain.cost(self._batch)
        ways = [plain]
        self._observe("checkpointing")
        with contextlib.suppress(UserError):  # no chain of blocks
            ways.append(best_checkpointing(self._stage, self._batch)[0])
        self._observe("backprop by blocks")
        ways.append(Rehearsal(self._stage, RECOMPUTED))
        found = [self._choice(way.strategy, 1, *way.cost(self._batch)) for way in ways]
        if found[-1].fits and not found[0].fits:
            found += self._with_room(found[-1])
        return tuple(found)

    def by_ways(self, strategy: Strategy, *, is_offered: bool = False) -> list[Choice]:
        """With one way of recomputation after another, until the step fits.

        Args:
            strategy: without recomputation.
            is_offered: where it cannot be used it is left out, as nobody has asked for it.
        """
        tried: list[Choice] = []
        refused = (UserError,) if is_offered else ()
        for ways in _WAYS:
            for way in ways:
                with contextlib.suppress(*refused):
                    tried.extend(self._until_it_fits(strategy.with_settings(recompute=way)))
            if any(choice.fits for choice in tried):
                break
        by_blocks = [c for c in tried if c.fits and c.strategy.settings.recompute == "blocks"]
        return tried + [more for choice in by_blocks for more in self._with_room(choice)]

    def _with_room(self, choice: Choice) -> list[Choice]:
        """What fits recomputed by blocks, with as much of the budget used as spares arithmetic."""
        used, over = [(1.0, choice.peak)], None
        found: list[Choice] = []
        factor = 2.0
        for _ in range(_ROOM_TRIALS):
            strategy = choice.strategy.with_settings(recompute_budget=factor)
            tried = self._rehearsed(strategy, choice.modules)
            if tried.fits:
                found.append(tried)
                used.append((factor, tried.peak))
            else:
                over = factor, tried.peak
            factor = _next_factor(used, over, self._budget)
            if factor <= used[-1][0]:
                break
        best = _quickest(found)
        return [best] if best is not None and best.operations < choice.operations else []

    def _until_it_fits(self, strategy: Strategy) -> Iterator[Choice]:
        """More and more modules, until the step fits."""
        settings = strategy.settings
        longest = settings.cascade if isinstance(settings.cascade, int) else 1
        # A cascade of all modules, with no other loss, would be backprop.
        fewest = 2 if settings.independent else longest + 1
        for count in (*(c for c in _COUNTS if c < self._blocks), self._blocks):
            if count < fewest:
                continue
            choice = self._rehearsed(strategy, count)
            yield choice
            if choice.fits:
                break

    def _rehearsed(self, strategy: Strategy, modules: int) -> Choice:
        self._observe(f"{strategy}, {modules} modules")
        rehearsal = Rehearsal(self._stage.with_cut(modules, "memory"), strategy)
        return self._choice(strategy, modules, *rehearsal.cost(self._batch))

    def largest_batch(self, tried: Sequence[Choice]) -> int:
        """That of the leanest choice."""
        leanest = min(tried, key=lambda choice: choice.peak)
        self._observe("the largest batch")
        rehearsal = Rehearsal(self._stage.with_cut(leanest.modules, "memory"), leanest.strategy)
        curve = rehearsal.run(self._batch).curve()
        return largest_batch(peak_by_batch(rehearsal, self._batch, curve), self._budget)

    def _choice(self, strategy: Strategy, modules: int, peak: int, arithmetic: int) -> Choice:
        return Choice(strategy, modules, peak, arithmetic / self._base, peak <= self._budget)


def _next_factor(
    used: Sequence[tuple[float, int]], over: tuple[float, int] | None, budget: int
) -> float:
    """Which budget of recomputation to try next, to two digits; what fits already if none is left.

    Args:
        used: those that fit, and their peaks, in order.
        over: the least that does not, and its peak.
        budget: bytes.
    """
    low, low_peak = used[-1]
    high, high_peak = over or used[-2]
    if high_peak == low_peak:
        return low
    guess = low + (high - low) * (budget - low_peak) / (high_peak - low_peak)
    if over is not None:
        guess = min(guess, (low + 3 * high) / 4)
    return math.floor(100 * min(guess, 4 * low)) / 100
