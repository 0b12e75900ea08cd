"""Layers of auxiliary networks: the convolution of enlarged maps, and the global average."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hpff.auxiliary import GlobalAverage, UpsampledConv2d
from hpff.auxiliary.pooling import AverageBlocks, average_blocks
from hpff.memory import AllocationCounter
from hpff.memory.arithmetic import ArithmeticCounter

SIZES = [
    ((1, 1), (3, 4)),
    ((2, 5), (9, 15)),
    ((4, 4), (16, 16)),
    ((3, 4), (12, 7)),
    ((6, 5), (6, 5)),
    ((6, 6), (12, 12)),
]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 48])
def test_equals_enlarging_and_convolving(
    small: tuple[int, int], large: tuple[int, int], layout: torch.memory_format, channels: int
) -> None:
    layer = UpsampledConv2d(channels, 5).double()
    maps = torch.randn(2, channels, *small, dtype=torch.float64).contiguous(memory_format=layout)
    maps.requires_grad_()
    cotangent = torch.randn(2, 5, *large, dtype=torch.float64)
    wanted = [maps, *layer.parameters()]

    found = layer(maps, large)

    enlarged = F.interpolate(maps, size=large, mode="bilinear", align_corners=True)
    expected = F.conv2d(enlarged, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, wanted, cotangent),
        torch.autograd.grad(expected, wanted, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_never_holds_the_enlarged_maps() -> None:
    layer = UpsampledConv2d(64, 12)
    maps = torch.randn(4, 64, 8, 8, requires_grad=True)
    with AllocationCounter() as counter:
        layer(maps, (64, 64)).sum().backward()
    assert counter.peak < 4 * 64 * 64 * 64 * 4


@pytest.mark.parametrize(("channels", "large"), [(128, 14), (32, 14), (3, 14), (3, 8), (64, 28)])
def test_channels_are_mixed_first_where_it_takes_fewer_multiplications(
    channels: int, large: int
) -> None:
    layer = UpsampledConv2d(channels, 8)
    with ArithmeticCounter() as counter:
        layer(torch.randn(2, channels, 7, 7), (large, large))
    plain = 4 * 9 * large * large * channels * 8
    mixed = 4 * (9 * 7 * 7 * channels * 8 + 9 * 7 * 7 * large * 8 + 3 * 7 * large * large * 8)
    assert counter.total == (mixed if 3 * mixed < 2 * plain else plain)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_global_average_keeps_the_layout_in_its_gradient(layout: torch.memory_format) -> None:
    maps = torch.randn(3, 4, 5, 6, dtype=torch.float64).contiguous(memory_format=layout)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(GlobalAverage(), maps)
    found = GlobalAverage()(maps)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(maps, 1).flatten(1))
    (gradient,) = torch.autograd.grad(found.square().sum(), maps)
    assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_averages_of_blocks_are_those_of_pooling(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """The same bits, and a gradient that lies in memory as the maps do."""
    maps = torch.randn(3, 5, 6, 12).to(dtype).contiguous(memory_format=layout).requires_grad_()
    cotangent = torch.randn(3, 5, 3, 3).to(dtype).contiguous(memory_format=layout)
    expected = F.avg_pool2d(maps, (2, 4))
    (wanted,) = torch.autograd.grad(expected, maps, cotangent)
    for found in (AverageBlocks.apply(maps, (2, 4)), average_blocks(maps, (2, 4))):
        assert torch.equal(found, expected)
        (gradient,) = torch.autograd.grad(found, maps, cotangent)
        assert torch.equal(gradient, wanted)
        assert gradient.is_contiguous(memory_format=layout)
