from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from hpff import models
from hpff.torch_support.weightless import weightless

NAMES = ["resnet20", "torchvision/vgg11_bn", "timm/vit_tiny_patch16_224", "timm/convnext_atto"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_built_without_content_and_without_drawing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What draws on the device "meta" would import PyTorch's compiler."""
    monkeypatch.setattr(torch._refs, "normal", _refuse)
    with weightless():
        model = models.create(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    real = models.create(name).state_dict()
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in real.items()
    }


def _refuse(*_: object, **__: object) -> None:
    raise AssertionError


def test_no_draw_imports_the_compiler() -> None:
    draws = "[t.uniform_(), t.random_(), t.bernoulli_(), t.normal_(), t.cauchy_(), t.log_normal_()]"
    script = (
        "import sys, torch; from hpff.torch_support.weightless import weightless\n"
        f"with weightless(): t = torch.empty(3); {draws}; t.exponential_()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_other_work_is_done_as_ever() -> None:
    with weightless():
        layer = nn.Linear(3, 4)
        assert layer(torch.empty(2, 3)).shape == (2, 4)
        assert nn.init.normal_(tensor=layer.weight) is layer.weight
