"""A table of three tiny runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Hpff = Callable[..., Any]

TABLE = """\
title: Digits
source: nobody's numbers
measures: [error, accuracy, memory, minutes]
rows:
  tiny-bp.yaml: {error: 10.0, memory: 0.01}
  tiny-dgl.yaml: {error: 20}
  tiny-hpff.yaml: {}
"""
ROWS = {
    "tiny-bp": "base: tiny.yaml\nmethod: bp\n",
    "tiny-dgl": "base: tiny.yaml\ncascade: 1\npatches: 1\n",
    "tiny-hpff": "base: tiny.yaml\n",
}
TRANSFER = """\
title: From digits to digits
source: nobody's numbers
measures: [stl10_position, stl10_name]
rows:
  tiny-bp.yaml: {stl10_position: 30}
"""


def reproduce(hpff: Hpff, *arguments: str) -> Any:
    return hpff("reproduce", "paper/table.yaml", "--out", "out", *arguments)


def errors(folder: Path, out: str = "out") -> dict[str, list[float]]:
    content = json.loads((folder / out / "tables" / "table.json").read_text())
    return {row["run"]: row["measures"]["error"]["values"] for row in content["rows"]}
