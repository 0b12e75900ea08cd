"""Find how to train a network within a budget of memory, in the least time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpff.engine.recomputation import Recompute
from hpff.errors import UserError
from hpff.memory.planning import largest_batch, peak_by_batch
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.memory.steps import Strategy, Workload
from hpff.settings import LIGHT

_COUNTS = (2, 4, 8, 16)
_WAYS: tuple[tuple[Recompute, ...], ...] = (("never",), ("once", "blocks"), ("repeatedly",))
MOST_WORK = 3 + sum(map(len, _WAYS)) * (len(_COUNTS) + 1)
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

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "label": str(self.strategy),
            **self.strategy.to_plain(),
            "modules": self.modules,
            "peak_bytes": self.peak,
            "operations_over_bp": self.operations,
            "fits": self.fits,
        }


@dataclass(frozen=True)
class Fit:
    """What was tried for a workload, and what is best.

    Attributes:
        baselines: backprop, and backprop with checkpointing where the model allows it.
        tried: local learning, in the order in which it was tried.
        largest_batch: of the leanest way that was tried; where nothing fits.
    """

    workload: Workload
    batch: int
    budget: int
    baselines: tuple[Choice, ...]
    tried: tuple[Choice, ...]
    largest_batch: int | None

    @property
    def best(self) -> Choice | None:
        """Of local learning what fits with the least arithmetic; None if nothing does."""
        fitting = [choice for choice in self.tried if choice.fits]
        return min(fitting, key=lambda choice: choice.operations, default=None)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "workload": {**self.workload.to_plain(), "batch": self.batch},
            "budget_bytes": self.budget,
            "baselines": [choice.to_plain() for choice in self.baselines],
            "tried": [choice.to_plain() for choice in self.tried],
            "best": self.best.to_plain() if self.best else None,
            "largest_batch": self.largest_batch,
        }


def fit(
    workload: Workload,
    *,
    batch: int,
    budget: int,
    method: str = "dgl",
    light: bool = True,
    observe: Callable[[str], None] = lambda _: None,
) -> Fit:
    """The way to train ``workload`` by HPFF that fits a budget with the least arithmetic.

    For each way of recomputation, from the one that computes least, the number of modules grows
    until the step fits; cuts share out the memory of activations. A way that computes more is
    tried only where the ones before do not fit.

    Args:
        workload: its modules and balance are not used.
        batch: images in a batch, 2 or more.
        budget: bytes.
        method: of local learning, with k = 2 and n = 2.
        light: auxiliary networks of a stated narrow width on pooled maps (``hpff.settings.LIGHT``)
            in place of the method's published ones.
        observe: called before each piece of work.

    Raises:
        UserError: the model is unknown, or does not run on such images.
    """
    if batch < 2:
        raise UserError(f"batch is {batch}; expected 2 or more, as BatchNorm needs")
    search = _Search(workload, batch, budget, observe)
    baselines = search.baselines()
    settings = dict(LIGHT) if light else {}
    plain = Strategy.of(method, 2, 2, **settings)
    tried: list[Choice] = []
    for ways in _WAYS:
        for way in ways:
            tried += search.until_it_fits(plain.with_settings(recompute=way))
        if any(choice.fits for choice in tried):
            break
    fits = any(choice.fits for choice in tried)
    largest = None if fits else search.largest_batch(tried)
    return Fit(workload, batch, budget, baselines, tuple(tried), largest)


class _Search:
    """Rehearses ways to train one workload, each once."""

    def __init__(
        self, workload: Workload, batch: int, budget: int, observe: Callable[[str], None]
    ) -> None:
        self._stage = Stage(replace(workload, modules=None, balance="memory"))
        self._batch, self._budget, self._observe = batch, budget, observe
        self._base = 1
        self._blocks = 1

    def baselines(self) -> tuple[Choice, ...]:
        """Backprop, and with checkpointing."""
        self._observe("backprop")
        rehearsal = Rehearsal(self._stage, Strategy.of())
        self._blocks = len(rehearsal.step.partition)
        peak, self._base = rehearsal.cost(self._batch)
        backprop = self._choice(Strategy.of(), 1, peak, self._base)
        self._observe("checkpointing")
        try:
            rehearsal, _ = best_checkpointing(self._stage, self._batch)
        except UserError:  # no chain of blocks
            return (backprop,)
        return backprop, self._choice(rehearsal.strategy, 1, *rehearsal.cost(self._batch))

    def until_it_fits(self, strategy: Strategy) -> list[Choice]:
        """More and more modules, until the step fits."""
        tried = []
        for count in (*(c for c in _COUNTS if c < self._blocks), self._blocks):
            if count < 2:
                continue
            self._observe(f"{strategy}, {count} modules")
            rehearsal = Rehearsal(self._stage.with_cut(count, "memory"), strategy)
            tried.append(self._choice(strategy, count, *rehearsal.cost(self._batch)))
            if tried[-1].fits:
                break
        return tried

    def largest_batch(self, tried: Sequence[Choice]) -> int:
        """That of the leanest choice."""
        leanest = min(tried, key=lambda choice: choice.peak)
        self._observe("the largest batch")
        rehearsal = Rehearsal(self._stage.with_cut(leanest.modules, "memory"), leanest.strategy)
        curve = rehearsal.run(self._batch).curve()
        return largest_batch(peak_by_batch(rehearsal, self._batch, curve), self._budget)

    def _choice(self, strategy: Strategy, modules: int, peak: int, arithmetic: int) -> Choice:
        return Choice(strategy, modules, peak, arithmetic / self._base, peak <= self._budget)
