"""A narrow network's strided shortcut neither corrupts memory nor changes a value."""

from __future__ import annotations

import subprocess
import sys

import torch
import torch.nn.functional as F

from hpff.models.cifar_resnet import BasicBlock
from hpff.torch_support.narrow_convolution import PointwiseConv2d

_MANY_STEPS = """
import torch
from hpff.models.cifar_resnet import BasicBlock

torch.set_num_threads(1)
block = BasicBlock(4, 8, stride=2).to(memory_format=torch.channels_last)
for _ in range(200):
    images = torch.randn(64, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    block(images).sum().backward()
    between = [torch.randn(size) for size in range(1, 60, 7)]
"""


def test_the_heap_stays_whole() -> None:
    done = subprocess.run([sys.executable, "-c", _MANY_STEPS], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


def test_values_are_those_of_a_strided_convolution() -> None:
    convolution = PointwiseConv2d(4, 8, 1, stride=2, bias=False).double()
    images = torch.randn(3, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    found = convolution(images)
    expected = F.conv2d(images, convolution.weight, stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.square().sum(), images, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.square().sum(), images)
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=1e-12)


def test_the_names_of_weights_stay() -> None:
    assert "shortcut.0.weight" in BasicBlock(4, 8, stride=2).state_dict()
