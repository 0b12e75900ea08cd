"""Weights that other programs have saved, read without running any code in them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hpff.errors import UserError
from hpff.runs.checkpoint_content import misfit

_INSIDE = ("state_dict", "model_state_dict", "model", "net", "learner")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_AUXILIARY = ("independent_auxiliary.", "cascade_auxiliary.")


def load_weights(model: nn.Module, file: Path, name: str) -> None:
    """Put the weights in a file into a model: safetensors, or what ``torch.save`` wrote.

    Weights may lie under ``state_dict``, ``model`` and the like, with ``module.`` and the like
    before their names, as DistributedDataParallel and torch.compile leave them. Only tensors and
    plain data are read.

    Args:
        model: that they are of.
        file: .safetensors, or else a file of ``torch.save``.
        name: of the model, for messages.

    Raises:
        UserError: the file cannot be read, or its weights do not fit, or are not finite.
    """
    weights = _bare(_read(file), model)
    expected = model.state_dict()
    for key in expected.keys() - weights.keys():
        if key.endswith("num_batches_tracked"):
            weights[key] = expected[key]
    wrong = misfit(weights, expected)
    if wrong is not None:
        raise UserError(
            f"{file}: does not fit {name} ({wrong}); give the model that was saved, with its "
            "settings, as NAME,KEY=VALUE=FILE, and data of as many classes"
        )
    model.load_state_dict(weights)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load(file.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file}: cannot read these weights ({error.strerror})") from error
    except SafetensorError as error:
        raise UserError(f"{file}: is no whole safetensors file") from error
    except Exception as error:  # A forged file makes torch.load raise many types.
        if "unsupported global" in str(error).lower():
            raise UserError(
                f"{file}: holds a pickle that could run code, expected only tensors and plain "
                "data; nothing in it was run; save the model's state_dict() alone"
            ) from error
        raise UserError(
            f"{file}: is no file of weights, expected safetensors or torch.save of a state_dict"
        ) from error
    tensors = _tensors(content)
    if tensors is None:
        raise UserError(f"{file}: holds no weights, expected a mapping of names to tensors")
    return tensors


def _tensors(content: Any) -> dict[str, Tensor] | None:
    """The mapping of names to tensors in what was saved, itself or one level down."""
    if not isinstance(content, Mapping):
        return None
    for candidate in (content, *(content.get(key) for key in _INSIDE)):
        if isinstance(candidate, Mapping) and candidate:
            tensors = {str(key): v for key, v in candidate.items() if isinstance(v, Tensor)}
            if len(tensors) == len(candidate):
                return tensors
    return None


def _bare(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights by the model's own names."""
    known = model.state_dict().keys()
    weights = {key: v for key, v in weights.items() if not key.startswith(_AUXILIARY)}
    for prefix in _PREFIXES:
        foreign = not any(key.startswith(prefix) for key in known)
        if foreign and weights and all(key.startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights
