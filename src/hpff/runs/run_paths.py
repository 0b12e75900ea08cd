"""Where a run goes when nobody says where: `runs/RECIPE-1`, `runs/RECIPE-2`, ..."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from hpff.errors import UserError

_LONGEST_NAME = 120


def default_path(recipe_name: str, *, resume: bool, root: Path = Path("runs")) -> Path:
    """The next free folder of this recipe, or its newest one for `resume`."""
    stem = Path(recipe_name)
    base = stem.with_suffix("").name if stem.suffix in (".yaml", ".yml") else recipe_name
    newest = max(_numbers(root / base), default=0)
    if resume and not newest:
        raise UserError(
            f"{root / base}-1: there is no run to resume; start it without --resume, or name the "
            "run's folder with --out"
        )
    return root / f"{base}-{newest if resume else newest + 1}"


def scaled_path(
    kind: str,
    epochs: int | None,
    subset: int | None,
    data: Sequence[str],
    overrides: Sequence[str],
    *,
    root: Path = Path("runs"),
) -> Path:
    """`runs/KIND/full`, or a folder named after the options that change the runs."""
    words = [f"epochs={epochs}"] if epochs is not None else []
    words += [f"subset={subset}"] if subset is not None else []
    words += [f"data={text}" for text in data] + list(overrides)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word).strip("._") for word in words) or "full"
    if len(name) > _LONGEST_NAME:
        digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
        name = f"{name[: _LONGEST_NAME - 9]}-{digest}"
    return root / kind / name


def _numbers(prefix: Path) -> list[int]:
    pattern = re.compile(re.escape(prefix.name) + r"-(\d+)")
    folder = prefix.parent
    found = [pattern.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return [int(match[1]) for match in found if match]
