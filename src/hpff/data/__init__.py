"""Data sets by name, and batches of them augmented on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpff.data.augmentation import Augmentation
from hpff.data.batches import Batches
from hpff.data.dataset import Dataset
from hpff.data.digits import load_digits
from hpff.data.image_set import ImageSet
from hpff.data.vision import load_cifar10
from hpff.errors import UserError

__all__ = ["Augmentation", "Batches", "Dataset", "ImageSet", "load", "names"]

_LOADERS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
}
_PARQUET = "parquet:"


def load(name: str, *, root: Path | None = None) -> Dataset:
    """Return the data set of that name, on the CPU.

    root is where downloads are kept, and where a relative folder of "parquet:FOLDER" starts.
    Raises UserError for an unknown name and for data that cannot be had or is not sound.
    """
    if name.startswith(_PARQUET) and name != _PARQUET:
        from hpff.data.parquet import load_parquet

        return load_parquet((root or Path()) / Path(name.removeprefix(_PARQUET)).expanduser())
    if name not in _LOADERS:
        known = ", ".join(known for known, _ in names())
        raise UserError(f'there is no dataset "{name}"; expected one of {known}')
    return _LOADERS[name](root)


def names() -> list[tuple[str, str]]:
    """Return each name that `load` takes, with a line on it."""
    return [
        ("digits", "handwritten digits, 8x8 gray, 10 classes, 1437 + 360 images, embedded"),
        ("cifar10", "CIFAR-10, 32x32 color, 10 classes, 50000 + 10000 images, downloaded"),
        ("parquet:FOLDER", "train*.parquet and test*.parquet with columns img or image, label"),
    ]
