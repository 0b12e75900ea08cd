"""Learners that take no time, and what is on them."""

from __future__ import annotations

import torch
from naive.rule import random_chain
from torch import nn

from hpff import LocalLearner, models

IMAGES = torch.randn(
    6, 3, 16, 16, generator=torch.Generator(torch.get_default_device()).manual_seed(0)
)
TARGETS = torch.tensor([0, 1, 2, 3, 4, 5])


def small(**kwargs: object) -> LocalLearner:
    model = models.create("resnet20", width=4)
    settings = {"modules": 4, "example": IMAGES[:2], "num_classes": 10} | kwargs
    return LocalLearner(model, **settings)


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def random_learner(**kwargs: object) -> LocalLearner:
    model = random_chain(0, 4, norm=True, side=16)
    settings = {"modules": 4, "example": IMAGES[:2].double(), "num_classes": 4} | kwargs
    return LocalLearner(model, **settings)
