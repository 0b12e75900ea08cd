"""Local modules of made-up sizes, to be reckoned by hand."""

from __future__ import annotations

from typing import Any

import torch

from hpff.cutting.local_modules import InnerPoint, LocalModule, OperationKey, Save
from hpff.features import Vectors


def save(size: int, *how: Any, **more: Any) -> Save:
    """A value to whose users a gradient of its own size comes."""
    return Save(size, *how, **{"coming": size, **more})


def module(index: int, stretches: list[tuple[int, int]]) -> LocalModule:
    """A module of stretches: bytes that each saves, and those of what it passes on."""
    inner, saved = [], 0
    for number, (size, output) in enumerate(stretches, start=1):
        saved += size
        inner.append(InnerPoint(OperationKey("layer", number), 0, output, saved))
    return LocalModule(
        index=index,
        cut=f"m{index}",
        submodules=(),
        block_shapes=(),
        parameter_names=(),
        parameters=0,
        output_shape=(1,),
        dtype=torch.float32,
        device=torch.device("cpu"),
        features=Vectors(),
        saved=saved,
        output_bytes=stretches[-1][1],
        saves=tuple(save(size) for size, _ in stretches),
        inner=tuple(inner[:-1]),
    )


def key(number: int) -> OperationKey:
    return OperationKey("layer", number)
