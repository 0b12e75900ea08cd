"""Each method's rule written down once more, from its paper and the weights' names alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]
Outputs = tuple[Tensor, ...]


def dgl(patch: Tensor, image: Tensor, weights: Weights) -> Outputs:
    """MLP-SR with real 1×1 convolutions."""
    height, width = patch.shape[2:]
    x = F.adaptive_avg_pool2d(patch, (-(-height // 4), -(-width // 4)))
    for layer in range(3):
        x = F.conv2d(x, weights[f"convolutions.{layer}.linear.weight"][:, :, None, None])
        x = F.relu(_norm(x, weights, f"convolutions.{layer}.norm"))
    x = F.adaptive_avg_pool2d(x, 2).flatten(1)
    for layer in range(2):
        x = F.linear(x, weights[f"hidden.{layer}.linear.weight"])
        x = F.relu(_norm(x, weights, f"hidden.{layer}.norm"))
    return (_linear(x, weights, "classifier"),)


def auglocal(patch: Tensor, image: Tensor, weights: Weights) -> Outputs:
    """Residual blocks, each with stride 2 where it widens."""
    x, layer = patch, 0
    while f"{layer}.conv1.weight" in weights:
        first = weights[f"{layer}.conv1.weight"]
        stride = 2 if first.shape[0] > first.shape[1] else 1
        out = F.relu(_norm(F.conv2d(x, first, stride=stride, padding=1), weights, f"{layer}.bn1"))
        out = F.conv2d(out, weights[f"{layer}.conv2.weight"], padding=1)
        out = _norm(out, weights, f"{layer}.bn2")
        if f"{layer}.shortcut.0.weight" in weights:
            x = F.conv2d(x, weights[f"{layer}.shortcut.0.weight"], stride=stride)
            x = _norm(x, weights, f"{layer}.shortcut.1")
        x, layer = F.relu(out + x), layer + 1
    x = x.mean((2, 3))
    return (_linear(x, weights, str(layer + 1)),)


def predsim(patch: Tensor, image: Tensor, weights: Weights) -> Outputs:
    """512 numbers at most for the scores; similarity is that of channels' deviations."""
    pooled = F.avg_pool2d(patch, (2, 1)) if patch[0].numel() > 512 else patch
    scores = _linear(pooled.flatten(1), weights, "classifier")
    maps = F.conv2d(patch, weights["convolution.weight"], padding=1)
    by_channel = maps.shape[1] > 3 and maps.shape[2] > 1
    return scores, maps.flatten(2).std(2) if by_channel else maps.flatten(1)


def infopro(patch: Tensor, image: Tensor, weights: Weights) -> Outputs:
    """Head 1c2f, and the decoder with its maps enlarged first."""
    x = F.conv2d(patch, weights["head.0.weight"], stride=2, padding=1)
    x = F.relu(_norm(x, weights, "head.1")).mean((2, 3))
    scores = _linear(F.relu(_linear(x, weights, "head.4")), weights, "head.6")
    x = F.interpolate(patch, size=image.shape[2:], mode="bilinear", align_corners=True)
    x = _convolution(x, weights, "decoders.0.enlarge")
    x = F.relu(_norm(x, weights, "decoders.0.norm"))
    decoded = _convolution(x, weights, "decoders.0.last").sigmoid()
    error = F.binary_cross_entropy(decoded, image.clamp(0, 1), reduction="none")
    return scores, error.mean((1, 2, 3))


def cross_entropy(outputs: Outputs, targets: Tensor, share: float) -> Tensor:
    return F.cross_entropy(outputs[0], targets)


def predsim_loss(outputs: Outputs, targets: Tensor, share: float) -> Tensor:
    """β = 0.99 between the two losses; 1e-8 added to norms as in the original code."""
    classes = torch.eye(outputs[0].shape[1], dtype=outputs[1].dtype)[targets]
    difference = (_similarity(outputs[1]) - _similarity(classes)).square().mean()
    return 0.01 * F.cross_entropy(outputs[0], targets) + 0.99 * difference


def infopro_loss(outputs: Outputs, targets: Tensor, share: float) -> Tensor:
    """λ from (5, 0.05) at the first module to (0.2, 0.5) at the last."""
    task = F.cross_entropy(outputs[0], targets)
    return (5 - 4.8 * share) * outputs[1].mean() + (0.05 + 0.45 * share) * task


MethodRule = tuple[
    Callable[[Tensor, Tensor, Weights], Outputs], Callable[[Outputs, Tensor, float], Tensor]
]
METHODS: dict[str, MethodRule] = {
    "dgl": (dgl, cross_entropy),
    "predsim": (predsim, predsim_loss),
    "infopro": (infopro, infopro_loss),
    "auglocal": (auglocal, cross_entropy),
}


def _similarity(features: Tensor) -> Tensor:
    centered = features - features.mean(1, keepdim=True)
    unit = centered / (centered.norm(dim=1, keepdim=True) + 1e-8)
    return unit @ unit.T


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.batch_norm(
        x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True
    )


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _convolution(x: Tensor, weights: Weights, name: str) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
