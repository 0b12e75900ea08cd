"""An auxiliary network that predicts at each place of maps."""

from __future__ import annotations

from torch import nn


def dense_head(
    channels: int,
    num_classes: int,
    *,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A 3×3 convolution to half of the channels, BatchNorm, ReLU, a 1×1 convolution to the classes.

    That of InfoPro's experiments on Cityscapes, where 1024 channels became 512 (Wang et al., ICLR
    2021, https://arxiv.org/abs/2101.10832), for maps of any width.

    Args:
        channels: C.
        num_classes: of the output.
        hidden: channels between the convolutions; by default C / 2.
        dropout: the share of these that is left out at random in training, whole channels.

    Returns:
        The head, from maps (B, C, h, w) to scores (B, num_classes, h, w).
    """
    width = hidden or max(1, channels // 2)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
    if dropout:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers, nn.Conv2d(width, num_classes, 1))
