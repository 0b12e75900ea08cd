"""What ranks compare of their learners."""

from __future__ import annotations

from typing import Any

import data_parallel_cases
import parallel_cases as cases
import pytest
import torch
from parallel_cases import Case
from ranks import run_ranks
from torch import nn

from hpff.methods import Method
from hpff.methods.dgl import DGL
from hpff.methods.man import MAN
from hpff.methods.predsim import PredSim
from hpff.parallel.agreement import described


class Own(Method):
    """A user's method, with attributes of any kind."""

    def __init__(self, width: int = 4, names: tuple[str, ...] = ("a",)) -> None:
        self.width = width
        self.names = names
        self.network = nn.Linear(2, 2)
        self.cache: Any = object()
        self.seen = {"width": width}

    def auxiliary(self, context: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(context.num_classes))


def text_of(method: Any) -> str:
    return described(cases.learner_of(Case({"method": method})))


@pytest.mark.parametrize("make", [PredSim, DGL, lambda: MAN(base=PredSim()), Own])
def test_methods_made_twice_are_the_same(make: Any) -> None:
    first, second = make(), make()
    assert text_of(first) == text_of(second)
    assert " at 0x" not in text_of(first)


def test_methods_that_are_set_otherwise_differ() -> None:
    methods = [PredSim(), PredSim(beta=0.5), MAN(base=PredSim()), MAN(base=PredSim(beta=0.5))]
    methods += [Own(), Own(width=5), Own(names=("b",))]
    assert len({text_of(method) for method in methods}) == len(methods)


def test_ranks_that_make_objects_in_another_order_agree() -> None:
    assert run_ranks(2, data_parallel_cases.with_a_method_object) == [True, True]


def test_weights_are_not_compared() -> None:
    learner = cases.learner_of(Case())
    before = described(learner)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.zero_()
    assert described(learner) == before
