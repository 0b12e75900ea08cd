"""How much memory a step takes."""

from hpff.memory.counting import AllocationCounter
from hpff.memory.planning import Plan, Row, default_ways, plan, planned_peak
from hpff.memory.steps import Way, Workload

__all__ = [
    "AllocationCounter",
    "Plan",
    "Row",
    "Way",
    "Workload",
    "default_ways",
    "plan",
    "planned_peak",
]
