"""YAML from users, read safely: every fault is one line that says where it is."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from hpff.errors import UserError


class _Loader(yaml.SafeLoader):
    """yaml.safe_load that reads `1e-4` as a number, and refuses aliases and keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Some lines of aliases of aliases write out to gigabytes."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                problem=f"aliases such as *{event.anchor} are not read, write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key!r} is given twice", problem_mark=mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, source: str) -> Any:
    """The plain data in `text`.

    Raises:
        UserError: the YAML is broken; the message names `source`.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{_short(source)}: broken YAML{place}: {problem}") from error
    except RecursionError as error:
        raise UserError(f"{_short(source)}: broken YAML: nested too deeply") from error
    except ValueError as error:  # A date that is none, a number of thousands of digits.
        problem = " ".join(str(error).split())
        raise UserError(f"{_short(source)}: broken YAML: {problem}") from error


def _short(source: str) -> str:
    return source if len(source) <= 60 else source[:57] + "..."
