"""Plain values, as YAML and keyword arguments have them, into checked dataclasses."""

from hpff.schema.component import Component
from hpff.schema.reading import INLINE, Values, build, read

__all__ = ["INLINE", "Component", "Values", "build", "read"]
