"""The examples that end every command's help. Tests read them there and run them."""

from __future__ import annotations


def example(*commands: str) -> str:
    """The end of a command's help."""
    lines = [f"  {command}" for command in commands]
    return "\n".join(["\b", f"Example{'s' if len(lines) > 1 else ''}:", *lines])
