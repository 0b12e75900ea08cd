"""What is named and set in one key: a model or a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Component:
    """A model or a method by name, with its settings."""

    expected: ClassVar[str] = "a name, or {name: ..., and settings}"

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, value: object) -> Component:
        """`dgl` or `{name: dgl, hidden_layers: 2}`.

        Raises:
            ValueError: it is anything else.
        """
        if isinstance(value, Component):
            return value
        if isinstance(value, str) and value:
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            settings = {str(key): item for key, item in value.items() if key != "name"}
            return cls(value["name"], settings)
        raise ValueError(cls.expected)

    def to_plain(self) -> str | dict[str, Any]:
        """The form that `from_plain` reads."""
        return {"name": self.name, **self.settings} if self.settings else self.name
