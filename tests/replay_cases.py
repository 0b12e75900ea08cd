"""Ranks that wait for none: what each does while another is slow."""

from __future__ import annotations

import time
from typing import Any

import torch
from parallel_cases import Case, batches, by_one, learner_of, optimizers_of
from torch import Tensor

from hpff.parallel import ReplayParallel, step_seed

CASE = Case({"cascade": 1}, steps=6)


def replayed(slow: int, steps: list[int], buffer: int) -> dict[str, Any]:
    """A training in which one rank takes its time, and how many steps each takes."""
    ranks = ReplayParallel(learner_of(CASE), buffer=buffer, timeout=30)
    optimizers = optimizers_of(CASE, ranks.module_parameters)

    def done(j: int) -> None:
        optimizers[j].step()
        optimizers[j].zero_grad()

    losses = []
    drawn = batches(CASE)
    for step in range(steps[ranks.rank]):
        if ranks.rank == slow:
            time.sleep(0.3)
        batch = (None, None) if ranks.rank else drawn[step]
        found = ranks.backward(*batch, on_module_done=done)
        losses.append(0.0 if found.final is None else found.final.item())
    state = ranks.state_dict()
    ranks.close()
    return {
        "state": state,
        "losses": losses,
        "lags": dict(ranks.lags),
        "replays": ranks.replays,
        "modules": ranks.last,
    }


def first_modules_by_one(modules: int) -> dict[str, Tensor]:
    """The entries of the first blocks after a training in one process."""
    state, _ = by_one(CASE)
    kept = ("model.stem", "model.offset", *(f"model.blocks.{i}." for i in range(modules)))
    auxiliary = tuple(f"independent_auxiliary.{j}." for j in range(1, modules + 1))
    return {name: value for name, value in state.items() if name.startswith((*kept, *auxiliary))}


def done_early() -> int:
    """The last rank has taken its steps while the first needs longer than the timeout to end."""
    ranks = ReplayParallel(learner_of(CASE), buffer=2, timeout=4)
    for step, batch in enumerate(batches(CASE)[:3]):
        if ranks.rank == 0 and step:
            time.sleep(3)
        given = (None, None) if ranks.rank else batch
        ranks.backward(*given, on_module_done=lambda _: None)
    ranks.close()
    return ranks.steps


def crossed() -> None:
    ReplayParallel(learner_of(Case({"cascade": 2})), buffer=2, timeout=5)


def asked_to_evaluate() -> None:
    ReplayParallel(learner_of(CASE), buffer=2, timeout=5).forward(None)


def of_a_dead_rank() -> None:
    """The first rank goes after one step; the other replays until it hears of it."""
    import os

    ranks = ReplayParallel(learner_of(CASE), buffer=2, timeout=30)
    if ranks.rank == 0:
        ranks.backward(*batches(CASE)[0], on_module_done=lambda _: None)
        time.sleep(1)
        os._exit(1)
    torch.manual_seed(step_seed(0, 1))
    for _ in range(10_000):
        ranks.backward(None, None, on_module_done=lambda _: None)
