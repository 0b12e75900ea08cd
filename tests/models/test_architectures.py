"""The walk over families of torchvision, timm and transformers: one step of each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from architectures import learner
from families import FAMILIES, Family

from hpff import check_gradients
from hpff.errors import UserError
from hpff.torch_support.model_io import call_model, logits_of

SMALL = [family for family in FAMILIES if not family.big]
EXACT = (
    ("torchvision", "ShuffleNetV2"),
    ("timm", "cait"),
    ("timm", "convnext"),
    ("timm", "densenet"),
    ("timm", "mambaout"),
    ("timm", "swin_transformer"),
    ("timm", "xcit"),
    ("transformers", "Dinov2WithRegisters (images)"),
    ("transformers", "Segformer (images)"),
    ("transformers", "Bart (text)"),
    ("transformers", "Bert (text)"),
    ("transformers", "GPTJ (text)"),
    ("transformers", "Longformer (text)"),
)
# What libraries warn of in their own models, when they are built or run.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def built(family: Family) -> torch.nn.Module:
    if family.library == "transformers":
        pytest.importorskip("transformers", minversion="5.0")
    return family.build()


def test_the_list_is_long_enough() -> None:
    trained = [family for family in SMALL if not family.leaks]
    assert len({family.name for family in trained if family.library == "timm"}) >= 60
    assert len({family.name for family in trained if family.library == "transformers"}) >= 60
    assert len({(family.library, family.name) for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.long
@pytest.mark.parametrize(
    "family", SMALL, ids=lambda family: f"{family.library}-{family.name.replace(' ', '-')}"
)
def test_one_step(family: Family) -> None:
    """Every weight that backprop trains gets a finite gradient; or the leak is named."""
    model = built(family)
    inputs, targets = family.inputs(), family.targets()
    keys = list(model.state_dict())
    if family.leaks:
        with pytest.raises(UserError, match=r"modules=3: .*(would leak: .* reaches|the batch)"):
            learner(family, model)
        return

    losses = learner(family, model).backward(inputs, targets)

    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert torch.isfinite(losses.total)
    assert list(model.state_dict()) == keys
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert found.keys() >= trained_by_backprop(family, model)


def trained_by_backprop(family: Family, model: torch.nn.Module) -> set[str]:
    """Names of the parameters that get a gradient by backprop."""
    model.zero_grad()
    logits_of(call_model(model, family.inputs())).sum().backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "family",
    [family for family in FAMILIES if (family.library, family.name) in EXACT],
    ids=lambda family: f"{family.library}-{family.name.replace(' ', '-')}",
)
def test_gradients_equal_the_naive_ones(family: Family) -> None:
    """Some of these compute in float32 inside, whatever the type of their weights."""
    model = built(family).double()
    found = learner(family, model, torch.float64)
    inputs = family.inputs(torch.float64)
    assert check_gradients(found, inputs, family.targets(), tolerance=1e-6) == {}


def test_all_of_these_are_in_the_list() -> None:
    assert set(EXACT) <= {(family.library, family.name) for family in SMALL}
