"""Backprop, the baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from hpff.methods.base import AuxiliaryContext, Method


class Backprop(Method):
    """Backprop: the whole network is one module, one loss, one backward."""

    local: ClassVar[bool] = False

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        raise AssertionError("backprop has no auxiliary networks")
