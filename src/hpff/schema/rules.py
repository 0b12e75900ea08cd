"""What a value must be besides its type, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
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
ImageSize = Annotated[int, _FROM_ONE, _at_most(4096, "a whole number of at most 4096")]
BatchSize = Annotated[int, _FROM_ONE, _at_most(10**7, "a whole number of at most 10000000")]
Patches = Annotated[int, _FROM_ONE, _at_most(64, "a whole number of at most 64")]
Streams = Annotated[int, _FROM_ONE, _at_most(16, "a whole number of at most 16")]
PositiveFloat = Annotated[float, Rule(lambda x: x > 0, "a number above 0"), _FLOAT_LIMIT]
NonNegativeFloat = Annotated[float, Rule(lambda x: x >= 0, "a number of at least 0"), _FLOAT_LIMIT]
FactorFromOne = Annotated[float, Rule(lambda x: x >= 1, "a number of at least 1"), _FLOAT_LIMIT]
Fraction = Annotated[float, Rule(lambda x: 0 <= x < 1, "a number from 0 to below 1")]
