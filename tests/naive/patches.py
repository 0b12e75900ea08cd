"""PFF written down once more: what a network gives for each patch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

# patch_mode and patch_norm, in all pairs that there are.
WAYS = (
    ("together", "apart"),
    ("one-by-one", "apart"),
    ("auto", "apart"),
    ("together", "together"),
    ("auto", "together"),
)


def outputs_of_patches(
    outputs: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Sequence[Tensor]],
    patches: Sequence[tuple[Tensor, Tensor]],
    weights: Mapping[str, Tensor],
    norm: str,
) -> list[tuple[Tensor, ...]]:
    """For each patch, of features and of images: BatchNorms see it alone, or all."""
    if norm == "apart":
        return [tuple(outputs(*patch, weights)) for patch in patches]
    features, images = (torch.cat(each) for each in zip(*patches, strict=True))
    together = outputs(features, images, weights)
    return list(zip(*(out.chunk(len(patches)) for out in together), strict=True))
