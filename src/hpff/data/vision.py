"""Data sets that torchvision knows how to fetch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpff.data.dataset import Dataset
from hpff.data.image_set import ImageSet
from hpff.data.published import PUBLISHED_DATASETS
from hpff.data.treatment import PUBLISHED
from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision

NAMES = ("cifar10", "cifar100", "svhn", "stl10")


def default_root() -> Path:
    """Return where downloads are kept: the folder HPFF_DATA, else hpff's cache."""
    return Path(os.environ.get("HPFF_DATA", Path.home() / ".cache" / "hpff"))


def load_vision(name: str, root: Path | None = None) -> Dataset:
    """Return the data set, downloaded if need be; of SVHN the split without the extra images.

    Args:
        name: one of `NAMES`.
        root: where downloads are kept; None: `default_root()`.

    Raises:
        UserError: it is neither in `root` nor to be downloaded; the message says what to fetch,
            and where to put it.
    """
    root = root or default_root()
    outline = PUBLISHED_DATASETS[name]
    treatment = PUBLISHED[outline.treatment]
    train, test = (_fetch(name, root, split) for split in ("train", "test"))
    return Dataset(
        name=name,
        train=_image_set(train),
        test=_image_set(test),
        num_classes=outline.num_classes,
        class_names=outline.class_names or tuple(train.classes),
        mean=treatment.mean,
        std=treatment.std,
        augmentation=treatment.augmentation,
    )


def _fetch(name: str, root: Path, split: str) -> Any:
    """Return torchvision's data set; it unpickles only files whose checksums it knows."""
    build, files = _builder(name, root, split)
    with suppress(OSError, RuntimeError):
        return build(download=False)
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        return build(download=True)
    except (OSError, RuntimeError, EOFError) as error:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} is not in {root} and could not be downloaded ({reason}); put {files} there, "
            "or use parquet:FOLDER"
        ) from error


def _builder(name: str, root: Path, split: str) -> tuple[Callable[..., Any], str]:
    """Return what makes torchvision's data set, and the files that it wants in root."""
    datasets = torchvision("datasets")
    if name == "svhn":
        files = [datasets.SVHN.split_list[part][1] for part in ("train", "test")]
        home = datasets.SVHN.split_list["train"][0].rpartition("/")[0]
        wanted = f"{' and '.join(files)} (from {home})"
        return lambda download: datasets.SVHN(root, split, download=download), wanted
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "stl10": "STL10"}[name]
    known = getattr(datasets, kind)
    wanted = f"{known.filename} (from {known.url.rpartition('/')[0]})"
    if name == "stl10":
        # Its 2.6 GB of unlabeled images are left out: torchvision would check them at each load.
        labeled = type("LabeledSTL10", (known,), {"train_list": known.train_list[:2]})
        return lambda download: labeled(root, split, download=download), wanted
    return lambda download: known(root, train=split == "train", download=download), wanted


def _image_set(source: Any) -> ImageSet:
    pixels = torch.from_numpy(source.data)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = source.targets if hasattr(source, "targets") else source.labels
    return ImageSet(pixels, torch.as_tensor(labels).to(torch.int64))
