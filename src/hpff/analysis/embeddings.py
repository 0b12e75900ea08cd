"""Pictures of features in the plane (PCA, t-SNE), and how far they keep classes apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpff.analysis.networks import Loader, Network, pooled
from hpff.analysis.probes import MOST_NUMBERS
from hpff.errors import UserError

_Numbers = NDArray[np.float64]
_FEWEST = 8
_COMPONENTS = 50  # PCA before t-SNE, as its authors do.


@dataclass(frozen=True)
class Separation:
    """How far features keep the classes apart.

    Attributes:
        silhouette: mean over samples of (b - a) / max(a, b), where a is the mean distance to the
            sample's own class and b that to the nearest other: -1 to 1, more is better.
        scatter_ratio: scatter between the classes' means over that within the classes, 0 or more:
            more is better. It sees features as they are; distances above see them standardized.
    """

    silhouette: float
    scatter_ratio: float | None

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain data."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class Embedding:
    """One module's features of some samples in the plane.

    Attributes:
        module: j, from 1.
        name: of the submodule whose output the features are.
        separation: of the features themselves, not of the pictures.
        pca: (N, 2), the first two principal components.
        tsne: (N, 2), None where it was not asked for.
        labels: (N,), the classes.
    """

    module: int
    name: str
    separation: Separation
    pca: _Numbers
    tsne: _Numbers | None
    labels: NDArray[np.int64]

    def to_plain(self) -> dict[str, Any]:
        """The scores as plain data; no coordinates."""
        samples = len(self.labels)
        scores = self.separation.to_plain()
        return {"module": self.module, "name": self.name, "samples": samples, **scores}


def embeddings(
    network: Network,
    loader: Loader,
    *,
    samples: int = 500,
    tsne: Collection[int] | None = None,
    seed: int = 0,
    observe: Callable[[], None] = lambda: None,
) -> tuple[Embedding, ...]:
    """Each module's features in the plane, and how far they keep the classes apart.

    Features are averaged into at most 4×4 cells, and those of the samples are held at once.

    Args:
        network: whose modules.
        loader: the batches.
        samples: how many to take, 8 or more.
        tsne: of which modules t-SNE is made, by j; None: of all.
        seed: of t-SNE.
        observe: called after each module.

    Raises:
        UserError: fewer than 8 samples, or a single class.
    """
    rows: list[list[Tensor]] = [[] for _ in network.places]
    labels: list[Tensor] = []
    for features, targets in network.over(loader, samples):
        labels.append(targets.cpu())
        for kept, each in zip(rows, features, strict=True):
            kept.append(pooled(each, MOST_NUMBERS).double().cpu())
    classes = torch.cat(labels).numpy()
    _check(classes)
    found = []
    for place, kept in zip(network.places, rows, strict=True):
        matrix = torch.cat(kept).numpy()
        with_tsne = tsne is None or place.module in tsne
        found.append(_embed(place.module, place.name, matrix, classes, seed, with_tsne=with_tsne))
        observe()
    return tuple(found)


def separation(features: _Numbers, labels: NDArray[np.int64]) -> Separation:
    """How far features keep the classes apart.

    Args:
        features: (N, D).
        labels: (N,), of two classes or more.
    """
    from sklearn.metrics import silhouette_score

    return Separation(
        silhouette=float(silhouette_score(standardized(features), labels)),
        scatter_ratio=scatter_ratio(features, labels),
    )


def scatter_ratio(features: _Numbers, labels: NDArray[np.int64]) -> float | None:
    """The trace of the scatter between classes over that within them; None where that is 0."""
    mean = features.mean(0)
    between = within = 0.0
    for label in np.unique(labels):
        rows = features[labels == label]
        center = rows.mean(0)
        between += len(rows) * float(((center - mean) ** 2).sum())
        within += float(((rows - center) ** 2).sum())
    return between / within if within > 0 else None


def standardized(features: _Numbers) -> _Numbers:
    """Features (N, D) with mean 0 and deviation 1; those that never change are 0."""
    centered = features - features.mean(0)
    deviation = centered.std(0)
    scaled: _Numbers = centered / np.where(deviation > 1e-12, deviation, 1.0)
    return scaled


def _embed(
    module: int,
    name: str,
    matrix: _Numbers,
    labels: NDArray[np.int64],
    seed: int,
    *,
    with_tsne: bool,
) -> Embedding:
    from sklearn.decomposition import PCA

    rows = standardized(matrix)
    count = min(_COMPONENTS, *rows.shape)
    reduced = PCA(count, svd_solver="full").fit_transform(rows)
    plane = np.zeros((len(rows), 2))
    plane[:, : min(2, count)] = reduced[:, :2]
    made = _tsne(reduced, seed) if with_tsne else None
    return Embedding(module, name, separation(matrix, labels), plane, made, labels)


def _tsne(rows: _Numbers, seed: int) -> _Numbers:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    start = "pca" if rows.shape[1] > 1 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant features
        found = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(rows)
    return np.asarray(found, dtype=np.float64)


def _check(labels: NDArray[np.int64]) -> None:
    known = len(np.unique(labels))
    if len(labels) < _FEWEST or known < 2 or known >= len(labels):
        raise UserError(
            f"embeddings of {len(labels)} samples of {known} classes; expected {_FEWEST} samples "
            "or more, of several classes"
        )
