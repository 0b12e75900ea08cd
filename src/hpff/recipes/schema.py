"""Turn plain data (from YAML) into dataclasses, and say every fault with the key's full path."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeGuard


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition on a value of the right type, and the words for what it expects."""

    holds: Callable[[Any], bool]
    expected: str


def _at_most(limit: float, words: str) -> Rule:
    return Rule(lambda n: n <= limit, words)


_COUNT_LIMIT = _at_most(10**9, "a whole number of at most 1000000000")
_SEED_LIMIT = _at_most(2**63 - 1, f"a whole number of at most {2**63 - 1}")
_THREADS_LIMIT = _at_most(1024, "a whole number of at most 1024")
_FLOAT_LIMIT = _at_most(1e30, "a number of at most 1e30")  # 32-bit floats end at 3.4e38.

_FROM_ONE = Rule(lambda n: n >= 1, "a whole number of at least 1")
_FROM_ZERO = Rule(lambda n: n >= 0, "a whole number of at least 0")
PositiveInt = Annotated[int, _FROM_ONE, _COUNT_LIMIT]
CountFromZero = Annotated[int, _FROM_ZERO, _COUNT_LIMIT]
Seed = Annotated[int, _FROM_ZERO, _SEED_LIMIT]
Threads = Annotated[int, _FROM_ONE, _THREADS_LIMIT]
Workers = Annotated[int, _FROM_ZERO, _THREADS_LIMIT]
ImageSize = Annotated[int, _FROM_ONE, _at_most(65536, "a whole number of at most 65536")]
PositiveFloat = Annotated[float, Rule(lambda x: x > 0, "a number above 0"), _FLOAT_LIMIT]
NonNegativeFloat = Annotated[float, Rule(lambda x: x >= 0, "a number of at least 0"), _FLOAT_LIMIT]
FactorFromOne = Annotated[float, Rule(lambda x: x >= 1, "a number of at least 1"), _FLOAT_LIMIT]
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
    text = _written(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _written(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits.
        return "a value of thousands of digits"


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
        return " or ".join(_expected(option) for option in typing.get_args(hint))
    if origin is Literal:
        return " or ".join(typing.get_args(hint))
    if origin is tuple:
        return f"a list of {_expected(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "expected", "keys and values"))
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
    return words.get(hint, "null")
