"""What is remembered changes no figure: every rehearsal is what it is when all is done anew."""

from __future__ import annotations

import pytest
from torch import nn

from hpff import models
from hpff.memory import Strategy, Workload
from hpff.memory.ledger import Ledger
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing

HPFF = Strategy.of("dgl", cascade=2, patches=2)
WAYS = [
    Strategy.of(),
    Strategy.of(segment=2),
    Strategy.of("dgl"),
    HPFF,
    *(HPFF.with_settings(recompute=how) for how in ("blocks", "once", "repeatedly")),
    *(Strategy.of(method, cascade=2, patches=2) for method in ("infopro", "predsim", "auglocal")),
    Strategy.of("infopro", recompute="blocks"),
    Strategy.of("dgl", cascade=3, patches=2, patch_mode="one-by-one"),
]


def narrow() -> nn.Module:
    return models.create("resnet32", width=4)


def vit() -> nn.Module:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 6}
    return models.create("timm/vit_tiny_patch16_224", **settings)


WORKLOADS = {
    "resnet32": Workload(narrow, 16),
    "by module": Workload(narrow, 16, optimizer="adamw", step_per_module=True),
    "bf16": Workload(narrow, 8, precision="bf16"),
    "vgg13": Workload("torchvision/vgg13", 6),
    "vit": Workload(vit, 6),
    "bottlenecks": Workload("timm/resnet26", 4, balance="memory", image=(3, 64, 64)),
}


def seen(ledger: Ledger) -> object:
    """All that a plan shows."""
    return ledger.peak, ledger.peak_phase, ledger.curve(), ledger.at_peak()


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_what_is_remembered_changes_no_figure(workload: Workload) -> None:
    stage = Stage(workload)
    for way in WAYS:
        anew = Rehearsal(Stage(workload, remembers=False), way)
        shared = Rehearsal(stage, way)
        assert seen(shared.run(8)) == seen(anew.run(8)), way
        assert str(shared.step.partition) == str(anew.step.partition)


def test_networks_alike_are_computed_once() -> None:
    stage = Stage(WORKLOADS["resnet32"])
    for _ in range(2):
        Rehearsal(stage, HPFF).run(8)
        assert stage.known is not None
        assert 2 <= len(stage.known) <= 12  # of 29: three widths, the first and last of each
        assert all(stage.known.values())


def test_the_best_checkpointing_is_what_it_is_alone() -> None:
    workload = WORKLOADS["resnet32"]
    best, ledger = best_checkpointing(Stage(workload), 8)
    alone = Rehearsal(Stage(workload, remembers=False), best.strategy)
    assert seen(ledger) == seen(alone.run(8))
