"""Text of others in Markdown of ours."""

from __future__ import annotations

import re

from hpff.errors import one_line

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")


def escaped(text: str) -> str:
    """The text as a reader sees it again: on one line, with nothing in it taken for Markdown."""
    return _SPECIAL.sub(r"\\\1", one_line(text))
