from __future__ import annotations

import subprocess
import sys

import pytest

from hpff.torch_support.torchvision_import import timm, torchvision


def run(program: str) -> str:
    """Run the program in a fresh interpreter, with warnings as errors; return what it prints."""
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_fresh_interpreter_can_import(package):
    program = (
        f"from hpff.torch_support.torchvision_import import {package}; print({package}().__name__)"
    )
    assert run(program) == package


def test_a_working_torchvision_is_left_alone():
    program = """
import importlib
try:
    importlib.import_module("torchvision")
    works = True
except RuntimeError:
    works = False
from hpff.torch_support import torchvision_import
torchvision_import.torchvision()
print(works != bool(torchvision_import._declarations))
"""
    assert run(program) == "True"


def test_submodules_come_by_name():
    assert torchvision("datasets").__name__ == "torchvision.datasets"
    assert timm("models").__name__ == "timm.models"
    assert torchvision() is torchvision()


def test_a_model_of_each_can_be_built():
    import torch

    images = torch.zeros(1, 3, 32, 32)
    assert torchvision("models").resnet18(num_classes=4).eval()(images).shape == (1, 4)
    assert timm().create_model("resnet18", num_classes=4).eval()(images).shape == (1, 4)


def test_an_unknown_submodule_is_an_import_error():
    with pytest.raises(ModuleNotFoundError):
        torchvision("no_such_part")
