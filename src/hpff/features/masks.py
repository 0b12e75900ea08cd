"""The padding mask among a model's inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

VALID = ("attention_mask", "token_mask", "input_mask", "valid_mask")
PADDING = ("padding_mask", "pad_mask")


def mask_of(model: nn.Module, inputs: Any) -> Tensor | None:
    """Find the padding mask among a model's inputs.

    It is found by its name: an argument of the model called ``attention_mask`` (or one of
    ``VALID``), where 0 marks padding, or whose name ends in ``padding_mask`` or ``pad_mask``, where
    0 marks the others.

    Args:
        model: whose ``forward`` names its arguments.
        inputs: a tensor, or a tuple or dict of forward's arguments.

    Returns:
        The mask (B, L), True for the tokens that are no padding; None if the inputs hold none.
    """
    for name, value in _named(model, inputs).items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            continue
        if name in VALID:
            return value != 0
        if name.endswith(PADDING):
            return value == 0
    return None


def _named(model: nn.Module, inputs: Any) -> Mapping[str, Any]:
    if isinstance(inputs, Mapping):
        return inputs
    if isinstance(inputs, (tuple, list)) and len(inputs) > 1:
        return dict(zip(inspect.signature(model.forward).parameters, inputs, strict=False))
    return {}
