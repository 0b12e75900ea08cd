"""Layer-wise linear probes: how well a linear classifier does on each module's frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hpff.analysis.networks import Loader, Network, pooled
from hpff.errors import UserError

MOST_NUMBERS = 1024
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
HELD_OUT = 0.2


@dataclass(frozen=True)
class Probe:
    """A linear classifier on the features of one module.

    Attributes:
        module: j, from 1.
        name: of the submodule whose output the features are.
        numbers: how many the classifier sees of a sample.
        ridge: its penalty on the weights, in units of the number of samples.
        train_error: percent of the samples that it was fitted on.
        error: percent of others.
    """

    module: int
    name: str
    numbers: int
    ridge: float
    train_error: float
    error: float

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return dict(vars(self))


def probes(
    network: Network,
    train: Loader,
    test: Loader,
    *,
    num_classes: int,
    ridge: float | None = None,
    samples: int | None = None,
    test_samples: int | None = None,
) -> tuple[Probe, ...]:
    """The error of a linear classifier on each module's features, fitted in closed form.

    Maps are averaged into at most 4×4 cells, so that a classifier sees about a thousand numbers
    (:func:`~hpff.analysis.networks.pooled`). What is kept of the samples is the sums that
    :class:`RidgeClassifier` needs.

    Args:
        network: whose modules; it is not trained.
        train: what the classifiers are fitted on.
        test: what their errors are counted on.
        num_classes: of the targets.
        ridge: of :class:`RidgeClassifier`.
        samples: how many to fit on at most; None for all.
        test_samples: how many to count errors on at most; None for all.

    Raises:
        UserError: targets are no class indices below ``num_classes``.
    """
    classifiers = [RidgeClassifier(num_classes, ridge) for _ in network.places]
    for features, targets in network.over(train, samples):
        for classifier, each in zip(classifiers, features, strict=True):
            classifier.update(pooled(each, MOST_NUMBERS), targets)
    for classifier in classifiers:
        classifier.fit()
    trained = _errors(network, classifiers, train, samples)
    tested = _errors(network, classifiers, test, test_samples)
    return tuple(
        Probe(place.module, place.name, classifier.numbers, classifier.ridge or 0.0, *errors)
        for place, classifier, *errors in zip(
            network.places, classifiers, trained, tested, strict=True
        )
    )


class RidgeClassifier:
    """Least squares from standardized features to one-hot targets, with a ridge and an intercept.

    With a ridge given, the same answers as scikit-learn's ``StandardScaler`` before
    ``RidgeClassifier(alpha=ridge·n)``. No sample is kept, only sums over them.

    Args:
        num_classes: of the targets.
        ridge: penalty on the weights, in units of the number of samples; None: the one of
            ``RIDGES`` that has the smallest squared error on a random fifth of the samples when it
            is fitted on the others. It is then fitted on all.
    """

    def __init__(self, num_classes: int, ridge: float | None = None) -> None:
        self._classes = num_classes
        self.ridge = ridge
        self._random = torch.Generator().manual_seed(0)
        self._kept: _Sums | None = None
        self._held_out: _Sums | None = None
        self._weights = self._intercept = torch.empty(0)

    @property
    def numbers(self) -> int:
        """How many numbers of a sample it sees."""
        return 0 if self._kept is None else len(self._kept.x)

    def update(self, rows: Tensor, targets: Tensor) -> None:
        """Take in samples.

        Args:
            rows: (n, D).
            targets: (n,), class indices.
        """
        check_targets(targets, self._classes)
        x = rows.detach().double()
        y = one_hot(targets, self._classes).double()
        chosen = torch.rand(len(x), generator=self._random) < HELD_OUT
        out = chosen.to(x.device)
        self._kept = _Sums.of(x[~out], y[~out]).plus(self._kept)
        self._held_out = _Sums.of(x[out], y[out]).plus(self._held_out)

    def fit(self) -> None:
        """Solve for the weights."""
        assert self._kept is not None
        if self.ridge is None:
            self.ridge = self._best()
        self._weights, self._intercept = self._kept.plus(self._held_out).solved(self.ridge)

    def answers(self, rows: Tensor) -> Tensor:
        """The likeliest class of each of the rows (n, D), (n,)."""
        return (rows.detach().double() @ self._weights + self._intercept).argmax(1)

    def _best(self) -> float:
        kept, held_out = self._kept, self._held_out
        assert kept is not None
        assert held_out is not None
        if not (kept.count and held_out.count):
            return RIDGES[-1]
        errors = [held_out.squared_error(*kept.solved(ridge)) for ridge in RIDGES]
        return RIDGES[errors.index(min(errors))]


@dataclass(frozen=True)
class _Sums:
    """What least squares needs of samples: their number and sums of products."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> _Sums:
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def plus(self, other: _Sums | None) -> _Sums:
        if other is None:
            return self
        return _Sums(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
        )

    def solved(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weights (D, classes) and intercept (classes,) for features as they come."""
        mean, wanted = self.x / self.count, self.y / self.count
        covariance = self.xx / self.count - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        known = deviation > 1e-7 * deviation.max().clamp(min=1e-30)
        scale = torch.where(known, deviation, torch.ones_like(deviation))
        system = covariance / scale[:, None] / scale
        system = system + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        right = (self.xy / self.count - mean[:, None] * wanted) / scale[:, None]
        weights = torch.linalg.solve(system, right) / scale[:, None]
        return weights, wanted - mean @ weights

    def squared_error(self, weights: Tensor, intercept: Tensor) -> float:
        """Of these weights on these samples, whose targets are one-hot; the sum."""
        fitted = (weights * (self.xx @ weights)).sum() + self.count * intercept.square().sum()
        fitted = fitted + 2 * (self.x @ weights) @ intercept
        crossed = (weights * self.xy).sum() + intercept @ self.y
        return float(self.count + fitted - 2 * crossed)


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Raise UserError where targets are not class indices (B,) below ``num_classes``."""
    if targets.ndim != 1 or targets.is_floating_point():
        kind = str(targets.dtype).removeprefix("torch.")
        raise UserError(
            f"targets are {kind} of shape {tuple(targets.shape)}; expected class indices (B,)"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < num_classes:
        raise UserError(f"targets go up to {int(targets.max())}; expected 0 to {num_classes - 1}")


def _errors(
    network: Network, classifiers: Sequence[RidgeClassifier], loader: Loader, samples: int | None
) -> list[float]:
    wrong, count = [0] * len(classifiers), 0
    for features, targets in network.over(loader, samples):
        count += len(targets)
        for index, (classifier, each) in enumerate(zip(classifiers, features, strict=True)):
            wrong[index] += int((classifier.answers(pooled(each, MOST_NUMBERS)) != targets).sum())
    return [100 * each / count for each in wrong]
