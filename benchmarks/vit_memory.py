"""ViT in 12 modules on 32×32 images: planned peak memory of a step, beside the paper's.

    python benchmarks/vit_memory.py [--write]

fp32, batch 1024, parameters, gradients and SGD's momentum included, counted under fake tensors. The
paper (supplement, table 2) gives ViT-B/16 5.43 GB by backprop, 2.69 by DGL and 2.64 by DGL+HPFF,
and not its image or patch size. ViT-B/16 makes 2×2 tokens and a class token of a 32×32 image, and
a patch of one token is below smallest_patch, so n falls to 1 there. --write puts the table into
benchmarks/vit_memory.md.
"""

from __future__ import annotations

import argparse
from functools import partial

from memory_tables import gib, peak, table, write

from hpff import models
from hpff.memory import Strategy, Workload, plan

STRATEGIES = (
    Strategy.of(),
    Strategy.of(segment=1),
    Strategy.of("dgl"),
    Strategy.of("dgl", 2, 1),
    Strategy.of("dgl", 2, 2),
)
NETWORKS = {
    "ViT-B/16": ("timm/vit_base_patch16_224", {}),
    "ViT-B/4": ("timm/vit_base_patch16_224", {"patch_size": 4}),
    "ViT-Ti/4": ("timm/vit_tiny_patch16_224", {"patch_size": 4}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write benchmarks/vit_memory.md")
    given = parser.parse_args()
    lines = []
    for network, (name, settings) in NETWORKS.items():
        build = partial(models.create, name, img_size=32, **settings)
        found = plan(Workload(build, modules=12), batch=1024, strategies=STRATEGIES)
        backprop = peak(found.rows[0])
        tokens = found.partition[0].output_shape[0]
        patches = found.partition[0].patches
        for row in found.rows:
            n = patches if row.strategy.settings.patches > 1 else ""
            size = peak(row)
            lines.append((network, tokens, row.strategy, n, gib(size), f"{size / backprop:.2f}"))
    made = table(("network", "tokens", "method", "n", "peak, GiB", "of BP"), lines)
    print(made)
    if given.write:
        write(__file__, __doc__, made)


if __name__ == "__main__":
    main()
