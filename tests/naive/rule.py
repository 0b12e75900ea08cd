"""The update rule, written down once more for chains of blocks, with nothing of the library's own.

Each loss gets its own forward from the detached input of the modules that it trains. Patches are a
loop. Only the auxiliary networks' parameters come from the learner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner
from naive.methods import METHODS
from naive.patches import outputs_of_patches


def random_chain(seed: int, depth: int, *, norm: bool, side: int) -> nn.Sequential:
    """A small random network of ``depth`` blocks: convolutions, some strided, some residual."""
    random = torch.Generator(torch.get_default_device()).manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=random))

    blocks: list[nn.Module] = []
    channels = 3
    for position in range(depth - 1):
        width = 2 + draw(4)
        stride = 2 if side >= 4 and draw(3) == 0 else 1
        blocks.append(Block(channels, width, stride, norm=norm, residual=draw(2) == 1))
        channels, side = width, (side + stride - 1) // stride
        assert position >= 0
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    return nn.Sequential(*blocks, head).double()


class Block(nn.Module):
    def __init__(
        self, channels: int, width: int, stride: int, *, norm: bool, residual: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, stride, 1)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.skip = nn.Conv2d(channels, width, 1, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        if self.skip is not None:
            out = out + self.skip(x)
        return torch.tanh(out)


def naive_gradients(
    learner: LocalLearner,
    modules: list[nn.Module],
    images: Tensor,
    targets: Tensor,
    *,
    k: int,
    independent: bool,
    weights: tuple[float, float],
    auxiliary_weight: float | str = "level",
    method: str = "dgl",
) -> dict[str, Tensor]:
    """Gradients of every parameter of ``learner`` whose local modules are ``modules``, by name."""
    count = len(modules)
    inputs = [images]
    for module in modules[:-1]:
        inputs.append(module(inputs[-1]).detach())

    total = torch.zeros((), dtype=images.dtype)
    own_total = total.clone()
    for j in range(1, count + 1):
        runs = ([("independent", j, weights[0])] if independent else []) + (
            [("cascade", j - k + 1, weights[1])] if k > 1 and j >= k else []
        )
        for level, first, weight in runs:
            x = inputs[first - 1]
            for module in modules[first - 1 : j]:
                x = module(x)
            loss = (
                F.cross_entropy(x, targets)
                if j == count
                else _auxiliary_loss(learner, method, level, j, x, images, targets)
            )
            total = total + weight * loss
            own = weight if auxiliary_weight == "level" else auxiliary_weight
            own_total = own_total + own * loss
    named = dict(learner.named_parameters())
    model = {name for name in named if name.startswith("model.")}
    gradients = {}
    for names, loss in ((model, total), (named.keys() - model, own_total)):
        if names and loss.requires_grad:
            wanted = [named[name] for name in names]
            found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=True)
            gradients.update(zip(names, found, strict=True))
    return {
        name: torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
        for name, parameter in named.items()
    }


def _auxiliary_loss(
    learner: LocalLearner,
    method: str,
    level: str,
    j: int,
    x: Tensor,
    images: Tensor,
    targets: Tensor,
) -> Tensor:
    networks = learner.cascade_auxiliary if level == "cascade" else learner.independent_auxiliary
    weights = dict(networks[str(j)].network.named_parameters())
    cut_alike = [x, images] if method == "infopro" else [x]
    sides = [side for maps in cut_alike for side in maps.shape[2:]]
    n = next(
        n
        for n in range(learner.settings.patches, 0, -1)
        if n == 1 or all(s % n == 0 and s >= n * learner.settings.smallest_patch for s in sides)
    )
    outputs, loss = METHODS[method]
    patches = [
        (_patch(x, n, row, column), _patch(images, n, row, column))
        for row in range(n)
        for column in range(n)
    ]
    of_patches = outputs_of_patches(outputs, patches, weights, learner.settings.patch_norm)
    fused = tuple(sum(each) / n**2 for each in zip(*of_patches, strict=True))
    return loss(fused, targets, (j - 1) / max(len(learner.partition) - 2, 1))


def _patch(maps: Tensor, n: int, row: int, column: int) -> Tensor:
    height, width = maps.shape[2] // n, maps.shape[3] // n
    rows, columns = slice(row * height, (row + 1) * height), slice(column * width, None)
    return maps[:, :, rows, columns][..., :width]


def flat_gradients(learner: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
