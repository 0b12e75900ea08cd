"""The plan of a step is what a real step allocates, in every strategy of training."""

from __future__ import annotations

import pytest
from torch import nn

from hpff import LocalSettings, memory, models
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError
from hpff.memory import BEST, RECOMPUTED, Strategy, Workload
from hpff.memory.rehearsal import Rehearsal, Stage, best_checkpointing, count
from hpff.memory.steps import TrainingStep


def small() -> nn.Module:
    return models.create("resnet20", width=4)


SMALL = Workload(small, modules=4, image=(3, 32, 32))
STRATEGIES = [
    Strategy.of(),
    Strategy.of(segment=1),
    Strategy.of(segment=3),
    Strategy.of("dgl"),
    Strategy.of("dgl", cascade=3, patches=2),
    Strategy.of("infopro", recompute="repeatedly"),
    Strategy.of("dgl", cascade=2, patches=2, recompute="once"),
    Strategy.of("dgl", cascade=2, patches=2, recompute="blocks"),
    Strategy.of("infopro", cascade=2, patches=2, recompute="blocks", auxiliary_pool=2),
    Strategy.of("predsim", cascade=2, patches=2),
    Strategy.of("infopro", cascade=2, patches=2),
    Strategy.of("auglocal", cascade=2, patches=2),
]
OTHERS = [
    Workload(small, modules=4, image=(3, 32, 32), precision="bf16"),
    Workload(small, modules=4, image=(3, 32, 32), optimizer="adamw", step_per_module=True),
    Workload("timm/resnet10t", modules=3, image=(3, 64, 64)),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_plan_is_what_a_real_step_allocates(strategy: Strategy) -> None:
    assert_plan_is_real(SMALL, strategy)


@pytest.mark.parametrize("workload", OTHERS, ids=["bf16", "adamw", "timm"])
@pytest.mark.parametrize(
    "strategy", [Strategy.of(), Strategy.of(segment=1), Strategy.of("infopro", 2, 2)], ids=str
)
def test_plan_is_real_for_other_workloads(workload: Workload, strategy: Strategy) -> None:
    assert_plan_is_real(workload, strategy)


def assert_plan_is_real(workload: Workload, strategy: Strategy) -> None:
    """Every allocation of a step on the CPU is in the plan, and every release, when it comes."""
    planned = Rehearsal(workload, strategy).run(8)
    real = count(TrainingStep(workload.build(), workload, strategy), 8, workload.image)
    assert planned.curve() == real.curve()
    assert real.curve()[0] == real.curve()[-1]
    assert planned.peak == real.peak == max(real.curve())
    assert planned.at_peak() == real.at_peak()
    assert sum(planned.at_peak().values()) == planned.peak


def test_backprop_by_blocks_is_lighter_than_checkpointing_and_computes_no_more() -> None:
    stage = Stage(Workload("resnet50", image=(3, 224, 224), num_classes=1000))
    checkpointing, _ = best_checkpointing(stage, 128)
    peak, arithmetic = checkpointing.cost(128)
    own_peak, own_arithmetic = Rehearsal(stage, RECOMPUTED).cost(128)
    assert own_peak < 0.8 * peak
    assert own_arithmetic < arithmetic


def wide() -> nn.Module:
    layers = (nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(8))
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(256, 10))


@pytest.mark.parametrize("recompute", ["never", "blocks", "once", "repeatedly"])
@pytest.mark.parametrize("cascade", [1, 2])
def test_in_bf16_casts_of_weights_go_with_their_module(recompute: Recompute, cascade: int) -> None:
    strategy = Strategy.of("dgl", cascade, 1, recompute=recompute, auxiliary_width=8)
    peaks = {}
    for precision in ("fp32", "bf16"):
        workload = Workload(wide, 8, image=(1, 16, 16), precision=precision)
        peaks[precision] = memory.plan(workload, batch=2, strategies=[strategy]).rows[0].peak
    cast = 2 * 256 * 256
    assert peaks["bf16"] <= peaks["fp32"] + cascade * cast


def test_plan_says_whose_memory_it_is() -> None:
    row = memory.plan(SMALL, batch=64, strategies=[Strategy.of("dgl", 2, 2)]).rows[0]
    parameters = sum(p.numel() for p in Rehearsal(SMALL, row.strategy).step.trained.parameters())
    assert row.alive_of("parameters") == row.alive_of("optimizer") == 4 * parameters
    assert row.alive_of("inputs") == 64 * (4 * 3 * 32 * 32 + 8)
    doing, module = row.moment.rsplit(" ", 1)
    assert doing in ("carry through", "backward")
    alive = {owner.module for owner, _ in row.alive if owner.what == "activations"}
    assert {int(module), int(module) - 1} <= alive
    assert row.peak == sum(size for _, size in row.alive) == max(row.curve)


def test_checkpointing_takes_its_best_segment() -> None:
    (row,) = memory.plan(SMALL, batch=64, strategies=[Strategy.of(segment=BEST)]).rows
    peaks = {n: Rehearsal(SMALL, Strategy.of(segment=n)).peak(64) for n in (1, 2, 3, 4, 9)}
    assert row.peak == min(peaks.values()) == peaks[row.strategy.segment]


def test_largest_batch_fits_and_the_next_does_not() -> None:
    budget = 40 * 2**20
    made = memory.plan(
        SMALL, batch=64, budget=budget, strategies=[Strategy.of(), Strategy.of("predsim", 2, 2)]
    )
    for row in made.rows:
        rehearsal = Rehearsal(SMALL, row.strategy)
        assert row.largest_batch is not None
        assert rehearsal.peak(row.largest_batch) <= budget < rehearsal.peak(row.largest_batch + 1)


def test_presets_are_rows_of_their_own() -> None:
    found = memory.default_strategies(["balanced", "accurate", "dgl"])
    labels = ["bp", "bp+checkpointing", "balanced", "accurate", "dgl", "dgl+hpff"]
    assert [str(strategy) for strategy in found] == labels
    assert found[2].settings == LocalSettings(preset="balanced")
    assert str(found[2].with_settings(cascade=5)) == "auglocal+cl recompute=blocks"


def test_labels_are_rows_of_their_own() -> None:
    """Those of `hpff compare`; a method's name alone stands for two rows."""
    given = ["dgl+hilo", "predsim+pff", "dgl"]
    found = memory.default_strategies(given, cascade=3, patches=4, recompute=["once"])
    labels = ["bp", "bp+checkpointing"]
    for name in ("dgl+hilo", "predsim+pff4"):
        labels += [name, f"{name} recompute=once"]
    labels += ["dgl", "dgl+hpff4", "dgl+hpff4 recompute=once"]
    assert [str(strategy) for strategy in found] == labels
    assert found[2].settings == LocalSettings(cascade=3, patches=1)
    with pytest.raises(UserError, match=r"dgl\+hopff: unknown label"):
        memory.default_strategies(["dgl+hopff"])


def test_a_way_that_cannot_be_is_a_row_that_says_why() -> None:
    def vectors() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 10))

    workload = Workload(vectors, modules=2, image=(3, 4, 4))
    rows = memory.plan(
        workload, batch=8, strategies=[Strategy.of(), Strategy.of("dgl"), Strategy.of("infopro")]
    ).rows
    assert rows[0].peak is not None
    assert rows[1].peak is not None
    assert rows[2].peak is None
    assert "infopro takes maps" in rows[2].fault


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"image": (3, 32)}, "image is (3, 32)"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"optimizer": "sdg"}, "optimizer is 'sdg'"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"model": "resnet21"}, "unknown model 'resnet21'"),
        ({"modules": 99}, "modules=99"),
        ({"image": (3, 1, 1), "model": "torchvision/vgg11"}, "does not run on the example"),
    ],
)
def test_bad_workloads_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        memory.plan(
            Workload(**{"model": "resnet20", **settings}), batch=8, strategies=[Strategy.of()]
        )
    assert words in str(caught.value)


@pytest.mark.parametrize(("method", "modules"), [("dgl", 4), ("infopro", 5)])
def test_patches_never_take_more_memory_and_save_infopros(method: str, modules: int) -> None:
    """As they are taken by default: patch_mode "auto". See the paper's table of PFF."""
    workload = Workload("resnet20", modules=modules)
    whole, *cut = (Rehearsal(workload, Strategy.of(method, patches=n)).peak(256) for n in (1, 2, 4))
    assert all(peak <= 1.0001 * whole for peak in cut)  # but for the patches' own statistics
    if method == "infopro":
        assert cut[1] < cut[0] < 0.95 * whole
