"""Layer-wise linear probes: how well a linear classifier does on each module's frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.analysis.networks import Loader, Network, pooled
from hpff.errors import UserError

MOST_NUMBERS = 1024
RIDGE = 1e-3


@dataclass(frozen=True)
class Probe:
    """A linear classifier on the features of one module.

    Attributes:
        module: j, from 1.
        name: of the submodule whose output the features are.
        numbers: how many the classifier sees of a sample.
        train_error: percent of the samples that it was fitted on.
        error: percent of others.
    """

    module: int
    name: str
    numbers: int
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
    ridge: float = RIDGE,
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
        ridge: penalty on the weights, in units of the number of samples.
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
        Probe(place.module, place.name, classifier.numbers, *errors)
        for place, classifier, *errors in zip(
            network.places, classifiers, trained, tested, strict=True
        )
    )


class RidgeClassifier:
    """Least squares from standardized features to one-hot targets, with a ridge and an intercept.

    The same answers as scikit-learn's ``StandardScaler`` before ``RidgeClassifier(alpha=ridge·n)``.

    Args:
        num_classes: of the targets.
        ridge: penalty on the weights, in units of the number of samples.
    """

    def __init__(self, num_classes: int, ridge: float = RIDGE) -> None:
        self._classes = num_classes
        self._ridge = ridge
        self._count = 0
        self._sums: list[Tensor] | None = None
        self._weights = self._intercept = torch.empty(0)

    @property
    def numbers(self) -> int:
        """How many numbers of a sample it sees."""
        return 0 if self._sums is None else len(self._sums[0])

    def update(self, rows: Tensor, targets: Tensor) -> None:
        """Take in samples.

        Args:
            rows: (n, D).
            targets: (n,), class indices.
        """
        check_targets(targets, self._classes)
        x = rows.detach().double()
        y = torch.nn.functional.one_hot(targets, self._classes).double()
        new = (x.sum(0), y.sum(0), x.T @ x, x.T @ y)
        old = self._sums or [torch.zeros_like(each) for each in new]
        self._sums = [a + b for a, b in zip(old, new, strict=True)]
        self._count += len(x)

    def fit(self) -> None:
        """Solve for the weights."""
        assert self._sums is not None
        n = self._count
        x, y, xx, xy = self._sums
        mean, wanted = x / n, y / n
        covariance = xx / n - mean[:, None] * mean
        deviation = covariance.diagonal().clamp(min=0).sqrt()
        known = deviation > 1e-7 * deviation.max().clamp(min=1e-30)
        scale = torch.where(known, deviation, torch.ones_like(deviation))
        system = covariance / scale[:, None] / scale
        system = system + self._ridge * torch.eye(len(mean), dtype=x.dtype, device=x.device)
        right = (xy / n - mean[:, None] * wanted) / scale[:, None]
        self._weights = torch.linalg.solve(system, right) / scale[:, None]
        self._intercept = wanted - mean @ self._weights

    def answers(self, rows: Tensor) -> Tensor:
        """The likeliest class of each of the rows (n, D), (n,)."""
        return (rows.detach().double() @ self._weights + self._intercept).argmax(1)


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
