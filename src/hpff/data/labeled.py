"""From two splits of encoded images to a data set."""

from __future__ import annotations

from collections.abc import Sequence

from hpff.data.broken import BrokenImages, Policy
from hpff.data.dataset import Dataset
from hpff.data.encoded_set import EncodedSet
from hpff.data.image_set import ImageSet
from hpff.data.treatment import PUBLISHED, Treatment, treatment_of


def build_dataset(
    name: str,
    train: EncodedSet,
    test: EncodedSet,
    class_names: Sequence[str],
    treatment: str,
    broken: Policy,
) -> Dataset:
    """Return the data set under a treatment.

    Args:
        name: of the data set.
        train: the training split.
        test: the test split.
        class_names: one a class.
        treatment: see `treatment_of`. Under "imagenet" the images stay encoded; under any other
            they are of one size and are decoded into memory here.
        broken: what to do about images that cannot be read.

    Raises:
        UserError: an image does not fit, or is broken under the policy "stop"; the message names
            it.
    """
    if treatment == "imagenet":
        return _dataset(name, train, test, class_names, PUBLISHED[treatment], {})
    unread = BrokenImages(broken)
    train_images = train.decoded(None, unread)
    channels, height, width = train_images.shape
    test_images = test.decoded((height, width, channels), unread)
    found = treatment_of(train_images, treatment)
    return _dataset(name, train_images, test_images, class_names, found, unread.found)


def _dataset(
    name: str,
    train: ImageSet | EncodedSet,
    test: ImageSet | EncodedSet,
    class_names: Sequence[str],
    treatment: Treatment,
    broken: dict[str, str],
) -> Dataset:
    return Dataset(
        name=name,
        train=train,
        test=test,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        mean=treatment.mean,
        std=treatment.std,
        augmentation=treatment.augmentation,
        broken=broken,
    )
