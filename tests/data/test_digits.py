from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from hpff import data
from hpff.errors import UserError


def test_the_split_is_fixed_stratified_and_whole():
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    train, test = digits.train.labels.bincount(), digits.test.labels.bincount()
    assert ((train + test) / 5 - test).abs().max() < 1
    both = torch.cat([digits.train.images, digits.test.images])[:, 0]
    scaled = torch.from_numpy(load_digits().images * 255 / 16).round().byte()
    assert sorted(both.flatten(1).tolist()) == sorted(scaled.flatten(1).tolist())
    again = data.load("digits")
    assert torch.equal(digits.test.images, again.test.images)
    assert torch.equal(digits.test.labels, again.test.labels)


def test_every_image_keeps_its_label():
    bunch = load_digits()
    of_image = {
        tuple((image * 255 / 16).round().astype(int).flatten()): label
        for image, label in zip(bunch.images, bunch.target, strict=True)
    }
    digits = data.load("digits")
    for part in (digits.train, digits.test):
        for image, label in zip(part.images, part.labels, strict=True):
            assert of_image[tuple(image.flatten().tolist())] == label


def test_it_says_how_to_treat_it():
    digits = data.load("digits")
    assert digits.train.shape == (1, 8, 8)
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    assert digits.num_classes == len(digits.class_names) == 10
    assert digits.augmentation == data.Augmentation(1, "zeros", flip=False)
    pixels = digits.train.images.double() / 255
    assert digits.mean == pytest.approx([pixels.mean().item()])
    assert digits.std == pytest.approx([pixels.std(correction=0).item()])


def test_data_are_on_the_cpu_whatever_device_is_the_default():
    with torch.device("meta"):
        found = data.load("digits")
    assert torch.equal(found.train.images, data.load("digits").train.images)


def test_an_unknown_dataset_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match='no dataset "mnist"; expected one of digits, cifar10, '):
        data.load("mnist")
    with pytest.raises(UserError, match='no dataset "parquet:"'):
        data.load("parquet:")


def test_names_lists_what_load_takes():
    names = "digits cifar10 cifar100 svhn stl10 imagenet camvid cityscapes folder:PATH "
    names += "parquet:FOLDER parquet:FOLDER pairs:PATH"
    assert [name for name, _ in data.names()] == names.split()
