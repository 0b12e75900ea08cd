"""Cityscapes, by torchvision's reader of the folders as its owners publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpff.data.dataset import Dataset
from hpff.data.pairs import PairFiles
from hpff.data.segmentation import SEGMENTATION_DATASETS, build_pairs
from hpff.errors import UserError
from hpff.torch_support.torchvision_import import torchvision

_VALUES = 256


def load_cityscapes(root: Path) -> Dataset:
    """Return Cityscapes' fine annotations: the splits train, and val for tests.

    Labels are those of the benchmark, 19 classes; all others are ignored.

    Args:
        root: that holds cityscapes/, with leftImg8bit/ and gtFine/ in it, unpacked.

    Raises:
        UserError: they are not there, or not as published.
    """
    folder = root / "cityscapes"
    train, test = (_split(folder, split) for split in ("train", "val"))
    facts = SEGMENTATION_DATASETS["cityscapes"]
    return build_pairs(
        "cityscapes", _pairs(train), _pairs(test), facts=facts, table=_table(train.classes)
    )


def _split(folder: Path, split: str) -> Any:
    try:
        return torchvision("datasets").Cityscapes(
            folder, split=split, mode="fine", target_type="semantic"
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cityscapes is not in {folder}; expected leftImg8bit/{split}/ and gtFine/{split}/ "
            "there, from leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of "
            "cityscapes-dataset.com, unpacked"
        ) from error


def _pairs(found: Any) -> PairFiles:
    pairs = sorted(  # torchvision leaves the order to the file system
        (Path(image), Path(targets[0]))
        for image, targets in zip(found.images, found.targets, strict=True)
    )
    for image, labels in pairs:
        if not labels.is_file():
            raise UserError(f"{image}: there are no labels for it; expected {labels}")
    return PairFiles(pairs)


def _table(classes: Any) -> tuple[int, ...]:
    """The class of each value of a label map."""
    ignored = SEGMENTATION_DATASETS["cityscapes"].ignore_index
    known = {each.id: each.train_id for each in classes if not each.ignore_in_eval}
    return tuple(known.get(value, ignored) for value in range(_VALUES))
