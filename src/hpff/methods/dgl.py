"""Decoupled greedy learning."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary import ConvMLP, VectorMLP, dense_head
from hpff.auxiliary.pooling import average_blocks
from hpff.errors import UserError, shown
from hpff.methods.base import AuxiliaryContext, Method


class DGL(Method):
    """DGL: an "MLP-SR" classifier and cross-entropy.

    Belilovsky et al., "Decoupled Greedy Learning of CNNs", ICML 2020,
    https://arxiv.org/abs/1901.08164.

    Maps are average-pooled to a quarter of their sides before anything is learned, so an
    auxiliary network costs little beside its module.

    In a dense task the MLP, which gives one answer for a whole map, has no place: the network is
    the one of InfoPro's experiments on Cityscapes (:func:`~hpff.auxiliary.dense_head`), at the
    features' resolution, and the settings below are without effect. DGL itself has no such task.

    Args:
        hidden_layers: hidden layers of the classifier's MLP, at most 100. The default, 2 without
            bias, is the DGL baseline for CIFAR ResNets of AugLocal's code; DGL's own code has 3
            with bias.
        hidden_bias: whether these layers have a bias.

    Raises:
        UserError: a setting is out of range.
    """

    dense: bool = True

    def __init__(self, hidden_layers: int = 2, hidden_bias: bool = False) -> None:
        if isinstance(hidden_layers, bool) or not isinstance(hidden_layers, int):
            raise UserError(f"dgl: hidden_layers is {hidden_layers!r}; expected a whole number")
        if not 0 <= hidden_layers <= 100:
            raise UserError(f"dgl: hidden_layers is {shown(hidden_layers)}; expected 0 to 100")
        if not isinstance(hidden_bias, bool):
            raise UserError(f"dgl: hidden_bias is {hidden_bias!r}; expected true or false")
        self.hidden_layers = hidden_layers
        self.hidden_bias = hidden_bias

    def read(self, features: Tensor, patches: int) -> Tensor:
        height, width = features.shape[-2:]
        rows = patches * math.ceil(height / patches / 4)
        columns = patches * math.ceil(width / patches / 4)
        if height % rows == 0 and width % columns == 0:  # the same, but faster
            return average_blocks(features, (height // rows, width // columns))
        return F.adaptive_avg_pool2d(features, (rows, columns))

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        if context.dense:
            return dense_head(context.features[0], context.num_classes)
        kind = ConvMLP if context.kind == "map" else VectorMLP
        return kind(
            context.features[0],
            context.num_classes,
            hidden_layers=self.hidden_layers,
            hidden_bias=self.hidden_bias,
        )
