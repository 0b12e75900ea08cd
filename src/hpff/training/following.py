"""What the processes of a run do beside the first, which writes its files and shows how it goes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from hpff.parallel.states import share_from_first
from hpff.recipes.recipe import Recipe
from hpff.runs.checkpoint import Checkpoint
from hpff.runs.observer import StepObserver
from hpff.training.epoch import train_epoch
from hpff.training.evaluation import Score, evaluate
from hpff.training.rate import rate
from hpff.training.setup import Parts, assemble
from hpff.training.step_cost import PeakMemory

Metrics = dict[str, Any]


def is_follower(recipe: Recipe) -> bool:
    """Whether this is one of a run's processes, and not the first."""
    return recipe.parallel != "none" and dist.is_initialized() and dist.get_rank() > 0


def follow(recipe: Recipe) -> Metrics:
    """Take part in a run of whose files the first process takes care; nothing to report.

    Raises:
        SystemExit: the first process cannot begin, and has said why.
    """
    begun = share_from_first(None)
    if begun["refused"]:
        raise SystemExit(2)
    if begun["finished"]:
        return {}
    parts = assemble(recipe)
    done = 0
    if begun["saved"]:
        done = begun["saved"]["epoch"]
        parts.team.load(begun["saved"]["learner"], begun["saved"]["optimizers"])
    memory = PeakMemory(parts)
    for epoch in range(done + 1, recipe.epochs + 1):
        one_epoch(parts, epoch, memory, _Nobody())
        parts.team.states()
    parts.team.states()
    parts.team.close()
    return {}


class _Followers:
    """The other processes of a run, as its first one speaks to them.

    Args:
        there: whether there are any.
    """

    def __init__(self, *, there: bool) -> None:
        self._there = there
        self._told = not there

    def begin(self, saved: Checkpoint | None) -> None:
        """The run begins, or goes on from a checkpoint."""
        self._tell(saved=vars(saved) if saved else None)

    def nothing_to_do(self) -> None:
        """The run was finished before."""
        self._tell(finished=True)

    def refuse(self) -> None:
        """The run cannot begin, unless they were told otherwise."""
        if not self._told:
            self._tell(refused=True)

    def _tell(self, **what: Any) -> None:
        self._told = True
        if self._there:
            share_from_first({"refused": False, "finished": False, "saved": None, **what})


@contextmanager
def followed(recipe: Recipe) -> Iterator[_Followers]:
    """Whatever ends the block before the other processes were told of a beginning ends them."""
    there = recipe.parallel != "none" and dist.is_initialized()
    followers = _Followers(there=there)
    try:
        yield followers
    finally:
        followers.refuse()


class _Nobody:
    """Hears of steps and does nothing."""

    def stepped(self, step: int, steps: int, loss: float | None) -> None:
        pass


def one_epoch(parts: Parts, epoch: int, memory: PeakMemory, observer: StepObserver) -> Metrics:
    """Train and evaluate one epoch; its metrics, the same on every process."""
    recipe = parts.recipe
    rate_at = functools.partial(rate, epoch, recipe.epochs, recipe.optimizer, recipe.schedule)
    result = train_epoch(parts, epoch, rate_at, memory, observer)
    peak = parts.team.largest(memory.bytes())
    last = epoch == recipe.epochs
    score = evaluate(parts) if last or epoch % recipe.evaluate_every == 0 else None
    return {
        "epoch": epoch,
        "rate": rate_at(),
        "loss": result.loss,
        "final_loss": result.final_loss,
        "independent_losses": result.independent,
        "cascade_losses": result.cascade,
        "train_error_percent": result.error,
        "test_loss": score.loss if score else None,
        "test_error_percent": score.error if score else None,
        "test_top5_error_percent": score.top5_error if score else None,
        **_of_the_task(parts, score),
        "broken_images": len(parts.broken),
        "images_per_second": result.images / result.seconds,
        "step_seconds": result.step_seconds,
        "timed_steps": result.timed_steps,
        "seconds": result.seconds,
        "peak_memory_bytes": peak,
        "peak_memory_source": memory.source,
    }


def _of_the_task(parts: Parts, score: Score | None) -> Metrics:
    """What is measured in a segmentation alone."""
    if parts.dataset.task == "classification":
        return {}
    return {"test_miou_percent": score.miou if score else None}
