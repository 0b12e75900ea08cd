"""Backbones by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpff.errors import UserError, did_you_mean
from hpff.models.cifar_resnet import DEPTHS, CifarResNet
from hpff.models.dense_resnet import DenseResNet
from hpff.models.settings import check_settings
from hpff.torch_support import torchvision_import
from hpff.torch_support.out_of_memory import is_out_of_memory

__all__ = [
    "CifarResNet",
    "DenseResNet",
    "create",
    "image_size",
    "is_dense",
    "names",
    "resolve",
    "sized",
]

_OWN = {f"resnet{depth}": depth for depth in DEPTHS}
_OWN_DENSE = {f"fcn_resnet{depth}": depth for depth in DEPTHS[:-1]}
# Their auxiliary classifiers, an early form of local losses, are off unless asked for.
_DEFAULTS = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def create(name: str, num_classes: int = 10, *, in_channels: int = 3, **settings: Any) -> nn.Module:
    """A backbone with random weights.

    Args:
        name: ``resnet32`` and its like (CIFAR ResNets), ``torchvision/NAME``, ``timm/NAME``, or
            NAME alone: torchvision's model of that name, or if it has none timm's.
        num_classes: size of the output, (B, num_classes); (B, num_classes, H, W) for models that
            segment. Those of torchvision have their own auxiliary head (``aux_loss``), and give a
            dict.
        in_channels: of the images; other than 3 only where the family allows it.
        settings: further arguments of the family that set its shape or dropout, such as
            ``width=8``, or where a model's images have one size ``image_size=32`` (torchvision)
            and ``img_size=32`` (timm).

    Returns:
        The model, on the CPU and in training mode.

    Raises:
        UserError: there is no such model, or it does not take these arguments.
    """
    library, rest = resolve(name)
    check_settings(library, settings)
    try:
        if library == "torchvision":
            return _torchvision(rest, num_classes, in_channels, settings)
        if library == "timm":
            return _timm(rest, num_classes, in_channels, settings)
        if name in _OWN_DENSE:
            return DenseResNet(_OWN_DENSE[name], num_classes, in_channels=in_channels, **settings)
        return CifarResNet(_OWN[name], num_classes, in_channels=in_channels, **settings)
    except TypeError as error:
        raise UserError(f"model {name!r} does not take these arguments: {error}") from error
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {name!r} cannot be built with these arguments: {reason}") from error


def resolve(name: str) -> tuple[str, str]:
    """Where a model's name leads.

    Returns:
        "hpff", "torchvision" or "timm", and the model's name there.

    Raises:
        UserError: there is no such model.
    """
    if name in _OWN or name in _OWN_DENSE:
        return "hpff", name
    prefix, _, rest = name.rpartition("/")
    near = [] if prefix else [*_OWN, *_OWN_DENSE]
    for library, list_names in (("torchvision", _torchvision_names), ("timm", _timm_names)):
        if prefix not in ("", library):
            continue
        known = list_names()
        if rest in known:
            return library, rest
        architecture, dot, tag = rest.partition(".")
        if library == "timm" and dot and architecture in known:
            _check_tag(architecture, tag)
            return library, rest
        near += [f"{prefix}/{each}" if prefix else each for each in known]
    raise UserError(f"unknown model {name!r}{_guess(name, near)}")


def is_dense(name: str) -> bool:
    """Whether a model by name classifies each pixel and not the whole image.

    Raises:
        UserError: there is no such model.
    """
    library, rest = resolve(name)
    dense = _OWN_DENSE if library == "hpff" else _dense_torchvision_names()
    return library != "timm" and rest in dense


def image_size(name: str) -> tuple[int, int, int]:
    """The images that a model was made for.

    Returns:
        Their (C, H, W).

    Raises:
        UserError: there is no such model.
    """
    library, rest = resolve(name)
    if is_dense(name):
        return (3, 192, 256) if library == "hpff" else (3, 480, 480)
    if library == "hpff":
        return (3, 32, 32)
    if library == "timm":
        config = torchvision_import.timm().models.get_pretrained_cfg(rest)
        size: tuple[int, int, int] | None = getattr(config, "input_size", None)
        return size or (3, 224, 224)
    return (3, 299, 299) if rest == "inception_v3" else (3, 224, 224)


def sized(name: str, height: int, width: int) -> dict[str, Any]:
    """What lets a model take images of another size than its own.

    Args:
        name: as :func:`create` takes it.
        height: of the images.
        width: of the images.

    Returns:
        Further arguments of :func:`create`; most models need none.

    Raises:
        UserError: there is no such model.
    """
    library, rest = resolve(name)
    if (height, width) == image_size(name)[1:]:
        return {}
    if library == "timm":
        config = torchvision_import.timm().models.get_pretrained_cfg(rest)
        fixed = getattr(config, "fixed_input_size", False)
        return {"img_size": (height, width)} if fixed else {}
    is_vit = library == "torchvision" and rest.startswith("vit_")
    return {"image_size": height} if is_vit and height == width else {}


def names() -> list[tuple[str, str]]:
    """Name and one line of description of each model."""
    own = [
        (name, f"CIFAR-style ResNet, 3 stages of {(depth - 2) // 6} basic blocks")
        for name, depth in _OWN.items()
    ]
    return [
        *own,
        *((name, "the same with a dilated last stage, for segmentation") for name in _OWN_DENSE),
        ("torchvision/NAME", "any torchvision classification model, such as torchvision/resnet101"),
        ("torchvision/NAME", "or segmentation model, such as torchvision/deeplabv3_resnet101"),
        ("timm/NAME", "any timm model, such as timm/vit_tiny_patch16_224"),
        ("NAME", "torchvision's model of that name, or else timm's, such as vgg13 or vit_b_16"),
    ]


def _torchvision_names() -> list[str]:
    library = torchvision_import.torchvision("models")
    found: list[str] = library.list_models(module=library)
    return [*found, *_dense_torchvision_names()]


def _dense_torchvision_names() -> list[str]:
    library = torchvision_import.torchvision("models")
    found: list[str] = library.list_models(module=library.segmentation)
    return found


def _check_tag(architecture: str, tag: str) -> None:
    """A tag names weights, which are not loaded, and the size of the images they were made for."""
    pretrained = torchvision_import.timm().list_models(f"{architecture}.*", pretrained=True)
    tags = [each.partition(".")[2] for each in pretrained]
    if tag not in tags:
        expected = f"{architecture} alone" + (f", or with one of {', '.join(tags)}" if tags else "")
        raise UserError(f"timm's {architecture} has no tag {tag!r}; expected {expected}")


def _timm_names() -> list[str]:
    found: list[str] = torchvision_import.timm().list_models()
    return found


def _torchvision(
    name: str, num_classes: int, in_channels: int, settings: dict[str, Any]
) -> nn.Module:
    library = torchvision_import.torchvision("models")
    if in_channels != 3:
        raise UserError(f"torchvision/{name} takes images of 3 channels, not {in_channels}")
    settings = {**_DEFAULTS.get(name, {}), **settings}
    if name in _dense_torchvision_names():
        own_head = {} if name.startswith("lraspp") else {"aux_loss": True}
        settings = {"weights_backbone": None, **own_head, **settings}
    model: nn.Module = library.get_model(name, weights=None, num_classes=num_classes, **settings)
    return model


def _timm(name: str, num_classes: int, in_channels: int, settings: dict[str, Any]) -> nn.Module:
    library = torchvision_import.timm()
    model: nn.Module = library.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **settings
    )
    return model


def _guess(name: str, known: list[str]) -> str:
    return did_you_mean(name, known) or "; `hpff list models` shows what there is"
