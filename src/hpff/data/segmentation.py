"""From pairs of images and label maps to a data set for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from hpff.data.dataset import Dataset
from hpff.data.decode import BrokenImageError, opened
from hpff.data.label_maps import LabelMaps, check_form
from hpff.data.pair_augmentation import PairAugmentation
from hpff.data.pairs import PairSet, PairSource
from hpff.data.treatment import PUBLISHED
from hpff.errors import UserError

_CHECKED_PIXELS = 150_000_000  # of label maps that are looked through before training: seconds
_VOID = 255

Color = tuple[int, int, int]


@dataclass(frozen=True)
class SegmentationFacts:
    """What is known of a data set for segmentation without having it.

    Attributes:
        title: its name as people write it.
        class_names: one a class.
        palette: one color a class, for pictures.
        ignore_index: the label of pixels that count for nothing.
        crop: height and width of training images.
        train, test: numbers of images.
        sides: height and width of an image.
        source: where it comes from.
    """

    title: str
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int
    crop: tuple[int, int]
    train: int
    test: int
    sides: tuple[int, int]
    source: str

    def __str__(self) -> str:
        height, width = self.sides
        return (
            f"{self.title}, segmentation, {height}x{width} color, {len(self.class_names)} classes, "
            f"{self.train} + {self.test} images, {self.source}"
        )


_CAMVID = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
_CITYSCAPES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)
SEGMENTATION_DATASETS = {
    "camvid": SegmentationFacts(
        "CamVid",
        tuple(name for name, _ in _CAMVID),
        tuple(color for _, color in _CAMVID),
        ignore_index=11,
        crop=(352, 480),
        train=367,
        test=233,
        sides=(360, 480),
        source="yours, in camvid/",
    ),
    "cityscapes": SegmentationFacts(
        "Cityscapes",
        tuple(name for name, _ in _CITYSCAPES),
        tuple(color for _, color in _CITYSCAPES),
        ignore_index=_VOID,
        crop=(512, 1024),
        train=2975,
        test=500,
        sides=(1024, 2048),
        source="yours, in cityscapes/",
    ),
}


def build_pairs(
    name: str,
    train: PairSource,
    test: PairSource,
    *,
    facts: SegmentationFacts | None = None,
    class_names: Sequence[str] | None = None,
    table: tuple[int, ...] | None = None,
) -> Dataset:
    """Return the data set of two splits, after a look at their labels.

    Sizes and form of every label map are checked, and its values too as long as that takes
    seconds; those of larger data sets in a sample, evenly spread, and otherwise as they are read.

    Args:
        name: of the data set.
        train: the training split.
        test: the test split.
        facts: of a data set that is known.
        class_names: of one that is not; None: as many classes as there are labels in the training
            split but 255, which is ignored.
        table: see `LabelMaps`.

    Raises:
        UserError: labels do not fit; the message names the file.
    """
    names = facts.class_names if facts else class_names
    ignore_index = facts.ignore_index if facts else _VOID
    maps = LabelMaps(None if names is None else len(names), ignore_index, table)
    training = PairSet.whole(train, maps)
    largest, sides = _look_through(training)
    if names is None:
        names = tuple(str(index) for index in range(largest + 1))
        maps = replace(maps, num_classes=len(names))
    testing = PairSet.whole(test, maps)
    _look_through(testing)
    statistics = PUBLISHED["imagenet"]
    return Dataset(
        name=name,
        train=PairSet.whole(train, maps),
        test=testing,
        num_classes=len(names),
        class_names=tuple(names),
        mean=statistics.mean,
        std=statistics.std,
        augmentation=PairAugmentation(facts.crop if facts else _crop(sides), ignore_index),
        ignore_index=ignore_index,
        palette=facts.palette if facts else _colors(len(names)),
    )


def blank_pairs(name: str) -> Dataset:
    """Return a data set of `SEGMENTATION_DATASETS` without its images."""
    facts = SEGMENTATION_DATASETS[name]
    statistics = PUBLISHED["imagenet"]
    maps = LabelMaps(len(facts.class_names), facts.ignore_index)
    train, test = (
        PairSet(_Nothing(), torch.arange(count), maps) for count in (facts.train, facts.test)
    )
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=len(facts.class_names),
        class_names=facts.class_names,
        mean=statistics.mean,
        std=statistics.std,
        augmentation=PairAugmentation(facts.crop, facts.ignore_index),
        ignore_index=facts.ignore_index,
        palette=facts.palette,
    )


class _Nothing:
    def __len__(self) -> int:
        return 0

    def read(self, index: int) -> tuple[bytes, bytes]:
        return b"", b""

    def where(self, index: int) -> str:
        return "no image"

    where_labels = where


def _look_through(pairs: PairSet) -> tuple[int, tuple[int, int]]:
    """The largest label that counts, and the sides of the first image."""
    sides = [_sides(pairs, index) for index in range(len(pairs))]
    pixels = sum(height * width for height, width in sides)
    step = 1 + pixels // _CHECKED_PIXELS
    largest = 0
    for index in range(0, len(pairs), step):
        try:
            _, encoded = pairs.read(index)
        except BrokenImageError:
            continue  # Training says so, or leaves it out.
        where = pairs.source.where_labels(int(pairs.places[index]))
        labels = pairs.maps.decode(encoded, where, sides[index])
        counted = labels[labels != pairs.maps.ignore_index]
        largest = max(largest, int(counted.max()) if len(counted) else 0)
    return largest, sides[0]


def _sides(pairs: PairSet, index: int) -> tuple[int, int]:
    """Of an image, whose label map must be of one channel and as large."""
    try:
        image, labels = pairs.read(index)
        with opened(image) as found:
            sides = (found.height, found.width)
    except BrokenImageError:
        return (0, 0)  # Training says so, or leaves it out.
    where = pairs.source.where_labels(int(pairs.places[index]))
    try:
        with opened(labels) as found:
            check_form(found.mode, (found.height, found.width), where, sides)
    except BrokenImageError as error:
        raise UserError(f"{where}: {error}") from error
    return sides


def _crop(sides: tuple[int, int]) -> tuple[int, int]:
    """The images' sides, as multiples of 32, at most 512x1024."""
    height, width = (max(32, side // 32 * 32) for side in sides)
    return min(height, 512), min(width, 1024)


def _colors(count: int) -> tuple[Color, ...]:
    """Colors that differ, as the Pascal VOC toolkit makes them: the bits of a class's number."""

    def channel(number: int, place: int) -> int:
        return sum(((number >> (3 * bit + place)) & 1) << (7 - bit) for bit in range(3))

    return tuple(
        (channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(1, count + 1)
    )
