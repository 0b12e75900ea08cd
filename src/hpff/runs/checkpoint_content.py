"""What a checkpoint must hold: the types and ranges of everything that a run takes from it.

A digest says that a file is as it was written, not that it was we who wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MEMORY_SOURCES = ("counted", "allocator")

Check = Callable[[Any], bool]


def fault(content: Mapping[str, Any]) -> str | None:
    """The first fault of a checkpoint's fields, in words; None if they are sound."""
    return next(_faults(content), None)


def misfit(found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """Why tensors cannot take the place of `expected`, in words; None if they can.

    Names, shapes and types must be the same, and every number finite.
    """
    for name, tensor in expected.items():
        value = found.get(name)
        if not isinstance(value, Tensor):
            return f"{name} is {'no tensor' if name in found else 'missing'}"
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            return f"{name} is {_shown(value)}, expected {_shown(tensor)}"
        if not finite(value):
            return f"{name} has numbers that are not finite"
    unknown = next((name for name in found if name not in expected), None)
    return None if unknown is None else f"{unknown} is unknown"


def finite(tensor: Tensor) -> bool:
    """Whether every number in it is."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _faults(content: Mapping[str, Any]) -> Iterator[str]:
    for key, (sound, expected) in _FIELDS.items():
        if not sound(content[key]):
            yield f"{key} is not {expected}"
            return
    epoch, history = content["epoch"], content["history"]
    if len(history) != epoch:
        yield f"it says epoch {epoch}, and has the metrics of {len(history)}"
        return
    for number, entry in enumerate(history, 1):
        yield from _faults_of_epoch(number, entry)


def _faults_of_epoch(number: int, entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict) or not all(isinstance(key, str) for key in entry):
        yield f"the metrics of epoch {number} are no mapping of names"
        return
    for key, sound in _METRICS.items():
        if key not in entry or not sound(entry[key]):
            yield f"the metrics of epoch {number} have no sound {key}"
    if entry.get("epoch") != number:
        yield f"the metrics of epoch {number} are of another epoch"
    for key in entry.keys() - _METRICS.keys():
        if not _plain(entry[key]):
            yield f"the metrics of epoch {number} have no sound {key}"


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _amount(value: Any) -> bool:
    return _number(value) and math.isfinite(value) and value >= 0


def _percent(value: Any) -> bool:
    return _amount(value) and value <= 100


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _or_none(sound: Check) -> Check:
    return lambda value: value is None or sound(value)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float) or _numbers(value)


def _names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _tensors(value: Any) -> bool:
    return _names(value) and all(isinstance(item, Tensor) for item in value.values())


def _random(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"cpu", "cuda"}:
        return False
    states = [value["cpu"], *value["cuda"]] if isinstance(value["cuda"], list) else [None]
    return all(isinstance(s, Tensor) and s.dtype == torch.uint8 and s.dim() == 1 for s in states)


def _optimizers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(state, dict)
        and state.keys() == {"state", "param_groups"}
        and isinstance(state["state"], dict)
        and isinstance(state["param_groups"], list)
        and all(map(_count, state["state"]))
        and all(map(_names, [*state["state"].values(), *state["param_groups"]]))
        for state in value
    )


def _data(value: Any) -> bool:
    return _names(value) and isinstance(value.get("name"), str)


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


_FIELDS: dict[str, tuple[Check, str]] = {
    "recipe": (_names, "a recipe"),
    "data": (_data, "a name and a fingerprint of data"),
    "epoch": (lambda value: _count(value) and value > 0, "a whole number of at least 1"),
    "learner": (_tensors, "a mapping of names to tensors"),
    "optimizers": (_optimizers, "a list of optimizer states"),
    "random": (_random, "states of random generators"),
    "history": (lambda value: isinstance(value, list), "a list of epochs' metrics"),
}

_METRICS: dict[str, Check] = {
    "epoch": _count,
    "rate": _amount,
    "loss": _number,
    "final_loss": _number,
    "independent_losses": _numbers,
    "cascade_losses": _numbers,
    "train_error_percent": _percent,
    "test_loss": _or_none(_number),
    "test_error_percent": _or_none(_percent),
    "test_top5_error_percent": _or_none(_percent),
    "broken_images": _count,
    "images_per_second": _amount,
    "step_seconds": _amount,
    "timed_steps": _count,
    "seconds": _amount,
    "peak_memory_bytes": _count,
    "peak_memory_source": lambda value: value in MEMORY_SOURCES,
}
