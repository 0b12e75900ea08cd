"""What is counted as a module's time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parallel_cases import Case, batches, learner_of
from torch import nn

from hpff.parallel import module_seconds, timing


def test_an_optimizers_step_is_part_of_its_modules_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on in steps alone; the learner stays as it is."""
    learner = learner_of(Case({"cascade": 2}))
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(torch.optim.SGD):
        def __init__(self, parameters: list[nn.Parameter]) -> None:
            super().__init__(parameters, lr=1.0)
            self.count = len(parameters)

        def step(self, closure: Any = None) -> Any:
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            assert all(gradient is not None for gradient in gradients)
            now[0] += self.count
            return super().step(closure)

    before = {name: value.clone() for name, value in learner.state_dict().items()}
    found = module_seconds(learner, *batches(Case())[0], optimizer=Slow)
    assert found == [len(parameters) for parameters in learner.module_parameters]
    assert all(torch.equal(before[name], v) for name, v in learner.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.parameters())
    assert module_seconds(learner, *batches(Case())[0]) == [0.0] * len(learner.partition)
