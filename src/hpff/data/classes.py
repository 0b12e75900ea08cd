"""The classes of one data set in terms of another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from hpff.data.dataset import Split
from hpff.data.encoded_set import EncodedSet
from hpff.data.image_set import ImageSet
from hpff.data.pairs import PairSet

Matching = Literal["name", "position"]  # of the classes of two data sets

_ALIASES = {"automobile": "car", "aeroplane": "airplane", "plane": "airplane"}


def shared_classes(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Match the classes that both have by name.

    Case, and blanks for `_` and `-`, do not matter; an automobile is a car. So CIFAR-10 and STL-10
    share nine classes: all but the frog and the monkey.

    Args:
        theirs: names of their classes, in order.
        ours: names of ours.

    Returns:
        Their number of each shared class to ours.
    """
    known = {_plain(name): index for index, name in enumerate(ours)}
    found = {index: known.get(_plain(name)) for index, name in enumerate(theirs)}
    return {index: our for index, our in found.items() if our is not None}


def with_classes(images: Split, classes: Mapping[int, int]) -> ImageSet | EncodedSet:
    """Return the images of some classes under other labels.

    Args:
        images: of all classes.
        classes: the old label of each class that stays, to its new one.
    """
    assert not isinstance(images, PairSet), "there are label maps, not labels"
    new = torch.full((int(images.labels.max()) + 1,), -1, dtype=torch.int64)
    for old, label in classes.items():
        if old < len(new):
            new[old] = label
    labels = new[images.labels]
    kept: Tensor = (labels >= 0).nonzero().flatten()
    if isinstance(images, ImageSet):
        return ImageSet(images.images[kept], labels[kept])
    return EncodedSet(images.source, labels[kept], images.places[kept])


def _plain(name: str) -> str:
    plain = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return _ALIASES.get(plain, plain)
