"""Settings of local learning that go together, found by a study: benchmarks/study.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, ParamSpec, get_args

from hpff.errors import UserError, did_you_mean, shown

PresetName = Literal["light", "balanced", "accurate"]
P = ParamSpec("P")

# Whatever a preset does not say is as it would be without one. Channels of auxiliary networks have
# a bound, so that their size does not grow with the network; the study's networks are below it.
_COMMON: Mapping[str, Any] = {
    "independent": False,
    "patches": 1,
    "independent_weight": None,
    "cascade_weight": None,
    "auxiliary_weight": 1.0,
    "auxiliary_width": 128,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "light": {
        **_COMMON,
        "method": {"name": "auglocal", "depth": 2},
        "auxiliary_pool": 2,
        "cascade": 2,
        "cascade_stride": 1,
        "recompute": "repeatedly",
    },
    "balanced": {
        **_COMMON,
        "method": {"name": "auglocal", "depth": 4},
        "auxiliary_pool": 2,
        "cascade": 4,
        "cascade_stride": 3,
        "recompute": "blocks",
    },
    "accurate": {
        **_COMMON,
        "method": {"name": "auglocal", "depth": 4},
        "auxiliary_pool": 1,
        "cascade": 4,
        "cascade_stride": 3,
        "recompute": "blocks",
    },
}
NAMES: tuple[str, ...] = get_args(PresetName)


def preset(name: object, given: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a preset but for those that are given, by the names of `LocalSettings`.

    Where the cascades' length is given, their stride is not the preset's, either.

    Raises:
        UserError: there is none of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        hint = did_you_mean(name, NAMES) if isinstance(name, str) else ""
        raise UserError(f"preset: is {shown(name)}, expected {', '.join(NAMES)}{hint}")
    away = {*given, *(("cascade_stride",) if "cascade" in given else ())}
    return {key: value for key, value in PRESETS[name].items() if key not in away}


def named() -> list[tuple[str, str]]:
    """Each preset, and in a line what it sets; None is as it would be without one."""
    return [
        (name, ", ".join(_written(*item) for item in settings.items() if item[1] is not None))
        for name, settings in PRESETS.items()
    ]


def _written(key: str, value: Any) -> str:
    if key != "method":
        return f"{key} {value if isinstance(value, str) else shown(value)}"
    settings = [f"{name} {each}" for name, each in value.items() if name != "name"]
    return f"method {value['name']} with {' and '.join(settings)}"


def takes_preset(init: Callable[P, None]) -> Callable[P, None]:
    """Lay the settings of the argument ``preset`` below those that are given besides it."""

    @functools.wraps(init)
    def prepared(*arguments: P.args, **given: P.kwargs) -> None:
        name = given.pop("preset", None)
        below = {} if name is None else preset(name, given)
        init(*arguments, **below, **given)

    return prepared
