"""The update rule for a target at each pixel, written down once more with nothing of the library's.

Only the auxiliary networks' parameters come from the learner. Patches are a loop, each predicts the
scores of its own region, and the loss looks at the pixels that count, one list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner
from naive.methods import _convolution, _norm
from naive.patches import outputs_of_patches

CLASSES = 3
VOID = 7
Weights = Mapping[str, Tensor]


class Segmenter(nn.Module):
    """Blocks, a head at their resolution, and perhaps a head of its own on the last block's input.

    The head's scores may stay smaller than the images; with ``own_head`` a mapping is returned.
    """

    def __init__(self, blocks: nn.Sequential, channels: int, before: int, *, own: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.head = nn.Conv2d(channels, CLASSES, 3, padding=1)
        self.own_head = nn.Conv2d(before, CLASSES, 1) if own else None

    def tail(self, x: Tensor, first: int) -> tuple[Tensor, Tensor | None]:
        own = None
        for position, block in enumerate(self.blocks):
            if position < first:
                continue
            if position == len(self.blocks) - 1 and self.own_head is not None:
                own = self.own_head(x)
            x = block(x)
        return self.head(x), own

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        scores, own = self.tail(x, 0)
        if own is None:
            return scores
        sides = x.shape[2:]
        return {"out": F.interpolate(scores, sides, mode="bilinear"), "aux": own}


def segmenter(depth: int, *, own: bool, norm: bool = True, side: int = 2) -> Segmenter:
    """A small one: convolutions, every other strided where ``side`` is 2."""
    channels, blocks = 3, []
    for position in range(depth):
        width = 3 + position % 2
        stride = side if position % 2 else 1
        norms = [nn.BatchNorm2d(width)] if norm else []
        blocks.append(
            nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), *norms, nn.Softplus())
        )
        before, channels = channels, width
    return Segmenter(nn.Sequential(*blocks), channels, before, own=own).double()


def pixel_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the pixels that count, each by its own; nothing where none does."""
    large = scores
    if scores.shape[2:] != targets.shape[1:]:
        large = F.interpolate(scores, targets.shape[1:], mode="bilinear", align_corners=False)
    rows = large.permute(0, 2, 3, 1)[targets != VOID]
    wanted = targets[targets != VOID]
    if not len(wanted):
        return 0 * scores.sum()
    return (torch.logsumexp(rows, 1) - rows[torch.arange(len(rows)), wanted]).mean()


def head(patch: Tensor, weights: Weights, prefix: str = "") -> Tensor:
    x = F.conv2d(patch, weights[f"{prefix}0.weight"], padding=1)
    x = F.relu(_norm(x, weights, f"{prefix}1"))
    return F.conv2d(x, weights[f"{prefix}3.weight"], weights[f"{prefix}3.bias"])


def dgl(patch: Tensor, image: Tensor, weights: Weights) -> list[Tensor]:
    return [head(patch, weights)]


def auglocal(patch: Tensor, image: Tensor, weights: Weights) -> list[Tensor]:
    x, layer = patch, 0
    while f"{layer}.conv1.weight" in weights:
        out = F.conv2d(x, weights[f"{layer}.conv1.weight"], padding=1)
        out = F.relu(_norm(out, weights, f"{layer}.bn1"))
        out = _norm(
            F.conv2d(out, weights[f"{layer}.conv2.weight"], padding=1), weights, f"{layer}.bn2"
        )
        if f"{layer}.shortcut.0.weight" in weights:
            x = F.conv2d(x, weights[f"{layer}.shortcut.0.weight"])
            x = _norm(x, weights, f"{layer}.shortcut.1")
        x, layer = F.relu(out + x), layer + 1
    return [F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])]


def infopro(patch: Tensor, image: Tensor, weights: Weights) -> list[Tensor]:
    scores = head(patch, weights, "head.")
    x = F.conv2d(patch, weights["decoders.0.first.weight"], weights["decoders.0.first.bias"])
    for step, share in enumerate((4, 2, 1)):
        x = F.relu(_norm(x, weights, f"decoders.0.norms.{step}"))
        sides = tuple(-(-side // share) for side in image.shape[2:])
        x = F.interpolate(x, sides, mode="bilinear", align_corners=True)
        x = _convolution(x, weights, f"decoders.0.enlarge.{step}")
    error = F.binary_cross_entropy(x.sigmoid(), image.clamp(0, 1), reduction="none")
    return [scores, error.mean((1, 2, 3))]


def infopro_loss(outputs: list[Tensor], targets: Tensor, share: float) -> Tensor:
    task = pixel_loss(outputs[0], targets)
    return (5 - 4.8 * share) * outputs[1].mean() + (0.05 + 0.45 * share) * task


def score_loss(outputs: list[Tensor], targets: Tensor, share: float) -> Tensor:
    return pixel_loss(outputs[0], targets)


METHODS: dict[str, tuple[Callable[..., list[Tensor]], Callable[..., Tensor]]] = {
    "dgl": (dgl, score_loss),
    "auglocal": (auglocal, score_loss),
    "infopro": (infopro, infopro_loss),
}


def naive_dense_gradients(
    learner: LocalLearner,
    ends: list[int],
    images: Tensor,
    targets: Tensor,
    *,
    method: str,
    k: int,
    independent: bool,
    weights: tuple[float, float],
    own_weight: float,
) -> dict[str, Tensor]:
    """Gradients of every parameter; modules end after blocks ``ends``, and with the head."""
    model = learner.model
    assert isinstance(model, Segmenter)
    starts, count = [0, *(end + 1 for end in ends)], len(ends) + 1
    inputs = [images]
    for first, end in zip(starts, ends, strict=False):
        inputs.append(model.blocks[first : end + 1](inputs[-1]).detach())
    total = torch.zeros((), dtype=images.dtype)
    for j in range(1, count + 1):
        runs = ([("independent", j, weights[0])] if independent else []) + (
            [("cascade", j - k + 1, weights[1])] if k > 1 and j >= k else []
        )
        for level, first, weight in runs:
            if j == count:
                loss = _final_loss(
                    model, inputs[first - 1], starts[first - 1], images, targets, own_weight
                )
            else:
                x = model.blocks[starts[first - 1] : ends[j - 1] + 1](inputs[first - 1])
                share = (j - 1) / max(count - 2, 1)
                loss = _local_loss(learner, method, level, j, x, images, targets, share)
            total = total + weight * loss
    named = dict(learner.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(named.items(), found, strict=True)
    }


def _final_loss(
    model: Segmenter, x: Tensor, first: int, images: Tensor, targets: Tensor, own_weight: float
) -> Tensor:
    scores, own = model.tail(x, first)
    if own is None:
        return pixel_loss(scores, targets)
    scores = F.interpolate(scores, images.shape[2:], mode="bilinear")
    return pixel_loss(scores, targets) + own_weight * pixel_loss(own, targets)


def _local_loss(
    learner: LocalLearner,
    method: str,
    level: str,
    j: int,
    x: Tensor,
    images: Tensor,
    targets: Tensor,
    share: float,
) -> Tensor:
    networks = learner.cascade_auxiliary if level == "cascade" else learner.independent_auxiliary
    weights = dict(networks[str(j)].network.named_parameters())
    n = learner.partition[j - 1].patches
    outputs_of, loss = METHODS[method]
    (h, w), (top, left) = (s // n for s in x.shape[2:]), (s // n for s in images.shape[2:])
    places = [(row, column) for row in range(n) for column in range(n)]
    patches = [
        (
            x[:, :, row * h : (row + 1) * h, column * w : (column + 1) * w],
            images[:, :, row * top : (row + 1) * top, column * left : (column + 1) * left],
        )
        for row, column in places
    ]
    of_patches = outputs_of_patches(outputs_of, patches, weights, learner.settings.patch_norm)
    whole = [x.new_zeros(len(x), CLASSES, n * h, n * w)]
    whole += [torch.zeros_like(out) for out in of_patches[0][1:]]
    for (row, column), outputs in zip(places, of_patches, strict=True):
        rows, columns = slice(row * h, (row + 1) * h), slice(column * w, (column + 1) * w)
        whole[0][:, :, rows, columns] = outputs[0]
        whole[1:] = [a + b / n**2 for a, b in zip(whole[1:], outputs[1:], strict=True)]
    return loss(whole, targets, share)
