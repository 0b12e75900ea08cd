"""How much memory a step takes."""

from hpff.memory.counting import AllocationCounter
from hpff.memory.planning import planned_peak

__all__ = ["AllocationCounter", "planned_peak"]
