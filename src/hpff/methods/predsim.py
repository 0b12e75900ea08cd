"""PredSim: a prediction loss and a similarity-matching loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hpff.errors import UserError, shown
from hpff.methods.base import AuxiliaryContext, Method, check_indices


class PredSim(Method):
    """PredSim: prediction and similarity matching.

    Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019,
    https://arxiv.org/abs/1901.06656.

    The loss is (1 - β) · criterion(prediction) + β · mean squared difference between the
    features' similarity matrix and the labels'. Under PFF both the predictions and the similarity
    features are averaged over patches first.

    Args:
        beta: β.
        feature_size: D; features are average-pooled until no more than D numbers are left for
            the prediction; at most 1000000. AugLocal's code has 512 for CIFAR ResNets, the
            original 2048 or 4096.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(self, beta: float = 0.99, feature_size: int = 512) -> None:
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta <= 1:
            raise UserError(f"predsim: beta is {beta!r}; expected a number from 0 to 1")
        known = isinstance(feature_size, int) and not isinstance(feature_size, bool)
        if not known or not 1 <= feature_size <= 10**6:
            raise UserError(
                f"predsim: feature_size is {shown(feature_size)}; expected a whole number from 1 "
                "to 1000000"
            )
        self.beta = float(beta)
        self.feature_size = feature_size

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        return PredSimNetwork(context.features, context.num_classes, self.feature_size)

    def loss(
        self, outputs: Mapping[str, Tensor], targets: Tensor, context: AuxiliaryContext
    ) -> Tensor:
        check_indices("predsim", targets)
        classes = torch.arange(context.num_classes, device=targets.device)
        wanted = (targets[:, None] == classes).to(outputs["similarity"].dtype)
        difference = similarity_matrix(outputs["similarity"]) - similarity_matrix(wanted)
        prediction = context.criterion(outputs["logits"], targets)
        return (1 - self.beta) * prediction + self.beta * difference.square().mean()


class PredSimNetwork(nn.Module):
    """Class scores from pooled features, and features whose similarity is matched.

    Takes (B, C, H, W), gives ``logits`` (B, num_classes) and ``similarity`` (B, C), or (B, C·H·W)
    for maps of a single row. Of vectors (B, D) nothing is pooled, and a linear layer stands for
    the convolution, as in the original code.
    """

    def __init__(self, features: tuple[int, ...], num_classes: int, feature_size: int) -> None:
        super().__init__()
        channels = features[0]
        if len(features) == 1:
            size = channels
            self.pool: nn.Module = nn.Identity()
            self.convolution: nn.Module = nn.Linear(channels, channels, bias=False)
        else:
            self.pool, size = _pool(channels, features[1], features[2], feature_size)
            self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.classifier = nn.Linear(size, num_classes)
        nn.init.zeros_(self.classifier.weight)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.pool(maps).flatten(1))
        return {"logits": logits, "similarity": similarity_features(self.convolution(maps))}


def similarity_features(maps: Tensor) -> Tensor:
    """The standard deviation (unbiased) of each channel over positions, (B, C).

    As in the original code only where there are more than 3 channels and more than one row;
    other maps are flattened, and vectors stay as they are.
    """
    if maps.ndim == 4 and maps.shape[1] > 3 and maps.shape[2] > 1:
        positions = maps.flatten(2)
        centered = positions - positions.mean(2, keepdim=True)
        variance = centered.mul(centered).sum(2) / (positions.shape[2] - 1)
        # As torch.std, in a third of the time; a constant channel has gradient 0.
        return variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return maps.flatten(1)


def similarity_matrix(features: Tensor) -> Tensor:
    """Cosine similarity (B, B) of samples (B, D), each sample centered over its features."""
    centered = features - features.mean(1, keepdim=True)
    unit: Tensor = centered / (centered.norm(dim=1, keepdim=True) + 1e-8)
    return (unit @ unit.T).clamp(-1, 1)


def _pool(channels: int, height: int, width: int, most: int) -> tuple[nn.Module, int]:
    """Average pooling whose kernel doubles, height first, in turns, until the output is small."""
    kernel = [1, 1]
    sides = (height, width)

    def out(axis: int) -> int:
        return math.ceil(sides[axis] / kernel[axis])

    while channels * out(0) * out(1) > most and (out(0) > 1 or out(1) > 1):
        for axis in (0, 1):
            if channels * out(0) * out(1) > most:
                kernel[axis] *= 2
    padding = [kernel[axis] * (out(axis) - sides[axis] // kernel[axis]) // 2 for axis in (0, 1)]
    pool = nn.AvgPool2d((kernel[0], kernel[1]), padding=(padding[0], padding[1]))
    with torch.no_grad():
        size = pool(torch.zeros(1, channels, height, width)).numel()
    return pool, size
