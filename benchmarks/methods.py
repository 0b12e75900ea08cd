"""What every method costs: peak memory and step time, with and without HPFF, beside backprop.

    python benchmarks/methods.py [--rounds 5] [--write]

Memory: counted under fake tensors, fp32, batch 1024, gradients and SGD's momentum included. Step
time: measured at batch 64 on this machine, all methods in turns, zero_grad, forward and backward;
the median of the rounds' own ratios to backprop. --write puts the table into
benchmarks/methods.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory
import torch
import torch.nn.functional as F
from torch import Tensor

from hpff import LocalLearner, methods, models
from hpff.models import CifarResNet
from hpff.training import machine

HERE = Path(__file__).parent
METHODS = {"DGL": "dgl", "PredSim": "predsim", "InfoPro": "infopro", "AugLocal": "auglocal"}
Step = Callable[[Tensor, Tensor], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/methods.md")
    given = parser.parse_args()
    lines = ["| network | method | peak, GiB | of BP | step over BP |", "| --- |" + " --- |" * 4]
    for network, modules in memory.NETWORKS.items():
        local = {"BP": {"method": "bp"}, **_local_settings(network, modules)}
        segments = memory.best_segments(network)
        checkpointing = f"BP + checkpointing, {segments} segments"
        peaks = {name: memory.local_peak(network, modules, **kw) for name, kw in local.items()}
        peaks[checkpointing] = memory.checkpointed_peak(network, segments)
        steps = {name: _local_step(network, modules, **kw) for name, kw in local.items()}
        steps[checkpointing] = _checkpointed_step(network, segments)
        ratios = _ratios(steps, given.rounds)
        for name in ("BP", checkpointing, *list(local)[1:]):
            peak = peaks[name]
            lines.append(
                f"| {network}, K = {modules} | {name} | {peak / 2**30:.2f} "
                f"| {peak / peaks['BP']:.2f} | {ratios[name]:.2f} |"
            )
    table = "\n".join(lines)
    print(table)
    if given.write:
        (HERE / "methods.md").write_text(f"{__doc__}\n{table}\n\n{machine.describe()}\n")


def _local_settings(network: str, modules: int) -> dict[str, dict[str, Any]]:
    """Each method with the settings published for the network, alone and with HPFF."""
    settings = {}
    for label, name in METHODS.items():
        known = methods.published(name, network=network, data="cifar10", modules=modules)
        method = methods.create(name, **known)
        settings[label] = {"method": method, "cascade": 1, "patches": 1}
        settings[f"{label}+HPFF"] = {"method": method, "cascade": 2, "patches": 2}
    return settings


def _local_step(network: str, modules: int, **settings: Any) -> Step:
    learner = LocalLearner(
        models.create(network),
        modules=modules,
        example=torch.zeros(2, 3, 32, 32),
        num_classes=10,
        **settings,
    )

    def step(images: Tensor, targets: Tensor) -> object:
        learner.zero_grad()
        return learner.backward(images, targets)

    return step


def _checkpointed_step(network: str, segments: int) -> Step:
    model = models.create(network)
    assert isinstance(model, CifarResNet)

    def step(images: Tensor, targets: Tensor) -> None:
        model.zero_grad()
        F.cross_entropy(memory.checkpointed(model, segments, images), targets).backward()

    return step


def _ratios(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    torch.manual_seed(0)
    images, targets = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(2 + rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step(images, targets)
            if round_number >= 2:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - began)
    return {
        name: statistics.median(a / b for a, b in zip(times, seconds["BP"], strict=True))
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    main()
