"""Data sets that torchvision knows how to fetch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpff.data.dataset import CIFAR_AUGMENTATION, CIFAR_MEAN, CIFAR_STD, Dataset
from hpff.data.image_set import ImageSet
from hpff.errors import UserError
from hpff.torchvision_import import torchvision


def default_root() -> Path:
    """Return where downloads are kept: the folder HPFF_DATA, else hpff's cache."""
    return Path(os.environ.get("HPFF_DATA", Path.home() / ".cache" / "hpff"))


def load_cifar10(root: Path | None = None) -> Dataset:
    """Return CIFAR-10, 50,000 training and 10,000 test images of 3x32x32, downloaded if need be.

    Raises UserError where it is neither in root nor to be downloaded.
    """
    root = root or default_root()
    train = _fetch(root, train=True)
    return Dataset(
        name="cifar10",
        train=_image_set(train),
        test=_image_set(_fetch(root, train=False)),
        num_classes=10,
        class_names=tuple(train.classes),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
        augmentation=CIFAR_AUGMENTATION,
    )


def _fetch(root: Path, *, train: bool) -> Any:
    """Return torchvision's CIFAR10; it unpickles only files whose checksums it knows."""
    cifar10 = torchvision("datasets").CIFAR10
    try:
        return cifar10(root, train=train)
    except (OSError, RuntimeError):
        pass
    existed = root.exists()
    try:
        return cifar10(root, train=train, download=True)
    except (OSError, RuntimeError, EOFError) as error:
        if not existed:
            with suppress(OSError):
                root.rmdir()
        reason = " ".join(str(error).split())
        raise UserError(
            f"cifar10 is not in {root} and could not be downloaded ({reason}); put "
            f"{cifar10.filename} (from {cifar10.url.rpartition('/')[0]}) there, "
            "or use parquet:FOLDER"
        ) from error


def _image_set(source: Any) -> ImageSet:
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(source.targets, dtype=torch.int64))
