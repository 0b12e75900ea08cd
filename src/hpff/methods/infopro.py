"""InfoPro: keep the information of the input, learn that of the task."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary import (
    Decoder,
    DeepDecoder,
    cut,
    deep_head,
    dense_head,
    patches_in_force,
    task_head,
)
from hpff.errors import UserError, shown
from hpff.methods.base import AuxiliaryContext, Method, check_indices

# (λ1, λ2) of the first and of the last module, by data set, network and K.
_Weights = tuple[tuple[float, float], tuple[float, float]]
_PUBLISHED: dict[tuple[str, str], dict[int, _Weights]] = {
    ("cifar10", "resnet32"): {
        2: ((5, 1), (5, 1)),
        4: ((6, 0), (1, 2)),
        8: ((5, 0), (0, 2)),
        16: ((5, 0.05), (0.2, 0.5)),
    },
    ("cifar10", "resnet110"): {
        2: ((5, 0.5), (5, 0.5)),
        4: ((1, 0), (0, 1)),
        8: ((5, 0), (0, 1)),
        16: ((5, 0), (0.5, 1)),
    },
    ("stl10", "resnet110"): {
        2: ((10, 1), (10, 1)),
        4: ((20, 0.2), (5, 2)),
        8: ((20, 0.2), (5, 1)),
        16: ((20, 0.5), (10, 0.1)),
    },
    ("svhn", "resnet110"): {
        2: ((1, 0.1), (1, 0.1)),
        4: ((5, 0), (0.5, 1)),
        8: ((5, 0), (0.5, 2)),
        16: ((5, 0.2), (0.5, 1)),
    },
    ("imagenet", "resnet101"): {2: ((5, 0.75), (5, 0.75))},
    ("imagenet", "resnet152"): {2: ((5, 1), (5, 1))},
    ("imagenet", "resnext101_32x8d"): {2: ((5, 0.75), (5, 0.75))},
    ("cityscapes", "deeplabv3_resnet101"): {2: ((1.5, 1), (1.5, 1))},
}


class InfoPro(Method):
    """InfoPro: reconstruct the input, and classify or contrast.

    Wang et al., "Revisiting Locally Supervised Learning: an Alternative to End-to-end Training",
    ICLR 2021, https://arxiv.org/abs/2101.10832.

    The loss is λ1 · BCE(decoder(features), image in [0, 1]) + λ2 · task. Both λ are linear in the
    module's index, from module 1 to module K - 1. Under PFF each patch of the features
    reconstructs its own patch of the image, and the scores are averaged. In a dense task head and
    decoder are those of the paper's experiments on Cityscapes, whatever ``head`` is, each patch
    predicts its own region, and there is no contrast.

    Args:
        task: ``"softmax"`` (the criterion on class scores) or ``"contrast"`` (supervised
            contrastive loss on unit vectors).
        head: XcYf, X convolutions and Y linear layers: 0c1f to 2c3f; or ``"imagenet"``, the
            head and the decoder of the paper's experiments on ImageNet.
        hidden: F, width of the linear layers but a classifying last, at most 65536.
        widen: factor of the widths of the head's hidden layers and of the decoder's.
        reconstruction: λ1 of the first and of the last module.
        classification: λ2 of the first and of the last module. The defaults of both are those
            published for ResNet-32 with K = 16 on CIFAR-10; :meth:`published` has the others.
        temperature: of the contrastive loss.
        decoders: n of HPFF's public code: the map is cut into n×n patches for n² separate decoders
            alone, whose cross-entropies are summed; the task's head sees the whole map. Where n×n
            patches do not fit a map, n is the largest below that does. At most 64; needs PFF off.
        mean: of the images' normalization, for each channel, which is undone before they are
            compared. By default the images are taken to be in [0, 1] already.
        std: the deviation, likewise.
        dropout: in a dense task, the share of the head's hidden channels left out at random.

    Raises:
        UserError: a setting is out of range.
    """

    needs_images: bool = True
    dense: bool = True

    def __init__(
        self,
        task: str = "softmax",
        head: str = "1c2f",
        hidden: int = 128,
        widen: float = 1.0,
        reconstruction: Sequence[float] = (5.0, 0.2),
        classification: Sequence[float] = (0.05, 0.5),
        temperature: float = 0.07,
        decoders: int = 1,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        dropout: float = 0.0,
    ) -> None:
        if task not in ("softmax", "contrast"):
            raise UserError(f"infopro: task is {task!r}; expected 'softmax' or 'contrast'")
        if not isinstance(head, str) or not re.fullmatch(r"[012]c[123]f|imagenet", head):
            raise UserError(
                f"infopro: head is {head!r}; expected 0c1f, 1c1f, 1c2f, 2c2f or alike, or imagenet"
            )
        if not _is_number(widen) or not 0.1 <= widen <= 100:
            raise UserError(f"infopro: widen is {widen!r}; expected a number from 0.1 to 100")
        for name, value, most in (("hidden", hidden, 65536), ("decoders", decoders, 64)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise UserError(
                    f"infopro: {name} is {shown(value)}; expected a whole number from 1 to {most}"
                )
        if not _is_number(temperature) or temperature <= 0:
            raise UserError(f"infopro: temperature is {temperature!r}; expected a number above 0")
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise UserError(f"infopro: dropout is {dropout!r}; expected a number from 0 to below 1")
        self.dropout = float(dropout)
        self.task = task
        self.head = head
        self.hidden = hidden
        self.widen = float(widen)
        self.reconstruction = _pair("reconstruction", reconstruction)
        self.classification = _pair("classification", classification)
        self.temperature = float(temperature)
        self.decoders = decoders
        self.mean = _numbers("mean", mean, "a list of numbers, one for each channel")
        self.std = _numbers("std", std, "a list of numbers above 0, one for each channel")
        if min(self.std) <= 0:
            raise UserError(f"infopro: std is {std!r}; expected numbers above 0")

    @classmethod
    def published(cls, network: str, data: str, modules: int) -> dict[str, Any]:
        """The paper's λ, on ImageNet its head and decoder too, on Cityscapes its dropout.

        Another K takes the nearest one's, as AugLocal's code takes K = 16's for K = 55.
        """
        known = _PUBLISHED.get((data, network), {})
        if not known:
            return {}
        first, last = known[min(known, key=lambda k: abs(k - modules))]
        weights = {"reconstruction": [first[0], last[0]], "classification": [first[1], last[1]]}
        more: dict[str, Any] = {"imagenet": {"head": "imagenet"}, "cityscapes": {"dropout": 0.1}}
        return {**more.get(data, {}), **weights}

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        if len(context.features) != 3 or len(context.image) != 3:
            raise UserError(
                f"infopro takes maps and tokens on a grid; module {context.module} gives a "
                f"{context.kind} of width {context.features[0]}; use dgl or predsim, or "
                "cut elsewhere"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, context.image[0]):
                raise UserError(
                    f"infopro: {name} has {len(values)} numbers; expected 1 or one for each of the "
                    f"images' channels ({context.image[0]})"
                )
        if self.decoders > 1 and context.patches > 1:
            raise UserError(
                f"infopro: decoders is {self.decoders} with PFF's patches {context.patches}; "
                "expected patches 1, as separate decoders cut the maps themselves"
            )
        count = patches_in_force(self.decoders, context.features, context.image) ** 2
        if context.dense and self.task == "contrast":
            raise UserError("infopro: task is 'contrast' in a dense task; expected 'softmax'")
        return InfoProNetwork(
            self._head(context), self._decoders(context, count), self.mean, self.std
        )

    def _head(self, context: AuxiliaryContext) -> nn.Module:
        size = context.num_classes if self.task == "softmax" else self.hidden
        channels = context.features[0]
        if context.dense:
            hidden = max(1, int(self.widen * (channels // 2)))
            return dense_head(channels, size, hidden=hidden, dropout=self.dropout)
        if self.head == "imagenet":
            return deep_head(channels, size, self.widen, context.width)
        return task_head(channels, self.head, self.hidden, size, self.widen)

    def _decoders(self, context: AuxiliaryContext, count: int) -> list[nn.Module]:
        channels, colors = context.features[0], context.image[0]
        if self.head == "imagenet" or context.dense:
            most = context.width and max(1, context.width // 4)  # behind a linear map to `width`
            return [DeepDecoder(channels, colors, self.widen, most) for _ in range(count)]
        return [Decoder(channels, colors, self.widen) for _ in range(count)]

    def loss(
        self, outputs: Mapping[str, Tensor], targets: Tensor, context: AuxiliaryContext
    ) -> Tensor:
        share = (context.module - 1) / max(context.modules - 2, 1)
        (r_first, r_last), (c_first, c_last) = self.reconstruction, self.classification
        if self.task == "contrast":
            check_indices("infopro with task 'contrast'", targets)
            task = supervised_contrast(outputs["task"], targets, self.temperature)
        else:
            task = context.criterion(outputs["task"], targets)
        reconstruction = outputs["reconstruction"].mean()
        return (r_first + (r_last - r_first) * share) * reconstruction + (
            c_first + (c_last - c_first) * share
        ) * task

    def logits(self, outputs: Mapping[str, Tensor], context: AuxiliaryContext) -> Tensor | None:
        return outputs["task"] if self.task == "softmax" else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e30


def _numbers(name: str, values: object, expected: str) -> tuple[float, ...]:
    """The setting as floats; UserError if it is anything but a list of finite numbers."""
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
    if not is_list or not all(_is_number(value) for value in cast(Sequence[object], values)):
        raise UserError(f"infopro: {name} is {values!r}; expected {expected}")
    return tuple(float(value) for value in cast(Sequence[float], values))


def _pair(name: str, values: object) -> tuple[float, float]:
    expected = "two numbers, first and last"
    numbers = _numbers(name, values, expected)
    if len(numbers) != 2:
        raise UserError(f"infopro: {name} is {values!r}; expected {expected}")
    return numbers[0], numbers[1]


class InfoProNetwork(nn.Module):
    """A task head, and decoders back to the image: one, or one for each of n×n patches.

    Takes features (B, C, h, w) and images (B, c, H, W); gives ``task`` (B, size) and
    ``reconstruction`` (B,), the binary cross-entropy of each image's decoding, mean over pixels,
    summed over decoders.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        head: nn.Module,
        decoders: Sequence[nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.head = head
        self.decoders = nn.ModuleList(decoders)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, maps: Tensor, images: Tensor) -> dict[str, Tensor]:
        n = math.isqrt(len(self.decoders))
        wanted = (images * self.std + self.mean).clamp(0, 1)
        errors = [
            _decoding_error(decoder, *part)
            for decoder, *part in zip(
                self.decoders, _parts(maps, n), _parts(wanted, n), strict=True
            )
        ]
        return {"task": self.head(maps), "reconstruction": sum(errors[1:], errors[0])}


def _decoding_error(decoder: nn.Module, maps: Tensor, wanted: Tensor) -> Tensor:
    height, width = wanted.shape[2:]
    decoded = decoder(maps, (height, width))
    error = F.binary_cross_entropy_with_logits(decoded, wanted.to(decoded.dtype), reduction="none")
    return error.mean((1, 2, 3))


def _parts(maps: Tensor, n: int) -> Sequence[Tensor]:
    if n == 1:
        return [maps]
    if maps.shape[2] % n or maps.shape[3] % n:
        raise UserError(
            f"infopro: maps of {maps.shape[2]}×{maps.shape[3]} cannot be cut for {n}×{n} decoders; "
            "give images of the example's size"
        )
    return cut(maps, n).unbind(1)


def supervised_contrast(vectors: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss L_out with one view of each sample.

    Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020,
    https://arxiv.org/abs/2004.11362.

    Args:
        vectors: (B, F), made unit vectors here.
        targets: (B,) class indices. A sample alone in its class contributes 0.
        temperature: what similarities are divided by.

    Returns:
        A scalar, the mean over all B samples.
    """
    unit = F.normalize(vectors, dim=1)
    alike = unit @ unit.T / temperature
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    log_share = F.log_softmax(alike.masked_fill(itself, float("-inf")), dim=1)
    positive = (targets[:, None] == targets[None, :]) & ~itself
    summed = log_share.masked_fill(~positive, 0.0).sum(1)
    return -(summed / positive.sum(1).clamp(min=1)).mean()
