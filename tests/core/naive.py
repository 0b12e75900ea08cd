"""The update rule, written down once more for chains of blocks, with nothing of the library's own.

Each loss gets its own forward from the detached input of the modules that it trains. Patches are a
loop. Only the auxiliary networks' parameters come from the learner.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner


def random_chain(seed: int, depth: int, *, norm: bool, side: int) -> nn.Sequential:
    """A small random network of ``depth`` blocks: convolutions, some strided, some residual."""
    random = torch.Generator().manual_seed(seed)

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
) -> dict[str, Tensor]:
    """Gradients of every parameter of ``learner`` whose local modules are ``modules``, by name."""
    count = len(modules)
    inputs = [images]
    for module in modules[:-1]:
        inputs.append(module(inputs[-1]).detach())

    total = torch.zeros((), dtype=images.dtype)
    for j in range(1, count + 1):
        runs = ([("independent", j, weights[0])] if independent else []) + (
            [("cascade", j - k + 1, weights[1])] if k > 1 and j >= k else []
        )
        for level, first, weight in runs:
            x = inputs[first - 1]
            for module in modules[first - 1 : j]:
                x = module(x)
            loss = (
                F.cross_entropy(x, targets) if j == count else _judge(learner, level, j, x, targets)
            )
            total = total + weight * loss
    named = dict(learner.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def _judge(learner: LocalLearner, level: str, j: int, x: Tensor, targets: Tensor) -> Tensor:
    networks = learner.cascade_auxiliary if level == "cascade" else learner.independent_auxiliary
    weights = dict(networks[str(j)].network.named_parameters())
    height, width = x.shape[2:]
    least = learner.smallest_patch
    n = next(
        n
        for n in range(learner.patches, 0, -1)
        if n == 1 or (height % n == width % n == 0 and min(height, width) >= n * least)
    )
    scores = [
        _mlp_sr(
            x[
                :,
                :,
                row * height // n : (row + 1) * height // n,
                column * width // n : (column + 1) * width // n,
            ],
            weights,
        )
        for row in range(n)
        for column in range(n)
    ]
    return F.cross_entropy(sum(scores) / n**2, targets)


def _mlp_sr(patch: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """DGL's auxiliary network as its paper and code describe it, with real 1×1 convolutions."""
    height, width = patch.shape[2:]
    x = F.adaptive_avg_pool2d(patch, (-(-height // 4), -(-width // 4)))
    for layer in range(3):
        x = F.conv2d(x, weights[f"convolutions.{layer}.linear.weight"][:, :, None, None])
        x = F.relu(_norm(x, weights, f"convolutions.{layer}.norm"))
    x = F.adaptive_avg_pool2d(x, 2).flatten(1)
    for layer in range(2):
        x = F.linear(x, weights[f"hidden.{layer}.linear.weight"])
        x = F.relu(_norm(x, weights, f"hidden.{layer}.norm"))
    return F.linear(x, weights["classifier.weight"], weights["classifier.bias"])


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(
        x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True
    )
