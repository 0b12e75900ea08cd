"""How much memory a step takes."""

from hpff.memory.counting import AllocationCounter

__all__ = ["AllocationCounter"]
