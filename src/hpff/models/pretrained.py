"""Pretrained weights of a model's backbone, from a file of one's own."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpff.errors import UserError

_HEADS = ("fc.", "classifier.", "head.")  # of classifiers, which a backbone has none of


def load_backbone(model: nn.Module, file: Path) -> None:
    """Load the weights of a model's ``backbone``, or of the model itself where it has no such part.

    A classifier's own last layer in the file is left out, and so is any in a model without a
    backbone. Nothing is unpickled but tensors.

    Args:
        model: changed in place.
        file: safetensors, or a state dict as ``torch.save`` writes it.

    Raises:
        UserError: the file cannot be read, or does not fit; nothing is loaded then.
    """
    part = getattr(model, "backbone", model)
    found = {name: t for name, t in _read(file).items() if not name.startswith(_HEADS)}
    expected = {name: t for name, t in part.state_dict().items() if not name.startswith(_HEADS)}
    wrong = _misfit(found, expected)
    if wrong is not None:
        raise UserError(
            f"{file}: does not fit the model's backbone ({wrong}); expected a state dict with the "
            f"names and shapes of {type(part).__name__}, such as torchvision's of the same ResNet"
        )
    part.load_state_dict({**part.state_dict(), **found})


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file}: cannot read these weights ({error.strerror or error})") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{file}: is no file of weights ({reason}); expected safetensors, or a state dict of "
            "tensors alone"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{file}: holds no plain state dict; expected names and tensors alone")
    return found


def _misfit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            continue  # Files of old versions have none.
        if name not in found:
            return f"{name} is missing"
        if found[name].shape != tensor.shape:
            shapes = tuple(found[name].shape), tuple(tensor.shape)
            return f"{name} has shape {shapes[0]}, expected {shapes[1]}"
    unknown = next((name for name in found if name not in expected), None)
    return None if unknown is None else f"{unknown} is unknown"
