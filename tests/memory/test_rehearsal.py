"""What is remembered changes no figure: every rehearsal is what it is when all is done anew."""

from __future__ import annotations

import pytest
from torch import nn

from hpff import models
from hpff.memory import Strategy, Workload
from hpff.memory.ledger import Ledger
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing
from hpff.models.cifar_resnet import BasicBlock

HPFF = Strategy.of("dgl", cascade=2, patches=2)
BLOCKS = HPFF.with_settings(recompute="blocks")
INFOPRO = Strategy.of("infopro", recompute="blocks")
WAYS = [
    Strategy.of(segment=2),
    HPFF,
    BLOCKS,
    HPFF.with_settings(recompute="repeatedly"),
    Strategy.of("auglocal", cascade=2, patches=2),
    INFOPRO,
    Strategy.of("dgl", cascade=3, patches=2, patch_mode="one-by-one"),
]


def narrow() -> nn.Module:
    """Some blocks alike, in two widths."""
    blocks = [BasicBlock(4, 4, 1), BasicBlock(4, 4, 1), BasicBlock(4, 6, 2), BasicBlock(6, 6, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)]
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *blocks, nn.Sequential(*head))


def vit() -> nn.Module:
    settings = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "num_heads": 2, "depth": 4}
    return models.create("timm/vit_tiny_patch16_224", **settings)


NARROW = Workload(narrow, 5, image=(3, 16, 16))
STEPPED = Workload(narrow, 5, image=(3, 16, 16), optimizer="adamw", step_per_module=True)
CASES = [
    *((NARROW, way) for way in WAYS),
    (STEPPED, BLOCKS),
    (Workload(narrow, 5, image=(3, 16, 16), precision="bf16"), HPFF),
    (Workload("torchvision/vgg11", 4), BLOCKS),
    (Workload(vit, 4, image=(3, 16, 16)), HPFF),
    (Workload("timm/resnet14t", 3, balance="memory", image=(3, 64, 64)), BLOCKS),
]


def seen(ledger: Ledger) -> object:
    """All that a plan shows."""
    return ledger.peak, ledger.peak_phase, ledger.curve(), ledger.at_peak()


@pytest.fixture(scope="module")
def stages() -> dict[Workload, Stage]:
    """Those that were rehearsed on before."""
    return {}


@pytest.mark.long
@pytest.mark.parametrize(("workload", "way"), CASES, ids=range(len(CASES)))
def test_what_is_remembered_changes_no_figure(
    stages: dict[Workload, Stage], workload: Workload, way: Strategy
) -> None:
    anew = Rehearsal(Stage(workload, remembers=False), way)
    shared = Rehearsal(stages.setdefault(workload, Stage(workload)), way)
    assert seen(shared.run(8)) == seen(anew.run(8))
    assert str(shared.step.partition) == str(anew.step.partition)


def test_another_cut_of_a_stage_has_its_own_backprop() -> None:
    stage = Stage(NARROW)
    Rehearsal(stage, Strategy.of()).run(8)
    other = Rehearsal(stage.with_cut(2, "blocks"), Strategy.of())
    assert len(other.step.partition) == 2


def test_what_is_repeated_counts_in_the_arithmetic() -> None:
    stage = Stage(NARROW)
    expected = Rehearsal(Stage(NARROW, remembers=False), HPFF).cost(8)
    assert [Rehearsal(stage, HPFF).cost(8) for _ in range(2)] == [expected] * 2


def test_networks_alike_are_computed_once() -> None:
    stage = Stage(NARROW)
    counts = []
    for _ in range(2):
        Rehearsal(stage, HPFF).run(8)
        assert stage.known is not None
        counts.append(len(stage.known))
    assert counts[0] == counts[1] <= 9  # networks of both levels at 4 cuts, and backprop
    assert all(stage.known.values())


def test_what_was_seen_of_one_batch_is_not_taken_for_another() -> None:
    rehearsal = Rehearsal(Stage(NARROW), HPFF)
    small, large = rehearsal.run(8), rehearsal.run(24)
    assert seen(large) != seen(small)
    assert seen(large) == seen(Rehearsal(Stage(NARROW, remembers=False), HPFF).run(24))


def test_the_best_checkpointing_is_what_it_is_alone() -> None:
    best, ledger = best_checkpointing(Stage(NARROW), 8)
    alone = Rehearsal(Stage(NARROW, remembers=False), best.strategy)
    assert seen(ledger) == seen(alone.run(8))
