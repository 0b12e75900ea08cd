from __future__ import annotations

import pytest
import torch

from hpff import data
from hpff.data.treatment import channel_statistics


@pytest.fixture(scope="module")
def cifar10(cifar10_folder) -> data.Dataset:
    return data.load(f"parquet:{cifar10_folder}")


def test_counts_sizes_and_balance(cifar10):
    assert cifar10.train.images.shape == (50000, 3, 32, 32)
    assert cifar10.test.images.shape == (10000, 3, 32, 32)
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1000] * 10
    assert cifar10.num_classes == 10


def test_the_published_statistics_and_augmentation_apply(cifar10):
    assert cifar10.augmentation == data.Augmentation(4, "reflect", flip=True)
    mean, std = channel_statistics(cifar10.train)
    assert cifar10.mean == pytest.approx(mean, abs=0.004)
    assert cifar10.std == pytest.approx(std, abs=0.01)


def test_batches_of_it_are_normalized(cifar10):
    part = cifar10.train.subset(2000)
    assert part.labels.bincount().tolist() == [200] * 10
    source = data.Batches(
        part, cifar10, batch_size=2000, device="cpu", shuffle=True, augment=True, drop_last=True
    )
    images, _ = next(source.epoch(torch.Generator().manual_seed(0)))
    assert images.mean((0, 2, 3)).abs().max() < 0.1
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.1
