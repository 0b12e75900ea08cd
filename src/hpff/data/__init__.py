"""Data sets by name, and batches of them augmented on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpff.data.augmentation import Augmentation
from hpff.data.batches import Batches, ImageBatches
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.encoded_set import EncodedSet
from hpff.data.fingerprint import absolute_name, data_differences, fingerprint
from hpff.data.image_set import ImageSet
from hpff.data.published import PUBLISHED_DATASETS, blank
from hpff.data.resized_crop import ResizedCrop
from hpff.data.streamed import StreamedBatches
from hpff.data.treatment import TreatmentName, check_treatment
from hpff.data.vision import NAMES, default_root, load_vision
from hpff.errors import UserError

__all__ = [
    "PUBLISHED_DATASETS",
    "Augmentation",
    "Batches",
    "BrokenImages",
    "Dataset",
    "EncodedSet",
    "ImageBatches",
    "ImageSet",
    "Policy",
    "ResizedCrop",
    "StreamedBatches",
    "TreatmentName",
    "absolute_name",
    "batches",
    "blank",
    "data_differences",
    "fingerprint",
    "load",
    "names",
]

_BY_PATH = ("folder", "parquet")


def load(
    name: str, *, root: Path | None = None, treatment: str = "auto", broken: Policy = "stop"
) -> Dataset:
    """Return the data set of that name, on the CPU.

    Args:
        name: one of `names`.
        root: where downloads are kept, and where a relative path of "folder:PATH" starts.
        treatment: of a folder or Parquet files, see `treatment_of`; "imagenet" for images of any
            size, and the default for folders. The others have one of their own.
        broken: "stop" at an image that cannot be read, or "skip" it.

    Raises:
        UserError: there is no such name, or its data cannot be had or is not sound.
    """
    check_treatment(treatment)
    kind, colon, path = name.partition(":")
    if kind in _BY_PATH and path:
        return _load_by_path(kind, (root or Path()) / Path(path).expanduser(), treatment, broken)
    if colon or name not in ("digits", "imagenet", *NAMES):
        known = ", ".join(known for known, _ in names())
        raise UserError(f'there is no dataset "{name}"; expected one of {known}')
    if treatment != "auto":
        raise UserError(
            f"treatment is {treatment}, but {name} has a published one of its own; expected auto "
            "(others are for folder:PATH and parquet:FOLDER)"
        )
    if name == "digits":
        from hpff.data.digits import load_digits

        return load_digits()
    if name == "imagenet":
        from hpff.data.imagenet import load_imagenet

        return load_imagenet(root or default_root(), broken)
    return load_vision(name, root)


def _load_by_path(kind: str, folder: Path, treatment: str, broken: Policy) -> Dataset:
    if kind == "parquet":
        from hpff.data.parquet import load_parquet

        return load_parquet(folder, treatment, broken)
    from hpff.data.folder import load_folder

    return load_folder(folder, treatment, broken)


def batches(
    images: ImageSet | EncodedSet,
    dataset: Dataset,
    *,
    workers: int | None = None,
    broken_images: Policy = "stop",
    **settings: Any,
) -> ImageBatches:
    """Return the batches of a split.

    Args:
        images: the split.
        dataset: the one it belongs to.
        workers: of `StreamedBatches`; for images in memory there are none.
        broken_images: of `StreamedBatches`.
        settings: the other arguments of `Batches`, or of `StreamedBatches`.

    Returns:
        `Batches` of images in memory, `StreamedBatches` of encoded ones.

    Raises:
        UserError: as `Batches` and `StreamedBatches` do.
    """
    if isinstance(images, ImageSet):
        return Batches(images, dataset, **settings)
    return StreamedBatches(
        images, dataset, workers=workers, broken_images=broken_images, **settings
    )


def names() -> list[tuple[str, str]]:
    """Return each name that `load` takes, with a line on it."""
    return [
        ("digits", "handwritten digits, 8x8 gray, 10 classes, 1437 + 360 images, embedded"),
        *((name, str(outline)) for name, outline in PUBLISHED_DATASETS.items()),
        ("folder:PATH", "images in PATH/train/CLASS/ and PATH/test/CLASS/ (or val/)"),
        ("parquet:FOLDER", "train*.parquet and test*.parquet with columns img or image, label"),
    ]
