"""Linear CKA: how alike two sets of features are, whatever rotates or scales them.

Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
https://arxiv.org/abs/1905.00414. In minibatches with the unbiased HSIC, as in Nguyen et al., "Do
Wide and Deep Networks Learn the Same Things?", ICLR 2021, https://arxiv.org/abs/2010.15327.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.analysis.networks import Loader, Network
from hpff.errors import UserError

SMALLEST_BATCH = 4  # The unbiased HSIC divides by n - 3.


@dataclass(frozen=True)
class Similarity:
    """Linear CKA between all modules of two networks.

    Attributes:
        first, second: labels.
        rows, columns: the modules of the first and of the second, by name.
        values: CKA, a row for each module of the first; near 1 alike, near 0 unlike.
        samples: of how many.
    """

    first: str
    second: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    samples: int

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**vars(self), "values": [list(row) for row in self.values]}


def cka(
    first: Network,
    second: Network,
    loader: Loader,
    *,
    second_loader: Loader | None = None,
    samples: int | None = None,
) -> Similarity:
    """Linear CKA between the modules of two networks on the same samples, batch by batch.

    Args:
        first: a network.
        second: another, or the same.
        loader: the batches, of 4 samples or more; smaller ones are left out.
        second_loader: the same samples in the same batches as the second network takes them, where
            it takes others.
        samples: how many to take at most; None for all.

    Raises:
        UserError: no batch has 4 samples.
    """
    sums = CKA()
    if first is second and second_loader is None:
        for features, _ in first.over(loader, samples):
            sums.update(features, features)
    else:
        others = second.over(second_loader or loader, samples)
        for (ours, _), (theirs, _) in zip(first.over(loader, samples), others, strict=True):
            sums.update(ours, theirs)
    values = tuple(tuple(row) for row in sums.result().tolist())
    rows, columns = (tuple(p.name for p in network.places) for network in (first, second))
    return Similarity(first.label, second.label, rows, columns, values, sums.samples)


class CKA:
    """Adds up what CKA needs over batches: an HSIC for each pair of features, no features.

    Attributes:
        samples: how many were seen.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums: list[Tensor] | None = None

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Take in one batch.

        Args:
            first: features (n, ...) of n samples, one a module.
            second: likewise, of the same samples.
        """
        count = len(first[0])
        if count < SMALLEST_BATCH:
            return
        ours = grams(first)
        theirs = ours if second is first else grams(second)
        parts = hsic(ours, theirs), hsic_with_itself(ours), hsic_with_itself(theirs)
        weighted = [count * part for part in parts]
        before = self._sums or [torch.zeros_like(part) for part in parts]
        self._sums = [old + new for old, new in zip(before, weighted, strict=True)]
        self.samples += count

    def result(self) -> Tensor:
        """CKA (modules of the first, modules of the second), float64.

        Features that are the same for all samples are like nothing: 0.

        Raises:
            UserError: no batch had 4 samples.
        """
        if self._sums is None:
            raise UserError(f"CKA needs batches of {SMALLEST_BATCH} samples or more")
        between, ours, theirs = self._sums
        scale = (ours.clamp(min=0)[:, None] * theirs.clamp(min=0)[None]).sqrt()
        return torch.where(scale > 0, between / scale, torch.zeros_like(between))


def grams(features: Sequence[Tensor]) -> Tensor:
    """Gram matrices of features (n, ...) in float64, (modules, n, n), their diagonals 0."""
    found = []
    for each in features:
        rows = each.detach().flatten(1).double()
        rows = rows - rows.mean(0)
        gram = rows @ rows.T
        found.append(gram.fill_diagonal_(0))
    return torch.stack(found)


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased HSIC of every pair of Gram matrices with diagonals 0.

    Args:
        first: (a, n, n).
        second: (b, n, n).

    Returns:
        (a, b).
    """
    traces = first.flatten(1) @ second.flatten(1).T
    ours, theirs = first.sum(2), second.sum(2)
    totals = ours.sum(1)[:, None] * theirs.sum(1)[None]
    return _combined(traces, totals, ours @ theirs.T, first.shape[1])


def hsic_with_itself(matrices: Tensor) -> Tensor:
    """Unbiased HSIC of each Gram matrix (a, n, n) with itself, (a,)."""
    rows = matrices.sum(2)
    return _combined(
        matrices.square().sum((1, 2)), rows.sum(1).square(), rows.square().sum(1), rows.shape[1]
    )


def _combined(traces: Tensor, totals: Tensor, rows: Tensor, n: int) -> Tensor:
    """Nguyen et al., eq. 3."""
    return (traces + totals / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))
