"""A folder of Parquet files as a data set."""

from __future__ import annotations

from pathlib import Path

import torch

from hpff.data.augmentation import Augmentation
from hpff.data.dataset import (
    CIFAR_AUGMENTATION,
    CIFAR_MEAN,
    CIFAR_STD,
    Dataset,
    channel_statistics,
)
from hpff.data.decode import Shape
from hpff.data.image_set import ImageSet
from hpff.data.shard import Shard, read_shard
from hpff.errors import UserError


def load_parquet(folder: Path) -> Dataset:
    """Return the data set whose splits are folder/train*.parquet and folder/test*.parquet.

    The classes are those that the files' metadata names; without it, as many as there are
    different labels in the training split. Images of 3x32x32 get CIFAR's statistics and
    augmentation; others get the statistics of the training split and crops of images padded with
    zeros by an eighth of the shorter side, without flips.

    Raises UserError, naming the file and where there is one the row, for what `read_shard` refuses,
    for an empty or missing split, and for a label that is no class.
    """
    train = _read_split(folder, "train", None)
    test = _read_split(folder, "test", train[0].shape)
    names = train[0].class_names or _number_classes(train)
    for shard in (*train, *test):
        _check_labels(shard, len(names))
    train_images = _image_set(train)
    mean, std, augmentation = _treatment(train_images)
    return Dataset(
        name=f"parquet:{folder}",
        train=train_images,
        test=_image_set(test),
        num_classes=len(names),
        class_names=names,
        mean=mean,
        std=std,
        augmentation=augmentation,
    )


def _read_split(folder: Path, split: str, shape: Shape | None) -> list[Shard]:
    """Return the split's files that hold any row; there is at least one."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {kind}; expected a folder with train*.parquet and test*.parquet")
    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise UserError(f"{folder} holds no {split}*.parquet; expected at least one such file")
    shards: list[Shard] = []
    for path in paths:
        shard = read_shard(path, shape)
        if len(shard):
            shards.append(shard)
            shape = shard.shape
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


def _image_set(shards: list[Shard]) -> ImageSet:
    images = torch.cat([shard.images for shard in shards]).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.cat([shard.labels for shard in shards]))


def _treatment(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...], Augmentation]:
    if images.shape == (3, 32, 32):
        return CIFAR_MEAN, CIFAR_STD, CIFAR_AUGMENTATION
    padding = min(images.shape[1:]) // 8
    return *channel_statistics(images), Augmentation(padding, "zeros", flip=False)
