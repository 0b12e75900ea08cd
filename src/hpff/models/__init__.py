"""Backbones by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from hpff import torchvision_import
from hpff.errors import UserError
from hpff.models.cifar_resnet import DEPTHS, CifarResNet

__all__ = ["CifarResNet", "create", "names"]

_OWN = {f"resnet{depth}": depth for depth in DEPTHS}


def create(name: str, num_classes: int = 10, *, in_channels: int = 3, **settings: Any) -> nn.Module:
    """A backbone with random weights.

    Args:
        name: ``resnet32`` and its like (CIFAR ResNets), ``torchvision/NAME`` or ``timm/NAME``.
        in_channels: of the images; other than 3 only where the family allows it.
        settings: further arguments of the family, such as ``width=8``.

    Raises:
        UserError: there is no such model, or it does not take these arguments.
    """
    library, _, rest = name.rpartition("/")
    try:
        if library == "torchvision":
            return _torchvision(rest, num_classes, in_channels, settings)
        if library == "timm":
            return _timm(rest, num_classes, in_channels, settings)
        if name in _OWN:
            return CifarResNet(_OWN[name], num_classes, in_channels=in_channels, **settings)
    except TypeError as error:
        raise UserError(f"model {name!r} does not take these arguments: {error}") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError | torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {name!r} cannot be built with these arguments: {reason}") from error
    raise UserError(f"unknown model {name!r}{_guess(name, [known for known, _ in names()])}")


def names() -> list[tuple[str, str]]:
    """Name and one line of description of each model."""
    own = [
        (name, f"CIFAR-style ResNet, 3 stages of {(depth - 2) // 6} basic blocks")
        for name, depth in _OWN.items()
    ]
    return [
        *own,
        ("torchvision/NAME", "any torchvision classification model, such as torchvision/resnet101"),
        ("timm/NAME", "any timm model, such as timm/vit_tiny_patch16_224"),
    ]


def _torchvision(
    name: str, num_classes: int, in_channels: int, settings: dict[str, Any]
) -> nn.Module:
    library = torchvision_import.torchvision("models")
    if in_channels != 3:
        raise UserError(f"torchvision/{name} takes images of 3 channels, not {in_channels}")
    known = library.list_models(module=library)
    if name not in known:
        raise UserError(f"unknown model 'torchvision/{name}'{_guess(name, known)}")
    model: nn.Module = library.get_model(name, weights=None, num_classes=num_classes, **settings)
    return model


def _timm(name: str, num_classes: int, in_channels: int, settings: dict[str, Any]) -> nn.Module:
    library = torchvision_import.timm()
    if not library.is_model(name):
        raise UserError(f"unknown model 'timm/{name}'{_guess(name, library.list_models())}")
    model: nn.Module = library.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **settings
    )
    return model


def _guess(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "; `hpff list models` shows what there is"
