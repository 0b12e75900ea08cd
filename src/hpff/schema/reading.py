"""Turn plain data into dataclasses by their annotations, and say every fault with its full path.

Why not pydantic: a reader on pydantic 2.13 was written and kept every message of the tests, in more
lines than this one. It checks types for us, but its faults must be put into our words, its paths
freed of the names of a union's branches, and the valid values of a faulty recipe, which the checks
between keys need, read a second time, as it gives none.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeGuard

from hpff.errors import did_you_mean, shown
from hpff.schema.rules import Rule

Values = dict[str, Any]

INLINE = "inline"
"""Metadata of a field whose dataclass's keys stand among the others; other defaults for some."""


def read(cls: type, data: object, faults: dict[str, str], prefix: str = "") -> Values:
    """The valid values of dataclass `cls` in `data`, flat: full key path to value.

    A dataclass with a `from_plain` class method reads itself. Every fault lands in `faults`,
    full key path to message; a key with a fault has no value.
    """
    if not isinstance(data, Mapping):
        faults[prefix.rstrip(".")] = f"is {shown(data)}, expected keys and values"
        return {}
    keys = _keys(cls)
    for key in data:
        if key not in keys:
            known = f", expected one of {', '.join(keys)}"
            hint = did_you_mean(str(key), keys) or known
            faults[f"{prefix}{key}"] = f"unknown key{hint}"
    values: Values = {}
    for name, key in keys.items():
        path = f"{prefix}{name}"
        if name in data:
            _read_field(key.hint, data[name], faults, path, values)
        elif key.default is not dataclasses.MISSING:
            values[path] = key.default
        elif key.has_factory:
            _read_field(key.hint, {}, faults, path, values)
        else:
            faults[path] = f"is missing, expected {_expected(key.hint)}"
    return values


def build(cls: type, values: Values, prefix: str = "") -> Any:
    """The dataclass from the flat values that `read` gave without a fault."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        path = f"{prefix}{field.name}"
        if INLINE in field.metadata:
            arguments[field.name] = build(hints[field.name], values, prefix)
        elif path in values:
            arguments[field.name] = values[path]
        else:
            arguments[field.name] = build(hints[field.name], values, f"{path}.")
    return cls(**arguments)


@dataclasses.dataclass(frozen=True)
class _Key:
    hint: Any
    default: Any
    has_factory: bool


def _keys(cls: type) -> dict[str, _Key]:
    hints = typing.get_type_hints(cls, include_extras=True)
    keys: dict[str, _Key] = {}
    for field in dataclasses.fields(cls):
        if INLINE in field.metadata:
            inner = _keys(hints[field.name])
            for name, default in field.metadata[INLINE].items():
                inner[name] = dataclasses.replace(inner[name], default=default)
            keys |= inner
        else:
            factory = field.default_factory is not dataclasses.MISSING
            keys[field.name] = _Key(hints[field.name], field.default, factory)
    return keys


def _read_field(
    hint: Any, value: object, faults: dict[str, str], path: str, values: Values
) -> None:
    if dataclasses.is_dataclass(hint) and not hasattr(hint, "from_plain"):
        values.update(read(typing.cast(type, hint), value, faults, f"{path}."))
        return
    try:
        values[path] = _convert(hint, value)
    except ValueError as error:
        faults[path] = f"is {shown(value)}, expected {error}"


def _convert(hint: Any, value: object) -> Any:
    """`value` as `hint` wants it; raises ValueError with the words for what was expected."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        kind, *rules = typing.get_args(hint)
        return _convert_by_rules(kind, rules, value)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value)
    if origin is Literal:
        if value in typing.get_args(hint) and isinstance(value, str):
            return value
        hint_text = did_you_mean(str(value), typing.get_args(hint))
        raise ValueError(f"{_expected(hint)}{hint_text}")
    if origin is tuple:
        if isinstance(value, list | tuple) and value:
            return tuple(_convert(typing.get_args(hint)[0], item) for item in value)
        raise ValueError(_expected(hint))
    if dataclasses.is_dataclass(hint):
        return typing.cast(Any, hint).from_plain(value)
    if hint not in _SCALARS:
        if isinstance(value, hint):
            return value
        raise ValueError(_expected(hint))
    return _convert_scalar(hint, value)


class _RuleError(ValueError):
    """A value of the right type that breaks a rule."""


def _convert_by_rules(kind: Any, rules: list[Rule], value: object) -> Any:
    try:
        converted = _convert(kind, value)
    except ValueError:
        raise ValueError(rules[0].expected) from None
    for rule in rules:
        if not rule.holds(converted):
            raise _RuleError(rule.expected)
    return converted


def _convert_union(hint: Any, value: object) -> Any:
    for option in typing.get_args(hint):
        try:
            return _convert(option, value)
        except _RuleError:  # No other option takes a value of this type.
            raise
        except ValueError:
            continue
    raise ValueError(_expected(hint))


def _finite(value: object) -> TypeGuard[int | float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _convert_scalar(kind: Any, value: object) -> Any:
    if _finite(value):
        if kind is float and abs(value) > sys.float_info.max:  # An int beyond all floats.
            return math.copysign(sys.float_info.max, 1 if value > 0 else -1)
        if kind is float or (kind is int and value == int(value)):
            return kind(value)
    elif kind in (type(None), bool, str) and isinstance(value, kind) and value != "":
        return value
    raise ValueError(_expected(kind))


def _expected(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return str(typing.get_args(hint)[1].expected)
    if origin in (typing.Union, types.UnionType):
        words = [_expected(option) for option in typing.get_args(hint)]
        return " or ".join(word for word in words if word)
    if origin is Literal:
        return " or ".join(typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_expected(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "expected", "keys and values"))
    return _SCALARS.get(hint, "")


_SCALARS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
}
