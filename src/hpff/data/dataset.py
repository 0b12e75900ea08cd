"""A data set with all that training on it needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from hpff.data.augmentation import Augmentation
from hpff.data.encoded_set import EncodedSet
from hpff.data.image_set import ImageSet
from hpff.data.pair_augmentation import PairAugmentation
from hpff.data.pairs import PairSet
from hpff.data.resized_crop import ResizedCrop
from hpff.errors import UserError

Split = ImageSet | EncodedSet | PairSet
Task = Literal["classification", "segmentation"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The two splits, and how they are normalized and augmented.

    Images of one size are held in memory (`ImageSet`); images of any size are decoded when they are
    wanted (`EncodedSet`), and then `augmentation` is a `ResizedCrop`. Images with a label at each
    pixel are a `PairSet`, and their `augmentation` a `PairAugmentation`.

    Attributes:
        name: as `load` takes it.
        train: the training split.
        test: the test split.
        num_classes: how many classes there are; labels are 0 to num_classes - 1.
        class_names: one a class.
        mean: one value a channel, for pixels scaled to 0..1.
        std: the deviation, likewise.
        augmentation: of training images.
        broken: name to reason of the images that were left out because they cannot be read.
        ignore_index: the label of pixels that count for nothing; of no use in a classification.
        palette: a color for each class, red, green, blue; () in a classification.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | ResizedCrop | PairAugmentation
    broken: Mapping[str, str] = field(default_factory=dict)
    ignore_index: int = -100
    palette: tuple[tuple[int, int, int], ...] = ()

    @property
    def task(self) -> Task:
        """What can be learned from it."""
        return "segmentation" if isinstance(self.train, PairSet) else "classification"

    def cropped(self, crop: tuple[int, ...] | None) -> Dataset:
        """Return the same with training images of another size, (H, W); None: as it is.

        Raises:
            UserError: the data are not for segmentation.
        """
        if crop is None:
            return self
        if not isinstance(self.augmentation, PairAugmentation):
            raise UserError(
                f"crop_size is {list(crop)}, but {self.name} is for classification; expected null "
                "(image_size is for classification)"
            )
        return replace(self, augmentation=replace(self.augmentation, crop=(crop[0], crop[1])))

    def holding_out(self, n: int | None) -> Dataset:
        """Return the same with n training images in place of the test split; None: as it is.

        Raises:
            UserError: n is below 1, or not below the number of training images.
        """
        if n is None:
            return self
        return replace(self, train=self.train.without(n), test=self.train.subset(n))

    def image_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        """Return (C, H, W) of an image as a model sees it, resized to image_size if given."""
        if isinstance(self.train, EncodedSet):
            assert isinstance(self.augmentation, ResizedCrop)
            size = image_size or self.augmentation.size
            return 3, size, size
        if isinstance(self.train, PairSet):
            assert isinstance(self.augmentation, PairAugmentation)
            return 3, *self.augmentation.crop
        channels, height, width = self.train.shape
        return channels, image_size or height, image_size or width
