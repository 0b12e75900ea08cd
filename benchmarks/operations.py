"""The operations of one training step over backprop's: convolutions and matrix products, counted.

    python benchmarks/operations.py [--network resnet32 --modules 16 --batch 64]

Exact, and the same on every machine: what step time would be if nothing else took any. With k = 2
a module of c layers takes one backward of input gradients through c layers for the cascade that
ends there, and one of weight gradients, which goes through c - 1 of them again.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from hpff import LocalLearner, models
from hpff.memory import Strategy

HPFF = Strategy.of("dgl", cascade=2, patches=2)
LEAN = [HPFF.with_settings(recompute=way) for way in ("once", "blocks", "repeatedly")]
STRATEGIES = (Strategy.of(), Strategy.of("dgl"), Strategy.of("dgl", cascade=2), HPFF, *LEAN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet32")
    parser.add_argument("--modules", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    images, targets = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    base = 0
    print("| method | convolutions, GFLOP | matrix products, GFLOP | over BP |")
    print("| --- | ---: | ---: | ---: |")
    for strategy in STRATEGIES:
        learner = LocalLearner.from_settings(
            models.create(given.network),
            strategy.with_settings(modules=given.modules).settings,
            example=images[:2],
            num_classes=10,
        )
        with FlopCounterMode(display=False) as counter:
            learner.backward(images, targets)
        total = counter.get_total_flops()
        found = counter.get_flop_counts()["Global"]
        convolutions = sum(n for name, n in found.items() if "convolution" in str(name))
        base = base or total
        print(
            f"| {strategy} | {convolutions / 1e9:.2f} | {(total - convolutions) / 1e9:.2f} "
            f"| {total / base:.3f} |"
        )


if __name__ == "__main__":
    main()
