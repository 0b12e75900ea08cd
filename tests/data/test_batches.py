from __future__ import annotations

import pytest
import torch

from hpff.data import Augmentation, Batches, Dataset, ImageSet
from hpff.errors import UserError

MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.7)


@pytest.fixture
def dataset() -> Dataset:
    """Random images whose labels are their places in the set."""
    images = ImageSet(torch.randint(256, (50, 3, 8, 6)).byte(), torch.arange(50))
    names = tuple(str(number) for number in range(50))
    augmentation = Augmentation(padding=2, padding_mode="reflect", flip=True)
    return Dataset("random", images, images, 50, names, MEAN, STD, augmentation)


def batches(dataset: Dataset, **changes) -> Batches:
    settings = {
        "batch_size": 16,
        "device": "cpu",
        "shuffle": True,
        "augment": True,
        "drop_last": False,
    }
    return Batches(dataset.train, dataset, **(settings | changes))


def epoch(source: Batches, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*source.epoch(torch.Generator().manual_seed(seed)), strict=True)
    return torch.cat(images), torch.cat(labels)


def normalized(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(value).double()[:, None, None] for value in (MEAN, STD))
    return ((images.double() / 255 - mean) / std).float()


def test_the_same_generator_state_gives_the_same_batches(dataset):
    source = batches(dataset)
    generator = torch.Generator().manual_seed(3)
    first = list(source.epoch(generator))
    second = list(source.epoch(generator))
    again = list(source.epoch(generator.manual_seed(3)))
    for (images, labels), (same_images, same_labels) in zip(first, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert not torch.equal(first[0][1], second[0][1])


def test_the_generator_alone_decides(dataset):
    before = epoch(batches(dataset), 1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    after = epoch(batches(dataset), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(before[0], after[0])


def test_all_is_drawn_when_the_epoch_is_asked_for(dataset):
    source = batches(dataset)
    generator = torch.Generator().manual_seed(1)
    images = source.epoch(generator)
    state = generator.get_state()
    taken = torch.cat([batch for batch, _ in images])
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(taken, epoch(source, 1)[0])


def test_the_batch_size_changes_neither_order_nor_augmentation(dataset):
    small, large = epoch(batches(dataset, batch_size=7)), epoch(batches(dataset, batch_size=50))
    assert torch.equal(small[0], large[0])
    assert torch.equal(small[1], large[1])


def test_an_epoch_holds_every_image_once(dataset):
    _, labels = epoch(batches(dataset))
    assert labels.tolist() != list(range(50))
    assert sorted(labels.tolist()) == list(range(50))


def test_plain_batches_are_the_normalized_images_in_order(dataset):
    images, labels = epoch(batches(dataset, shuffle=False, augment=False))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert labels.tolist() == list(range(50))
    torch.testing.assert_close(images, normalized(dataset.train.images), rtol=1e-6, atol=1e-6)


def windows(image: torch.Tensor, padding: int) -> torch.Tensor:
    """Return every crop of the reflected image, flipped and not: (M, C, H, W)."""
    height, width = image.shape[1:]
    padded = torch.nn.functional.pad(image.double(), [padding] * 4, mode="reflect")
    crops = padded.unfold(1, height, 1).unfold(2, width, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.cat([crops, crops.flip(-1)])


def test_each_augmented_image_is_a_window_of_its_own_image_and_each_has_its_own(dataset):
    images, labels = epoch(batches(dataset))
    found = []
    for image, label in zip(images, labels, strict=True):
        candidates = normalized(windows(dataset.train.images[label], 2))
        distance = (candidates - image).abs().flatten(1).amax(1)
        assert distance.min() < 1e-5
        found.append(int(distance.argmin()))
    assert len(set(found)) > 20
    assert any(window < 25 for window in found)
    assert any(window >= 25 for window in found)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [16, 16, 16]), (False, [16, 16, 16, 2])])
def test_the_last_batch_is_kept_or_dropped(dataset, drop_last, sizes):
    source = batches(dataset, drop_last=drop_last)
    assert [len(labels) for _, labels in source.epoch(torch.Generator())] == sizes
    assert len(source) == len(sizes)


def test_channels_last_changes_the_layout_only(dataset):
    plain, _ = next(batches(dataset).epoch(torch.Generator()))
    images, _ = next(batches(dataset, channels_last=True).epoch(torch.Generator()))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    assert torch.equal(images, plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_makes_the_same_batches(dataset):
    images, labels = epoch(batches(dataset, device="cuda"))
    expected, expected_labels = epoch(batches(dataset))
    assert images.is_cuda
    assert torch.equal(labels.cpu(), expected_labels)
    torch.testing.assert_close(images.cpu(), expected)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused(dataset, size):
    with pytest.raises(UserError, match=f"batch_size is {size}; expected 1 or more"):
        batches(dataset, batch_size=size)


def test_a_batch_size_that_leaves_no_batch_is_refused(dataset):
    with pytest.raises(UserError, match="batch_size is 51, but there are only 50 images"):
        batches(dataset, batch_size=51, drop_last=True)
    assert len(batches(dataset, batch_size=51)) == 1


def test_reflection_wider_than_the_image_is_refused(dataset):
    tiny = ImageSet(dataset.train.images[:, :, :2], dataset.train.labels)
    settings = {"batch_size": 4, "device": "cpu", "shuffle": False, "drop_last": False}
    with pytest.raises(UserError, match="images of 2x6 cannot be reflected by 2 pixels"):
        Batches(tiny, dataset, augment=True, **settings)
    assert len(Batches(tiny, dataset, augment=False, **settings)) == 13
