"""A data set with all that training on it needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpff.data.augmentation import Augmentation
from hpff.data.encoded_set import EncodedSet
from hpff.data.image_set import ImageSet
from hpff.data.resized_crop import ResizedCrop


@dataclass(frozen=True, eq=False)
class Dataset:
    """The two splits, and how they are normalized and augmented.

    Images of one size are held in memory (`ImageSet`); images of any size are decoded when they are
    wanted (`EncodedSet`), and then `augmentation` is a `ResizedCrop`.

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
    """

    name: str
    train: ImageSet | EncodedSet
    test: ImageSet | EncodedSet
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | ResizedCrop
    broken: Mapping[str, str] = field(default_factory=dict)

    def image_shape(self, image_size: int | None = None) -> tuple[int, int, int]:
        """Return (C, H, W) of an image as a model sees it, resized to image_size if given."""
        if isinstance(self.train, EncodedSet):
            assert isinstance(self.augmentation, ResizedCrop)
            size = image_size or self.augmentation.size
            return 3, size, size
        channels, height, width = self.train.shape
        return channels, image_size or height, image_size or width
