"""Turn plain data (from YAML) into dataclasses, and say every fault with the key's full path."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value of the right type, and the words for what it expects."""

    holds: Callable[[Any], bool]
    expected: str


PositiveInt = Annotated[int, Rule(lambda n: n >= 1, "a whole number of at least 1")]
CountFromZero = Annotated[int, Rule(lambda n: n >= 0, "a whole number of at least 0")]
PositiveFloat = Annotated[float, Rule(lambda x: x > 0, "a number above 0")]
NonNegativeFloat = Annotated[float, Rule(lambda x: x >= 0, "a number of at least 0")]
Fraction = Annotated[float, Rule(lambda x: 0 <= x < 1, "a number from 0 to below 1")]

Values = dict[str, Any]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the known word closest to `word`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def read(cls: type, data: object, faults: dict[str, str], prefix: str = "") -> Values:
    """The valid values of dataclass `cls` in `data`, flat: full key path to value.

    A dataclass with a `from_plain` class method reads itself. Every fault lands in `faults`,
    full key path to message; a key with a fault has no value.
    """
    if not isinstance(data, Mapping):
        faults[prefix.rstrip(".")] = f"is {shown(data)}, expected keys and values"
        return {}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            known = f", expected one of {', '.join(fields)}"
            hint = did_you_mean(str(key), fields) or known
            faults[f"{prefix}{key}"] = f"unknown key{hint}"
    hints = typing.get_type_hints(cls, include_extras=True)
    values: Values = {}
    for name, field in fields.items():
        path = f"{prefix}{name}"
        if name in data:
            _read_field(hints[name], data[name], faults, path, values)
        elif field.default is not dataclasses.MISSING:
            values[path] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            _read_field(hints[name], {}, faults, path, values)
        else:
            faults[path] = f"is missing, expected {_expected(hints[name])}"
    return values


def build(cls: type, values: Values, prefix: str = "") -> Any:
    """The dataclass from the flat values that `read` gave without a fault."""
    hints = typing.get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):
        path = f"{prefix}{field.name}"
        nested = path not in values
        arguments[field.name] = (
            build(hints[field.name], values, f"{path}.") if nested else values[path]
        )
    return cls(**arguments)


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line."""
    text = (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    )
    return text if len(text) <= 60 else text[:57] + "..."


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
        kind, rule = typing.get_args(hint)
        return _convert_by_rule(kind, rule, value)
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
    return _convert_scalar(hint, value)


def _convert_by_rule(kind: Any, rule: Rule, value: object) -> Any:
    try:
        converted = _convert(kind, value)
    except ValueError:
        raise ValueError(rule.expected) from None
    if not rule.holds(converted):
        raise ValueError(rule.expected)
    return converted


def _convert_union(hint: Any, value: object) -> Any:
    for option in typing.get_args(hint):
        try:
            return _convert(option, value)
        except ValueError:
            continue
    raise ValueError(_expected(hint))


def _convert_scalar(kind: Any, value: object) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
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
        return " or ".join(_expected(option) for option in typing.get_args(hint))
    if origin is Literal:
        return " or ".join(typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_expected(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "expected", "keys and values"))
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    return words.get(hint, "null")
