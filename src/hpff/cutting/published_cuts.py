"""Where published experiments cut their networks."""

from __future__ import annotations

from collections.abc import Sequence

from hpff.cutting.trace import Separator
from hpff.cutting.units import Unit

# As below, of dilated ResNets that segment. K = 2 is InfoPro's of DeepLabV3 on Cityscapes. HPFF's
# supplement has K = 4 there and does not say where it cuts: these are ours, HPFF's of the same
# backbone on ImageNet.
_DENSE_CUTS: dict[tuple[int, ...], dict[int, str]] = {
    (3, 4, 23, 3): {2: "3.12", 4: "3.0 3.9 3.17"},
}
_BACKBONE = "backbone."  # what torchvision's segmentation models call it

# Blocks in each stage -> K -> the last block of each module but the final one, as "stage.block".
_CUTS: dict[tuple[int, ...], dict[int, str]] = {
    # ResNet-32 and ResNet-110 (InfoPro; K = 32: HPFF, MAN)
    (5, 5, 5): {
        2: "2.1",
        3: "1.4 2.4",
        4: "1.2 2.1 3.0",
        8: "1.0 1.2 1.4 2.1 2.3 3.0 3.2",
    },
    (18, 18, 18): {
        2: "2.8",
        3: "1.17 2.17",
        4: "1.11 2.7 3.3",
        8: "1.4 1.11 2.0 2.7 2.14 3.3 3.10",
        16: "1.1 1.4 1.7 1.10 1.13 1.16 2.1 2.4 2.7 2.11 2.15 3.1 3.5 3.9 3.13",
        32: "1.1 1.2 1.4 1.5 1.7 1.9 1.11 1.13 1.14 1.16 1.17 "
        "2.1 2.2 2.4 2.5 2.7 2.9 2.11 2.13 2.14 2.16 2.17 "
        "3.1 3.3 3.4 3.6 3.7 3.9 3.11 3.13 3.15",
    },
    # ResNet-34 and ResNet-50 (HPFF)
    (3, 4, 6, 3): {4: "2.0 3.0 3.5"},
    # ResNet-101 and ResNeXt-101 (K = 2: InfoPro for ResNet-101, MAN for both; HPFF)
    (3, 4, 23, 3): {2: "2.0", 4: "3.0 3.9 3.17", 8: "2.0 3.1 3.5 3.9 3.13 3.17 3.21"},
    # ResNet-152 (K = 2: InfoPro; HPFF, which takes ResNet-101's cuts)
    (3, 8, 36, 3): {2: "2.5", 4: "3.0 3.9 3.17", 8: "2.0 3.1 3.5 3.9 3.13 3.17 3.21"},
}


def published_cuts(units: Sequence[Unit], count: int) -> list[Separator] | None:
    """The published split of a ResNet: blocks layer1.0, layer1.1, ...

    A transformer's is one module for each block (ViT-B: K = 12), which needs no table.

    Args:
        units: of the model, the stem first.
        count: K.

    Returns:
        Where the first K - 1 modules end; None if nobody has published such a split.
    """
    ends: dict[str, Separator | None] = {}
    stages: dict[str, int] = {}
    dense = units[-1].name.startswith(_BACKBONE)
    for unit in units[1:]:
        stage, _, block = unit.name.removeprefix(_BACKBONE).rpartition(".")
        if not (stage.removeprefix("layer").isdigit() and block.isdigit()):
            return None
        stages[stage] = stages.get(stage, 0) + 1
        ends[f"{stage.removeprefix('layer')}.{block}"] = unit.separator
    cuts = _DENSE_CUTS if dense else _CUTS
    names = cuts.get(tuple(stages.values()), {}).get(count)
    if names is None:
        return None
    return [end for name in names.split() if (end := ends[name]) is not None]
