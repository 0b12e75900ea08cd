"""Where a network looks: activation maps, and maps of what speaks for a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpff.analysis.networks import Network, evaluating


def activation_maps(network: Network, inputs: Any) -> list[Tensor | None]:
    """The mean size of each module's activations, position by position.

    Args:
        network: whose modules.
        inputs: a batch of B images.

    Returns:
        For each module (B, h, w), from 0 to 1 in each image; None where it passes on no maps.
    """
    return [
        _scaled(each.abs().mean(1)) if each.ndim == 4 else None for each in network.features(inputs)
    ]


def class_activation_maps(
    network: Network, inputs: Any, classes: Tensor | None = None
) -> list[Tensor | None]:
    """Grad-CAM at every module: the positions that speak for a class.

    Selvaraju et al., "Grad-CAM", ICCV 2017, https://arxiv.org/abs/1610.02391: channels are weighted
    by the mean gradient of the class's score, summed, and what speaks against it is cut off. The
    gradient runs through the whole network, as after any training.

    Args:
        network: whose modules.
        inputs: a batch of B images.
        classes: (B,), None for those that the network answers.

    Returns:
        For each module (B, h, w), from 0 to 1 in each image; None where it passes on no maps.
    """
    taps: dict[int, Tensor] = {}
    with torch.enable_grad(), evaluating(network.model):
        outputs, logits = network.outputs(inputs, taps)
        chosen = logits.argmax(1) if classes is None else classes.to(logits.device)
        score = logits.gather(1, chosen[:, None]).sum()
        known = [taps[place.module] for place in network.places if place.module in taps]
        gradients = iter(torch.autograd.grad(score, known, allow_unused=True))
    slopes = [
        _or_zeros(next(gradients), output) if place.module in taps else torch.zeros_like(output)
        for place, output in zip(network.places, outputs, strict=True)
    ]
    features = network.read(inputs, [output.detach() for output in outputs])
    return [
        _speaking(maps, slope) if maps.ndim == 4 else None
        for maps, slope in zip(features, network.read(inputs, slopes), strict=True)
    ]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _speaking(maps: Tensor, slope: Tensor) -> Tensor:
    weights = slope.mean((2, 3), keepdim=True)
    return _scaled((weights * maps).sum(1).clamp(min=0))


def _scaled(maps: Tensor) -> Tensor:
    """Each image's map from 0 to 1."""
    low = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp(min=1e-30), torch.zeros_like(maps))
