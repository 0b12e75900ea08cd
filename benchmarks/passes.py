"""What no schedule of the passes can avoid: the floor under local learning's step time.

    python benchmarks/passes.py

Backprop takes a forward and a full backward through each block. The cascade level with k = 2 takes
a forward, a backward to the input alone and one to the weights alone. Median milliseconds at batch
64, in turns over five blocks of each stage of a ResNet-32. The last lines are sums over 15 blocks:
the passes alone, and with the matrix products of two of DGL's auxiliary networks for each block
(n = 1), forward and backward, but without their BatchNorms, ReLUs, pooling and losses.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch
from torch import Tensor

from hpff.models.cifar_resnet import BasicBlock


def main() -> None:
    torch.manual_seed(0)
    total: dict[str, float] = defaultdict(float)
    for channels, side in ((16, 32), (32, 16), (64, 8)):
        found = {**_stage(channels, side), "products": 2 * _products(channels, side // 4)}
        print(f"{channels}×{side}×{side}:", ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
        for name, milliseconds in found.items():
            total[name] += 5 * milliseconds
    backprop = total["forward"] + total["input and weights"]
    local = total["forward"] + total["input alone"] + total["weights alone"]
    judged = local + total["products"]
    print(f"15 blocks: backprop {backprop:.1f}, k = 2 {local:.1f}, ratio {local / backprop:.2f}")
    print(f"with the products of 30 networks: {judged:.1f}, ratio {judged / backprop:.2f}")


def _stage(channels: int, side: int, rounds: int = 12) -> dict[str, float]:
    blocks = [BasicBlock(channels, channels, 1) for _ in range(5)]
    x = torch.rand(64, channels, side, side).to(memory_format=torch.channels_last)
    cotangent = torch.randn_like(x)
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        graphs = []
        for block in blocks:
            start = x.clone().requires_grad_()
            began = time.perf_counter()
            graphs.append((block, start, block(start)))
            seconds["forward"].append(time.perf_counter() - began)
        for name in ("input alone", "weights alone", "input and weights"):
            for block, start, output in graphs:
                weights = list(block.parameters())
                wanted: list[Tensor] = {
                    "input alone": [start],
                    "weights alone": weights,
                    "input and weights": [start, *weights],
                }[name]
                for leaf in (start, *weights):
                    leaf.grad = None
                began = time.perf_counter()
                output.backward(cotangent, inputs=wanted, retain_graph=True)
                seconds[name].append(time.perf_counter() - began)
    warm = {name: times[len(blocks) :] for name, times in seconds.items()}
    return {name: 1e3 * statistics.median(times) for name, times in warm.items()}


def _products(channels: int, side: int, batch: int = 64, rounds: int = 40) -> float:
    """Milliseconds of the matrix products of one auxiliary network, for maps pooled to ``side``."""
    convolutions = [(batch * side * side, channels, channels)] * 3
    linear = [(batch, 4 * channels, 4 * channels)] * 2 + [(batch, 4 * channels, 10)]
    made = [
        (torch.rand(rows, before), torch.rand(after, before), torch.rand(rows, after))
        for rows, before, after in convolutions + linear
    ]
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        for features, weights, cotangents in made:
            torch.mm(features, weights.t())
            torch.mm(cotangents, weights)
            torch.mm(cotangents.t(), features)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
