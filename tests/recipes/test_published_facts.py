"""Recipes, settings and tables against facts that were typed from the paper, not from them.

`published_facts.yaml` holds the facts. A test here that fails says that a published number changed.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from hpff import LocalLearner, data, methods, models
from hpff.auxiliary import ConvMLP, task_head
from hpff.cutting.published_cuts import published_cuts
from hpff.cutting.units import Unit
from hpff.data.augmentation import Augmentation
from hpff.data.resized_crop import ResizedCrop
from hpff.experiments import paper_tables
from hpff.methods import DGL, AugLocal, AuxiliaryContext, InfoPro, PredSim
from hpff.recipes import files as recipe_files
from hpff.recipes.recipe import Recipe
from hpff.torch_support.fake_tensors import FakeTensors
from hpff.training.rate import rate

FACTS = yaml.safe_load((Path(__file__).parents[1] / "published_facts.yaml").read_text())
EVERY = [
    name
    for name, _ in recipe_files.names()
    if not name.startswith(("camvid/", "cityscapes/"))  # see test_segmentation_facts.py
    and not name.endswith("-accurate")  # see test_presets.py
]
SPLITS = [(tuple(s["blocks"]), count) for s in FACTS["splits"] for count in s["cuts"]]
LAMBDAS = [(place, modules) for place, known in FACTS["infopro"].items() for modules in known]


def place(module: int, modules: int) -> AuxiliaryContext:
    image = (3, 8, 8)
    return AuxiliaryContext(module, modules, "cascade", (4, 8, 8), image, (), 3, 1, F.cross_entropy)


def words_of(name: str) -> tuple[str, str, str, str]:
    """Data, network, method and what is switched on, as a recipe's name says them."""
    folder, _, rest = name.partition("/")
    network, *words = rest.split("-")
    words = [word for word in words if not word.startswith("k")]
    return folder, network, words[0], "-".join(words[1:])


@pytest.mark.parametrize("name", EVERY)
def test_recipes_have_the_published_settings(name: str) -> None:
    recipe = recipe_files.load(name)
    if name == "demo":
        facts, optimizer = FACTS["demo"], FACTS["sgd"]
        assert recipe.to_plain()["model"] == facts["model"]
        assert (recipe.data, recipe.local.method_name) == (facts["data"], facts["method"])
        assert recipe.local.modules == facts["modules"]
    else:
        folder, network, _, _ = words_of(name)
        facts = FACTS["data"][folder] | (FACTS["vit"] if network == "vit_b_16" else {})
        optimizer = FACTS["sgd"]
        assert (recipe.data, recipe.model.name) == (folder, FACTS["models"][network])
        facts = facts | {"rate": FACTS["rates"].get(network, facts["rate"])}
    assert (recipe.epochs, recipe.batch_size) == (facts["epochs"], facts["batch_size"])
    if "vit" in name:
        assert recipe.optimizer.name == "adamw"
        return
    assert recipe.optimizer.lr == facts["rate"]
    found = recipe.to_plain()["optimizer"]
    assert {key: found[key] for key in optimizer} == optimizer
    assert found["name"] == "sgd"


@pytest.mark.parametrize("name", EVERY)
def test_recipes_have_the_published_levels_and_modules(name: str) -> None:
    recipe = recipe_files.load(name)
    weights = (
        recipe.local.independent_weight,
        recipe.local.cascade_weight,
        recipe.local.auxiliary_weight,
    )
    assert weights == (None, None, FACTS["level_weights"]["auxiliary"])
    assert (recipe.augment, recipe.precision, recipe.local.balance) == (True, "fp32", "blocks")
    if name == "demo":
        levels = (recipe.local.independent, recipe.local.cascade, recipe.local.patches)
        assert levels == (True, FACTS["cascade"], FACTS["patches"])
        return
    _, network, method, switches = words_of(name)
    assert recipe.local.method_name == method
    if method == "bp":
        assert recipe.local.is_backprop
        return
    assert recipe.local.modules in FACTS["modules"][network]
    assert f"-k{recipe.local.modules}-" in name
    k, n, more = FACTS["cascade"], FACTS["patches"], FACTS["more_patches"]
    expected = {
        "": (True, 1, 1),
        "cl": (False, k, 1),
        "hilo": (True, k, 1),
        "pff": (True, 1, n),
        "pff4": (True, 1, more),
        "hpff": (True, k, n),
    }[switches]
    assert (recipe.local.independent, recipe.local.cascade, recipe.local.patches) == expected


def rates(recipe: Recipe) -> list[float]:
    epochs = range(1, recipe.epochs + 1)
    return [rate(epoch, recipe.epochs, recipe.optimizer, recipe.schedule) for epoch in epochs]


@pytest.mark.parametrize("name", EVERY)
def test_rates_go_as_published(name: str) -> None:
    """Warm-up rises to the rate, nothing is ever above it, and the end is the published one."""
    recipe = recipe_files.load(name)
    found, full = rates(recipe), recipe.optimizer.lr
    warmup = recipe.schedule.warmup_epochs
    assert max(found) <= full
    assert found[: warmup + 1] == sorted(found[: warmup + 1])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    facts = FACTS["schedules"]["imagenet" if name.startswith("imagenet") else "cifar10"]
    assert found[-1] == pytest.approx(facts["last"] * full, abs=1e-9)
    if name == "demo":
        assert (warmup, found[0]) == (2, facts["warmup_rate"])
        return
    assert warmup == facts["warmup_epochs"]
    assert (
        found[0]
        == {
            "imagenet": full,
            "vit": 1e-6,
            "cifar": facts.get("warmup_rate"),
        }["vit" if "vit" in name else "imagenet" if "imagenet" in name else "cifar"]
    )


def test_the_middle_of_the_published_warm_up() -> None:
    """Epoch 6 of 400: half the cosine's 0.8 (1 + cos(6 pi / 400)) / 2, half 0.01."""
    assert rates(recipe_files.load("cifar10/resnet32-bp"))[5] == pytest.approx(0.404778, abs=1e-6)


@pytest.mark.parametrize("name", FACTS["data"])
def test_data_sets_are_normalized_and_augmented_as_published(name: str) -> None:
    with FakeTensors():  # ImageNet takes no memory
        facts, found = FACTS["data"][name], data.blank(name)
    assert [255 * value for value in found.mean] == pytest.approx(facts["mean"])
    assert [255 * value for value in found.std] == pytest.approx(facts["std"])
    kind = ResizedCrop if name == "imagenet" else Augmentation
    assert found.augmentation == kind(**facts["augmentation"])
    assert found.image_shape(None) == (3, facts["side"], facts["side"])
    assert (len(found.train), len(found.test)) == (facts["train"], facts["test"])


@pytest.mark.parametrize(("blocks", "count"), SPLITS)
def test_networks_are_cut_as_published(blocks: tuple[int, ...], count: int) -> None:
    """The units' separators are their names here."""
    (facts,) = [split for split in FACTS["splits"] if tuple(split["blocks"]) == blocks]
    names = [
        f"{stage}.{block}" for stage, length in enumerate(blocks, 1) for block in range(length)
    ]
    stem = Unit("conv1", (1,), None)
    units: list[Any] = [stem, *(Unit(f"layer{name}", (1,), name) for name in names)]  # type: ignore[arg-type]
    found: Any = published_cuts(units, count)
    assert found == facts["cuts"][count]
    assert len(found) == count - 1


@pytest.mark.parametrize(("where", "modules"), LAMBDAS)
def test_infopros_weights_are_the_published_ones(where: str, modules: int) -> None:
    folder, _, network = where.partition("/")
    facts = FACTS["infopro"][where][modules]
    found = methods.published("infopro", network=network, data=folder, modules=modules)
    assert found["reconstruction"] == [facts["first"][0], facts["last"][0]]
    assert found["classification"] == [facts["first"][1], facts["last"][1]]


@pytest.mark.parametrize("name", [name for name in EVERY if "-infopro" in name])
def test_recipes_of_infopro_have_its_weights(name: str) -> None:
    """Those of their network, data and K; where there are none, of the nearest K, or CIFAR-10's."""
    recipe = recipe_files.load(name)
    folder, network, _, _ = words_of(name)
    network = recipe.model.name.rpartition("/")[2]
    method = methods.create(recipe.local.method_name, **recipe.local.method_settings)
    assert isinstance(method, InfoPro)
    known = FACTS["infopro"].get(f"{folder}/{network}", FACTS["infopro"]["cifar10/resnet32"])
    assigned = {16: 16, 8: 8, 55: 55, 32: 16, 4: 2} if folder != "imagenet" else {4: 2, 8: 2}
    modules = assigned[recipe.local.modules]
    if f"{folder}/{network}" not in FACTS["infopro"]:
        modules = 16
    facts = known.get(modules, known.get(16))
    assert (method.reconstruction[0], method.classification[0]) == tuple(facts["first"])
    assert (method.reconstruction[1], method.classification[1]) == tuple(facts["last"])
    settings = FACTS["infopro_settings"]
    if folder == "imagenet":
        settings = settings | {"head": "imagenet"}
    assert {key: getattr(method, key) for key in settings} == settings


@pytest.mark.parametrize(("network", "known"), FACTS["hpff_ramp"].items())
def test_hpffs_ramp_by_infopros_settings(network: str, known: dict[str, Any]) -> None:
    """At module m of K - 1 the code has 5 (1 - (m - 1) / (K - 2)), for K = 16 and 55.

    `docs/methods.md` gives the settings that do this; the ramp never comes to its end.
    """
    nominal = {"resnet32": 16, "resnet110": 55}[network]
    (r_first, c_first), (r_last, c_last) = known["first"], known["last"]
    method = InfoPro(reconstruction=(r_first, r_last), classification=(c_first, c_last))
    modules = known["modules"]
    assert modules == nominal - 1
    for module in range(1, modules):
        share = (module - 1) / (nominal - 2)
        for outputs, full in (((1.0, 0.0), 5.0), ((0.0, 1.0), 0.5)):
            scores = torch.zeros(1, 3) if outputs[1] else torch.tensor([[1e4, 0.0, 0.0]])
            given = {"reconstruction": torch.full((1,), outputs[0]), "task": scores}
            loss = method.loss(given, torch.tensor([0]), place(module, modules)).item()
            one = torch.tensor(3.0).log().item() if outputs[1] else 1.0
            assert loss / one == pytest.approx(full * (1 - share), rel=1e-4)


def test_hpffs_ramp_stands_in_the_documents() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    for known in FACTS["hpff_ramp"].values():
        (r_first, c_first), (r_last, c_last) = known["first"], known["last"]
        assert f"reconstruction: [{r_first}, {r_last:.4f}]" in page
        assert f"classification: [{c_first}, {c_last:.5f}]" in page


def test_auxiliary_networks_have_the_published_settings() -> None:
    dgl, predsim = DGL(), PredSim()
    assert {key: getattr(dgl, key) for key in FACTS["dgl"]} == FACTS["dgl"]
    assert {key: getattr(predsim, key) for key in FACTS["predsim"]} == FACTS["predsim"]
    for network, depth in FACTS["auglocal"].items():
        found = methods.published("auglocal", network=network, data="cifar10", modules=16)
        assert found == {"depth": depth}
        assert methods.create("auglocal", **found).pyramid
    found = methods.published("auglocal", network="resnet34", data="imagenet", modules=17)
    method = methods.create("auglocal", **found)
    assert isinstance(method, AugLocal)
    assert not method.pyramid


def test_auxiliary_networks_have_the_published_sizes() -> None:
    def size(network: torch.nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    for channels, count in FACTS["dgl_parameters"].items():
        assert size(ConvMLP(channels, 10)) == count
    for kind, counts in FACTS["infopro_parameters"].items():
        for channels, count in counts.items():
            assert size(task_head(channels, kind, 128, 10)) == count


def test_the_default_weights_of_the_levels() -> None:
    """Ours, so pinned: what a step reduces where nothing is said of weights."""
    facts = FACTS["level_weights"]
    images = torch.rand(4, 3, 16, 16)
    model = models.create("resnet20", 3, width=4)
    learner = LocalLearner(model, modules=5, example=images, num_classes=3)
    losses = learner.backward(images, torch.tensor([0, 1, 2, 0]))
    independent, cascade = (sum(level) for level in (losses.independent, losses.cascade))
    expected = facts["independent"] * independent + facts["cascade"] * cascade
    torch.testing.assert_close(losses.total, expected)
    assert len(losses.independent) == 5
    assert len(losses.cascade) == 4


def test_every_table_has_its_facts() -> None:
    assert {name for name, _ in paper_tables.names()} == set(FACTS["tables"])


@pytest.mark.parametrize("name", FACTS["tables"])
def test_tables_have_the_papers_numbers(name: str) -> None:
    found = {row.recipe: dict(row.paper) for row in paper_tables.load(name).rows}
    assert {recipe: numbers for recipe, numbers in found.items() if numbers} == FACTS["tables"][
        name
    ]


def test_every_run_of_the_paper_is_a_row() -> None:
    """Every packaged recipe stands in a table, but the demo's and AugLocal's."""
    rows = {row.recipe for name, _ in paper_tables.names() for row in paper_tables.load(name).rows}
    every = {name for name, _ in recipe_files.names()}
    others = {n for n in every if n == "demo" or fnmatchcase(n, "*-auglocal*") or "camvid" in n}
    assert rows | others == every
