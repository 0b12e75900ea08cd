"""A notebook as a page: its text, its code and what came out, as it is committed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page_of(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """The page's text in Markdown, and its pictures by name, which lie beside it."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"``````python\n{source}\n``````")
        for output in cell["outputs"]:
            for kind, content in _shown(output):
                if kind == "text":
                    parts.append(f"``````text\n{content.rstrip()}\n``````")
                    continue
                name = f"{notebook.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(content)
                parts.append(f"![What the code above draws]({name})")
    return "\n\n".join(parts) + "\n", pictures


def _shown(output: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reader sees of an output: kind, and content."""
    if output["output_type"] == "stream":
        yield "text", "".join(output["text"])
        return
    data = output.get("data", {})
    if "image/png" in data:
        yield "picture", "".join(data["image/png"])
    elif "text/plain" in data:
        yield "text", "".join(data["text/plain"])
