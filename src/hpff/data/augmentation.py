"""Random crops and flips of a batch, each image its own, in one gather."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hpff.errors import UserError

PaddingMode = Literal["reflect", "zeros"]


@dataclass(frozen=True)
class Augmentation:
    """Pad each side, crop the size again at random, flip every other image.

    Attributes:
        padding: pixels a side.
        padding_mode: what they show.
        flip: whether to flip about the vertical axis, each image with probability one half.

    Raises:
        UserError: a padding below 0, or a padding mode that does not exist.
    """

    padding: int
    padding_mode: PaddingMode
    flip: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UserError(f"padding is {self.padding}; expected 0 or more pixels")
        if self.padding_mode not in get_args(PaddingMode):
            raise UserError(f'padding_mode is "{self.padding_mode}"; expected "reflect" or "zeros"')


@dataclass(frozen=True)
class Choices:
    """What chance decided for each of N images.

    Attributes:
        top: int64 (N,), where its crop begins in the padded image, 0 to 2 * padding.
        left: the same from the left.
        flipped: bool (N,), whether the crop is flipped.
    """

    top: Tensor
    left: Tensor
    flipped: Tensor

    def __getitem__(self, indices: Tensor) -> Choices:
        return Choices(self.top[indices], self.left[indices], self.flipped[indices])

    def to(self, device: torch.device) -> Choices:
        """Return the same choices on the device."""
        return Choices(self.top.to(device), self.left.to(device), self.flipped.to(device))


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Choices:
    """Return the choices for `count` images, on the generator's device."""

    def integers(high: int) -> Tensor:
        return torch.randint(high, (count,), generator=generator, device=generator.device)

    corners = 2 * augmentation.padding + 1
    top, left = integers(corners), integers(corners)
    flipped = integers(2).bool() if augmentation.flip else torch.zeros_like(top).bool()
    return Choices(top, left, flipped)


def augment(images: Tensor, choices: Choices, augmentation: Augmentation) -> Tensor:
    """Return the crops of a batch.

    Nothing is padded in memory: each pixel of a crop knows where in the image it comes from.

    Args:
        images: (B, C, H, W) of any dtype.
        choices: for these B images, on their device.
        augmentation: reflection needs padding < H and padding < W, which `Batches` sees to.

    Returns:
        The crops, of the images' shape, dtype and device.
    """
    height, width = images.shape[2:]
    y = choices.top[:, None] + torch.arange(height, device=images.device) - augmentation.padding
    x = torch.arange(width, device=images.device)
    x = torch.where(choices.flipped[:, None], width - 1 - x, x)
    x = choices.left[:, None] + x - augmentation.padding
    if augmentation.padding_mode == "reflect":
        return _pick(images, _reflect(y, height), _reflect(x, width))
    inside = _inside(y, height)[:, None, :, None] & _inside(x, width)[:, None, None, :]
    return _pick(images, y.clamp(0, height - 1), x.clamp(0, width - 1)).mul_(inside)


def _pick(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return out[b, c, i, j] = images[b, c, y[b, i], x[b, j]]."""
    channels, width = images.shape[1], images.shape[3]
    sources = (y[:, :, None] * width + x[:, None, :]).flatten(1)
    sources = sources[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, sources).view_as(images)


def _reflect(position: Tensor, size: int) -> Tensor:
    return size - 1 - (size - 1 - position.abs()).abs()


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)
