from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpff.data.augmentation import Augmentation, Choices, augment, draw
from hpff.errors import UserError


def naive(images: torch.Tensor, choices: Choices, augmentation: Augmentation) -> torch.Tensor:
    """Pad, crop and flip one image after the other."""
    mode = {"reflect": "reflect", "zeros": "constant"}[augmentation.padding_mode]
    pad = augmentation.padding
    height, width = images.shape[2:]
    results = []
    for index, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode=mode)
        top, left = int(choices.top[index]), int(choices.left[index])
        crop = padded[:, top : top + height, left : left + width]
        results.append(crop[:, :, ::-1] if choices.flipped[index] else crop)
    return torch.from_numpy(np.stack(results))


@st.composite
def cases(draw_from):
    height, width = draw_from(st.integers(2, 9)), draw_from(st.integers(2, 9))
    augmentation = Augmentation(
        padding=draw_from(st.integers(0, min(height, width) - 1)),
        padding_mode=draw_from(st.sampled_from(["reflect", "zeros"])),
        flip=draw_from(st.booleans()),
    )
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 1000)))
    shape = (draw_from(st.integers(1, 6)), draw_from(st.integers(1, 3)), height, width)
    return torch.randint(256, shape, generator=generator).byte(), augmentation, generator


@given(cases())
def test_each_crop_is_the_true_window_of_the_padded_image(case):
    images, augmentation, generator = case
    choices = draw(augmentation, len(images), generator)
    result = augment(images, choices, augmentation)
    assert result.dtype == torch.uint8
    assert torch.equal(result, naive(images, choices, augmentation))


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_every_corner_and_both_flips_are_right(mode):
    augmentation = Augmentation(2, mode, flip=True)
    top, left, flipped = torch.cartesian_prod(*[torch.arange(5)] * 2, torch.arange(2)).unbind(1)
    choices = Choices(top, left, flipped.bool())
    images = torch.randint(256, (len(top), 3, 4, 5)).byte()
    assert torch.equal(augment(images, choices, augmentation), naive(images, choices, augmentation))


def test_zero_padding_may_be_wider_than_the_image():
    augmentation = Augmentation(5, "zeros", flip=True)
    images = torch.randint(256, (200, 1, 3, 3)).byte()
    choices = draw(augmentation, 200, torch.Generator().manual_seed(0))
    assert torch.equal(augment(images, choices, augmentation), naive(images, choices, augmentation))


def test_every_choice_comes_up_about_as_often_as_the_others():
    choices = draw(Augmentation(4, "reflect", flip=True), 9000, torch.Generator().manual_seed(0))
    for corner in (choices.top, choices.left):
        counts = corner.bincount()
        assert len(counts) == 9
        assert (counts - 1000).abs().max() < 150
    assert abs(int(choices.flipped.sum()) - 4500) < 200
    assert torch.stack([choices.top, choices.left]).double().corrcoef()[0, 1].abs() < 0.05


def test_no_padding_and_no_flip_change_nothing():
    augmentation = Augmentation(0, "reflect", flip=False)
    images = torch.randint(256, (5, 2, 4, 4)).byte()
    choices = draw(augmentation, 5, torch.Generator())
    assert torch.equal(augment(images, choices, augmentation), images)


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="padding is -1; expected 0 or more"):
        Augmentation(-1, "zeros", flip=False)
    with pytest.raises(UserError, match='padding_mode is "mirror"; expected "reflect" or "zeros"'):
        Augmentation(1, "mirror", flip=False)
