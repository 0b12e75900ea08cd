"""An epoch of small trainings by the teams of a run, with batches that shares do not divide."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from data_parallel_cases import data_case
from torch import Tensor

from hpff.learner import LocalLearner
from hpff.recipes.recipe import OptimizerRecipe
from hpff.training.epoch import train_epoch
from hpff.training.optimizer import ModuleOptimizers
from hpff.training.team import Alone, ByData, ByModules

Batches = list[tuple[Tensor, Tensor]]


def trained(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, on the first process, and means after an epoch whose batches have 7 and 5 images."""
    learner, drawn = data_case("dgl", 2)
    given = [(images[:n], targets[:n]) for (images, targets), n in zip(drawn, (7, 5), strict=False)]
    optimizers = ModuleOptimizers(learner.module_parameters, OptimizerRecipe(lr=0.1))
    team = _team(kind, learner, optimizers, given)
    parts: Any = SimpleNamespace(
        learner=learner,
        device=torch.device("cpu"),
        dataset=SimpleNamespace(ignore_index=-100),
        train=_Given(given),
        recipe=SimpleNamespace(seed=0),
        optimizers=optimizers,
        team=team,
        step=team.step,
    )
    unwatched: Any = SimpleNamespace(
        epoch_begins=lambda: None, slows_next_step=False, step=lambda _: nullcontext()
    )
    unseen: Any = SimpleNamespace(stepped=lambda *_: None)
    result = train_epoch(parts, 1, lambda _: 0.1, unwatched, unseen)
    weights, _ = team.states()
    team.close()
    kept = ("loss", "final_loss", "independent", "cascade", "error", "images")
    return weights, {key: getattr(result, key) for key in kept}


class _Given:
    def __init__(self, given: Batches) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def epoch(self, generator: torch.Generator) -> Batches:
        return self._given


def _team(kind: str, learner: LocalLearner, optimizers: ModuleOptimizers, given: Batches) -> Alone:
    if kind == "data":
        return ByData(learner, optimizers, 0, synchronized=False)
    if kind == "grid":
        cpu = torch.device("cpu")
        return ByModules(learner, optimizers, 0, given[0], cpu, 30.0, replicas=2)
    return Alone(learner, optimizers, 0)
