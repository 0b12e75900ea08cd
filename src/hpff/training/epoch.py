"""One epoch of training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpff.engine.step import Losses
from hpff.errors import UserError
from hpff.methods import wrong_answers
from hpff.runs.observer import StepObserver
from hpff.training.setup import Parts, epoch_generator
from hpff.training.step_cost import PeakMemory, StepClock
from hpff.training.team import Alone

_CHECK_EVERY = {"cuda": 25}  # Steps between looks at the losses; a look makes CUDA wait.


@dataclass(frozen=True)
class EpochResult:
    """Means over an epoch's images; `error` in percent, of the batches as they were trained on.

    In a segmentation the error is the share of wrong pixels.

    `step_seconds` is the median of the `timed_steps` that nothing slowed, or of all if none is.
    """

    loss: float
    final_loss: float
    independent: list[float]
    cascade: list[float]
    error: float
    seconds: float
    step_seconds: float
    timed_steps: int
    images: int


def train_epoch(
    parts: Parts,
    epoch: int,
    rate: Callable[[float], float],
    memory: PeakMemory,
    observer: StepObserver,
) -> EpochResult:
    """Train one epoch.

    Args:
        parts: what is trained, and on what.
        epoch: from 1.
        rate: that of a step, by the share of the epoch that is done before it.
        memory: watches the steps.
        observer: hears of them.

    Raises:
        UserError: a loss or a weight is no finite number any more.
    """
    parts.learner.train()
    tally, clock = _Tally(parts.device, parts.dataset.ignore_index), StepClock(parts.device)
    slowed = StepClock(parts.device)
    memory.epoch_begins()
    every, steps = _CHECK_EVERY.get(parts.device.type, 1), len(parts.train)
    began = time.perf_counter()
    batches = parts.train.epoch(epoch_generator(parts.recipe.seed, epoch))
    for step, (images, targets) in enumerate(batches, 1):
        parts.optimizers.set_rate(rate((step - 1) / steps))
        parts.team.seed_step((epoch - 1) * steps + step)
        batch = parts.team.share(images, targets)
        with (slowed if memory.slows_next_step else clock).step(), memory.step(batch):
            losses = parts.step(*batch)
        tally.add(losses, batch[1], parts.team.weight)
        look = step % every == 0 or step == steps
        if look and (bad := tally.first_bad_step()):
            raise _diverged(f"the loss at step {bad} of epoch {epoch}", epoch, rate(0.0))
        observer.stepped(step, steps, tally.last_loss if look else None)
    parts.team.finish()
    tally.add_up(parts.team)
    if not _all_finite(parts):
        raise _diverged(f"a weight after epoch {epoch}", epoch, rate(0.0))
    seconds = time.perf_counter() - began
    typical = clock if clock.timed else slowed
    return tally.result(seconds, step_seconds=typical.median(), timed_steps=clock.timed)


class _Tally:
    """Sums over an epoch, kept on the device; looked at only when asked."""

    def __init__(self, device: torch.device, ignore_index: int) -> None:
        self._unseen: list[torch.Tensor] = []
        self._sum: torch.Tensor | None = None
        self._ignore_index = ignore_index
        self._wrong = torch.zeros((), dtype=torch.int64, device=device)
        self._answers = torch.zeros((), dtype=torch.int64, device=device)
        self._images = self._steps = self._seen = 0
        self._levels = (0, 0)
        self.last_loss = math.nan

    def add(self, losses: Losses, targets: torch.Tensor, weight: float = 1.0) -> None:
        """Take in a step, which has a weight among those of other processes."""
        levels = (*losses.independent, *losses.cascade)
        row = torch.stack([loss.detach().float() for loss in (losses.total, losses.final, *levels)])
        self._levels = (len(losses.independent), len(losses.cascade))
        self._unseen.append(row)
        weighted = row.double() * weight
        self._sum = weighted if self._sum is None else self._sum + weighted
        if losses.logits.numel():
            wrong, answers = wrong_answers(losses.logits, targets, self._ignore_index)
            self._wrong += wrong
            self._answers += answers
            self._images += len(targets)
        self._steps += 1

    def first_bad_step(self) -> int | None:
        """The first step since the last look with a loss that is not finite."""
        rows = torch.stack(self._unseen).cpu()
        bad = (~rows.isfinite().all(1)).nonzero().flatten().tolist()
        first = self._seen + 1 + bad[0] if bad else None
        self._seen += len(self._unseen)
        self._unseen.clear()
        self.last_loss = rows[-1, 0].item()
        return first

    def add_up(self, team: Alone) -> None:
        """Take in what other processes saw of the epoch."""
        assert self._sum is not None
        images = torch.full_like(self._wrong, self._images)
        self._sum, counts = team.add_up(
            self._sum, torch.stack((self._wrong, self._answers, images))
        )
        self._wrong, self._answers, self._images = counts[0], counts[1], int(counts[2])

    def result(self, seconds: float, step_seconds: float, timed_steps: int) -> EpochResult:
        """The epoch's means."""
        assert self._sum is not None
        loss, final, *levels = (self._sum / self._steps).tolist()
        independent = levels[: self._levels[0]]
        return EpochResult(
            loss=loss,
            final_loss=final,
            independent=independent,
            cascade=levels[len(independent) :],
            error=100 * self._wrong.item() / max(1, self._answers.item()),
            seconds=seconds,
            step_seconds=step_seconds,
            timed_steps=timed_steps,
            images=self._images,
        )


def _all_finite(parts: Parts) -> bool:
    state = [tensor.detach() for tensor in parts.team.tensors()]
    finite = [tensor.isfinite().all() for tensor in state if tensor.is_floating_point()]
    return bool(torch.stack(finite).all())


def _diverged(what: str, epoch: int, rate: float) -> UserError:
    kept = f"the checkpoint of epoch {epoch - 1} is kept" if epoch > 1 else "nothing was saved yet"
    return UserError(
        f"{what} is not a finite number (learning rate {rate:.3g}); {kept}; try a smaller "
        "optimizer.lr or a longer schedule.warmup_epochs, in another folder"
    )
