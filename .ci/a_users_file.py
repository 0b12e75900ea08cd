"""A user's program, for a strict type checker: what is right passes, and what is wrong is seen.

An `ignore` that nothing needs is an error of its own, so each of them is a mistake that is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import hpff
from hpff import LocalLearner, LocalSettings, Losses, check_gradients, memory, models
from hpff.methods import AuxiliaryContext, Method, register

if TYPE_CHECKING:
    from typing_extensions import assert_type


@register("linear")
class Linear(Method):
    """A method of one's own."""

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(context.features[0], context.num_classes),
        )


def train(images: Tensor, targets: Tensor) -> Tensor:
    """The five lines."""
    model = models.create("resnet20", num_classes=10)
    learner = LocalLearner(
        model, modules=4, example=images[:2], num_classes=10, method=Linear(), cascade=2
    )
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    losses = learner.backward(images, targets)
    optimizer.step()
    if TYPE_CHECKING:
        assert_type(model, nn.Module)
        assert_type(losses, Losses)
        assert_type(losses.final, Tensor)
        assert_type(losses.cascade, tuple[Tensor, ...])
        assert_type(LocalSettings.from_label("dgl+hpff", modules=4), LocalSettings)
        assert_type(learner.partition[0].cut, str | None)
    found = check_gradients(learner, images, targets)
    print(", ".join(found), len(learner.partition))
    return losses.total


def plan() -> list[str]:
    """What a step takes."""
    made = memory.plan(hpff.memory.Workload(model="resnet20", modules=4), batch=8)
    return [f"{row.strategy}: {row.peak}" for row in made.rows]


def mistakes(model: nn.Module, images: Tensor) -> None:
    """Each line is one."""
    LocalLearner(model, modules=4, example=images, num_classes="ten")  # type: ignore[arg-type]
    LocalLearner(model, modules=4, example=images, clases=10)  # type: ignore[call-arg]
    LocalSettings(recompute="sometimes")  # type: ignore[arg-type]
    hpff.LocalLerner  # type: ignore[attr-defined]  # noqa: B018
