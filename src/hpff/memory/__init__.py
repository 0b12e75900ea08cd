"""How much memory a step takes, and how long: planned, counted and measured."""

from hpff.memory.arithmetic import ArithmeticCounter
from hpff.memory.benching import Bench, Measured, bench
from hpff.memory.counting import AllocationCounter
from hpff.memory.fitting import Choice, Fit, fit
from hpff.memory.planning import (
    BEST,
    RECOMPUTED,
    Plan,
    Row,
    default_strategies,
    first_strategies,
    plan,
)
from hpff.memory.steps import Strategy, Workload

__all__ = [
    "BEST",
    "RECOMPUTED",
    "AllocationCounter",
    "ArithmeticCounter",
    "Bench",
    "Choice",
    "Fit",
    "Measured",
    "Plan",
    "Row",
    "Strategy",
    "Workload",
    "bench",
    "default_strategies",
    "first_strategies",
    "fit",
    "plan",
]
