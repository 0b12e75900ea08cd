"""Folders of image files as a data set: SPLIT/CLASS/IMAGE."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hpff.data.broken import Policy
from hpff.data.dataset import Dataset
from hpff.data.encoded_set import EncodedSet, Files
from hpff.data.labeled import build_dataset
from hpff.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_ENDINGS = ", ".join(_SUFFIXES)
_TEST_FOLDERS = ("test", "val", "validation")
_EXPECTED = "expected train/ and test/ (or val/), each with a folder of images for every class"


def load_folder(folder: Path, treatment: str, broken: Policy, name: str | None = None) -> Dataset:
    """Return the data set of folder/train/CLASS/IMAGE and folder/test (or val)/CLASS/IMAGE.

    The classes are the names of the folders in train/, sorted. Files that have no suffix of an
    image format, and hidden ones, are no images.

    Args:
        folder: that of train/.
        treatment: see `treatment_of`; "auto" is "imagenet".
        broken: what to do about images that cannot be read.
        name: of the data set; by default "folder:" and the folder.

    Raises:
        UserError: the folder is not laid out so, a class has no training images, or a test class
            is not in train/.
    """
    train_folder, test_folder = _splits(folder)
    classes = _subfolders(train_folder)
    if not classes:
        raise UserError(f"{train_folder} has no folders in it; {_EXPECTED}")
    unknown = [known for known in _subfolders(test_folder) if known not in set(classes)]
    if unknown:
        raise UserError(
            f"{test_folder / unknown[0]} is a class that {train_folder} does not have; expected "
            "the same classes in both"
        )
    train = _read_split(train_folder, classes)
    empty = (train.labels.bincount(minlength=len(classes)) == 0).nonzero().flatten()
    if len(empty):
        missing = train_folder / classes[int(empty[0])]
        raise UserError(
            f"{missing} holds no images ({', '.join(_SUFFIXES)}); expected at least one"
        )
    return build_dataset(
        name or f"folder:{folder}",
        train,
        _read_split(test_folder, classes),
        classes,
        "imagenet" if treatment == "auto" else treatment,
        broken,
    )


def _splits(folder: Path) -> tuple[Path, Path]:
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {kind}; {_EXPECTED}")
    tests = [folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()]
    if not tests or not (folder / "train").is_dir():
        raise UserError(f"{folder} is not laid out as a data set; {_EXPECTED}")
    if len(tests) > 1:
        raise UserError(f"{folder} has both {tests[0].name}/ and {tests[1].name}/; expected one")
    return folder / "train", tests[0]


def _subfolders(folder: Path) -> list[str]:
    entries = _listed(folder)
    return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


# Not torchvision's make_dataset: it passes over folders that it may not list, without a word, and
# follows links in circles (a class of 300 images with a link to itself gave 12,300).
def _read_split(folder: Path, classes: Sequence[str]) -> EncodedSet:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images(folder / name)) if (folder / name).is_dir() else []
        paths.extend(f"{name}/{image}" for image in found)
        labels.extend([label] * len(found))
    if not paths:
        raise UserError(f"{folder} holds no images in its folders; {_EXPECTED}")
    return EncodedSet.whole(Files(folder, paths), torch.tensor(labels, dtype=torch.int64))


def _images(folder: Path) -> Iterator[str]:
    for entry in _listed(folder):
        name = entry.name
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".") and entry.is_file():
            yield name


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}); make it readable"
        ) from error
