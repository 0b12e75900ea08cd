"""Data sets by name, and batches of them augmented on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hpff.data.augmentation import Augmentation
from hpff.data.batches import Batches, ImageBatches
from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset, Split
from hpff.data.encoded_set import EncodedSet
from hpff.data.fingerprint import absolute_name, data_differences, fingerprint
from hpff.data.image_set import ImageSet
from hpff.data.pair_augmentation import PairAugmentation
from hpff.data.pair_batches import PairBatches
from hpff.data.pairs import PairSet
from hpff.data.published import PUBLISHED_DATASETS
from hpff.data.published import blank as blank_images
from hpff.data.resized_crop import ResizedCrop
from hpff.data.segmentation import SEGMENTATION_DATASETS, blank_pairs
from hpff.data.streamed import StreamedBatches
from hpff.data.treatment import TreatmentName, check_treatment
from hpff.data.vision import NAMES, default_root, load_vision
from hpff.errors import UserError, did_you_mean

__all__ = [
    "PUBLISHED_DATASETS",
    "SEGMENTATION_DATASETS",
    "Augmentation",
    "Batches",
    "BrokenImages",
    "Dataset",
    "EncodedSet",
    "ImageBatches",
    "ImageSet",
    "PairAugmentation",
    "PairBatches",
    "PairSet",
    "Policy",
    "ResizedCrop",
    "Split",
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

_BY_PATH = ("folder", "parquet", "pairs")


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
    with torch.device("cpu"):  # whatever the default is
        return _load(name, root, treatment, broken)


def _load(name: str, root: Path | None, treatment: str, broken: Policy) -> Dataset:
    check_treatment(treatment)
    kind, colon, path = name.partition(":")
    if kind in _BY_PATH and path:
        return _load_by_path(kind, (root or Path()) / Path(path).expanduser(), treatment, broken)
    if colon or name not in ("digits", "imagenet", *NAMES, *SEGMENTATION_DATASETS):
        known = [known for known, _ in names()]
        raise UserError(
            f'there is no dataset "{name}"; expected one of {", ".join(known)}'
            f"{did_you_mean(name, known)}"
        )
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
    if name in SEGMENTATION_DATASETS:
        return _load_segmentation(name, root or default_root())
    return load_vision(name, root)


def blank(name: str, image_size: int | None = None) -> Dataset:
    """Return a data set that is known by its published sizes, without what its images show.

    Args:
        name: a key of `PUBLISHED_DATASETS` or `SEGMENTATION_DATASETS`.
        image_size: pixels a side of ImageNet's images, 224 by default.
    """
    return blank_pairs(name) if name in SEGMENTATION_DATASETS else blank_images(name, image_size)


def _load_segmentation(name: str, root: Path) -> Dataset:
    if name == "cityscapes":
        from hpff.data.cityscapes import load_cityscapes

        return load_cityscapes(root)
    from hpff.data.pair_folders import holds_pairs, load_pair_parquet, load_pairs

    folder = root / name
    return load_pair_parquet(folder, name) if holds_pairs(folder) else load_pairs(folder, name)


def _load_by_path(kind: str, folder: Path, treatment: str, broken: Policy) -> Dataset:
    from hpff.data.pair_folders import holds_pairs, load_pair_parquet, load_pairs

    if kind == "pairs" or (kind == "parquet" and holds_pairs(folder)):
        if treatment != "auto":
            raise UserError(
                f"treatment is {treatment}, which is for classification, but {folder} has a label "
                "at each pixel; expected auto"
            )
        return load_pairs(folder) if kind == "pairs" else load_pair_parquet(folder)
    if kind == "parquet":
        from hpff.data.parquet import load_parquet

        return load_parquet(folder, treatment, broken)
    from hpff.data.folder import load_folder

    return load_folder(folder, treatment, broken)


def batches(
    images: Split,
    dataset: Dataset,
    *,
    workers: int | None = None,
    broken_images: Policy = "stop",
    steps: int | None = None,
    shares: int = 1,
    **settings: Any,
) -> ImageBatches:
    """Return the batches of a split.

    Args:
        images: the split.
        dataset: the one it belongs to.
        workers: of `StreamedBatches`; for images in memory there are none.
        broken_images: of `StreamedBatches`.
        steps: of `PairBatches`.
        shares: of `StreamedBatches`; no batch of images in memory is left with too few.
        settings: the other arguments of `Batches`, or of `StreamedBatches`.

    Returns:
        `Batches` of images in memory, `StreamedBatches` of encoded ones, `PairBatches` of images
        with labels at each pixel, which are cropped where they would be shuffled.

    Raises:
        UserError: as `Batches` and `StreamedBatches` do.
    """
    if isinstance(images, ImageSet):
        return Batches(images, dataset, **settings)
    if isinstance(images, PairSet):
        known = ("batch_size", "device", "augment", "channels_last")
        return PairBatches(
            images,
            dataset,
            training=settings["shuffle"],
            steps=steps if settings["shuffle"] else None,
            workers=workers,
            broken_images=broken_images,
            **{key: settings[key] for key in known if key in settings},
        )
    return StreamedBatches(
        images, dataset, workers=workers, broken_images=broken_images, shares=shares, **settings
    )


def names() -> list[tuple[str, str]]:
    """Return each name that `load` takes, with a line on it."""
    return [
        ("digits", "handwritten digits, 8x8 gray, 10 classes, 1437 + 360 images, embedded"),
        *((name, str(outline)) for name, outline in PUBLISHED_DATASETS.items()),
        *((name, str(facts)) for name, facts in SEGMENTATION_DATASETS.items()),
        ("folder:PATH", "images in PATH/train/CLASS/ and PATH/test/CLASS/ (or val/)"),
        ("parquet:FOLDER", "train*.parquet and test*.parquet with columns img or image, label"),
        ("parquet:FOLDER", "or columns image, annotation (a label map), for segmentation"),
        ("pairs:PATH", "for segmentation: PATH/train and PATH/trainannot, PATH/test, ..."),
    ]
