"""The learning rate of each epoch."""

from __future__ import annotations

import math

from hpff.recipes.recipe import OptimizerRecipe, ScheduleRecipe


def rate(
    epoch: int,
    epochs: int,
    optimizer: OptimizerRecipe,
    schedule: ScheduleRecipe,
    share: float = 0.0,
) -> float:
    """The rate of an epoch (1-based), or of a step in it, before which a share of it was done.

    Cosine: c(e) = lr (1 + cos(pi e / epochs)) / 2, which ends at 0, as published for CIFAR-10, SVHN
    and STL-10; "cosine-from-full" is c(e - 1), which begins at lr, as published for ImageNet. In
    the first W warm-up epochs c counts (e - 1) / W and `warmup_lr` counts the rest, as in the
    published recipe (W = 10).

    "poly" alone goes with the steps: (lr - last_lr) (1 - t)^power + last_lr, t the part of all
    steps that is done, as published for Cityscapes.
    """
    full = optimizer.lr
    if schedule.name == "poly":
        left = 1 - (epoch - 1 + share) / epochs
        full = (full - schedule.last_lr) * left**schedule.power + schedule.last_lr
    elif schedule.name != "constant":
        passed = epoch - (schedule.name == "cosine-from-full")
        full *= 0.5 * (1 + math.cos(math.pi * passed / epochs))
    if epoch > schedule.warmup_epochs:
        return full
    share = (epoch - 1) / schedule.warmup_epochs
    return full * share + schedule.warmup_lr * (1 - share)
