"""InfoPro's task heads: maps (B, C, h, w) to (B, size).

Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
ICLR 2021, https://arxiv.org/abs/2101.10832; widths as in its code.
"""

from __future__ import annotations

from torch import nn

from hpff.auxiliary.pooling import GlobalAverage


def task_head(
    channels: int, kind: str, hidden: int, size: int, widen: float = 1.0
) -> nn.Sequential:
    """XcYf: X convolutions, global average pooling, Y linear layers.

    The first convolution doubles up to 64 channels at half the resolution; wider maps keep both.

    Args:
        channels: C.
        kind: such as ``"1c2f"``.
        hidden: width of the linear layers but the last.
        size: of the output.
        widen: factor of every hidden width.

    Returns:
        The head, from maps (B, C, h, w) to (B, size).
    """
    layers: list[nn.Module] = []
    for position in range(int(kind[0])):
        grows = position == 0 and channels < 64
        width = channels if position else max(1, int(widen * channels * (2 if grows else 1)))
        layers += _convolution(channels, width, 3, 2 if grows else 1)
        channels = width
    layers.append(GlobalAverage())
    for _ in range(int(kind[2]) - 1):
        width = max(1, int(widen * hidden))
        layers += [nn.Linear(channels, width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, size))


def deep_head(
    channels: int, size: int, widen: float = 1.0, most: int | None = None
) -> nn.Sequential:
    """That of ImageNet: four convolutions, global average pooling, a linear layer.

    They are 1×1 to a quarter of C, 3×3 to 256 and 512, each at half the resolution, and 1×1 to
    2048 channels.

    Args:
        channels: C.
        size: of the output.
        widen: factor of these widths.
        most: what they are at most, the last four times that; None: any.

    Returns:
        The head, from maps (B, C, h, w) to (B, size).
    """
    layers: list[nn.Module] = []
    narrow = most or 2048
    for wanted, kernel, stride, limit in (
        (channels / 4, 1, 1, narrow),
        (256, 3, 2, narrow),
        (512, 3, 2, narrow),
        (2048, 1, 1, 4 * narrow),
    ):
        width = max(1, min(int(widen * wanted), limit))
        layers += _convolution(channels, width, kernel, stride)
        channels = width
    return nn.Sequential(*layers, GlobalAverage(), nn.Linear(channels, size))


def _convolution(before: int, after: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
