"""A folder of Parquet files as a data set."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from hpff.data.broken import Policy
from hpff.data.dataset import Dataset
from hpff.data.encoded_set import EncodedSet, Packed
from hpff.data.labeled import build_dataset
from hpff.data.shard import Shard, read_shard
from hpff.errors import UserError


def load_parquet(folder: Path, treatment: str, broken: Policy) -> Dataset:
    """Return the data set whose splits are folder/train*.parquet and folder/test*.parquet.

    The classes are those that the files' metadata names; without it, as many as there are
    different labels in the training split. Encoded images are held in memory.

    Args:
        folder: that of the files.
        treatment: see `treatment_of`.
        broken: what to do about images that cannot be read.

    Raises:
        UserError: `read_shard` or `build_dataset` refuses something, a split is empty or missing,
            or a label is no class; the message names the file and where there is one the row.
    """
    train, test = _read_split(folder, "train"), _read_split(folder, "test")
    names = train[0].class_names or _number_classes(train)
    for shard in (*train, *test):
        _check_labels(shard, len(names))
    return build_dataset(
        f"parquet:{folder}", _encoded_set(train), _encoded_set(test), names, treatment, broken
    )


class _Rows:
    """The rows of several shards, counted through."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._paths = [shard.path for shard in shards]
        self._ends = list(accumulate(len(shard) for shard in shards))
        self._images = Packed(image for shard in shards for image in shard.images)

    def read(self, index: int) -> bytes:
        return self._images[index]

    def where(self, index: int) -> str:
        shard = bisect.bisect_right(self._ends, index)
        first = self._ends[shard - 1] if shard else 0
        return f"{self._paths[shard]}, row {index - first}"


def _read_split(folder: Path, split: str) -> list[Shard]:
    """Return the split's files that hold any row; there is at least one."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {kind}; expected a folder with train*.parquet and test*.parquet")
    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no {split}*.parquet; expected at least one such file")
    shards = [shard for path in paths if len(shard := read_shard(path))]
    if not shards:
        raise UserError(f"{paths[0]}: the {split} split is empty; expected at least one row")
    return shards


def _number_classes(shards: list[Shard]) -> tuple[str, ...]:
    labels = torch.cat([shard.labels for shard in shards])
    return tuple(str(label) for label in range(len(labels.unique())))


def _check_labels(shard: Shard, num_classes: int) -> None:
    wrong = (shard.labels >= num_classes).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{shard.path}, row {row}: the label is {int(shard.labels[row])}; "
            f"expected 0 to {num_classes - 1}, as there are {num_classes} classes"
        )


def _encoded_set(shards: list[Shard]) -> EncodedSet:
    return EncodedSet.whole(_Rows(shards), torch.cat([shard.labels for shard in shards]))
