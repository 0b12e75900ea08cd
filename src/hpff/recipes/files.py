"""Recipes on disk: packaged names and paths, inheritance by `base:`, `key=value` overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpff.errors import UserError, did_you_mean, shown
from hpff.presets import preset
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.recipes.yaml_text import parse_yaml

Plain = dict[str, Any]

_PACKAGED = Path(__file__).parent
TABLES = _PACKAGED / "tables"
_NAMED = ("model", "method")  # A name, or a mapping of its name and its settings.


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a packaged name or a YAML file, with `key=value` overrides.

    A key is set before those below it, whatever comes first: `method.depth=4 method=auglocal`.

    Raises:
        UserError: there is no such recipe, or it has faults; one line for each.
    """
    plain = _read_with_bases(name, Path(), ())
    for override in sorted(overrides, key=lambda each: each.partition("=")[0].count(".")):
        _apply(plain, override)
    try:
        return recipes.parse(plain, name)
    except RecursionError as error:  # Such as a YAML list that holds itself.
        raise UserError(f"{name}: is nested too deeply") from error


def names() -> list[tuple[str, str]]:
    """The packaged recipes: name and the first line of the header comment."""
    files = [file for file in sorted(_PACKAGED.rglob("*.yaml")) if not file.name.startswith("_")]
    return [(_name(file), header(file)) for file in files if file.parent != TABLES]


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    return yaml.safe_dump(recipe.to_plain(), sort_keys=False)


def _name(file: Path) -> str:
    return file.relative_to(_PACKAGED).with_suffix("").as_posix()


def header(file: Path) -> str:
    """The first line of a file's header comment."""
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _read_with_bases(name: str, folder: Path, seen: tuple[str, ...]) -> Plain:
    """The plain data of a recipe laid over that of its bases, a later base over an earlier."""
    if name in seen:
        raise UserError(f"{name}: base goes round in a circle ({' -> '.join((*seen, name))})")
    text, home = _read_text(name, folder)
    plain = _with_preset(_parse(text, name), name)
    bases = plain.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"{name}: base: is {shown(bases)}, expected a recipe's name or file, or a list of them"
        )
    merged: Plain = {}
    for base in bases:
        merged = _merge(merged, _read_with_bases(base, home, (*seen, name)))
    return _merge(merged, plain)


def _read_text(name: str, folder: Path) -> tuple[str, Path]:
    """The text of a recipe and the folder that its own `base:` paths start from."""
    if not name.endswith((".yaml", ".yml")):
        return _read_packaged(name), Path()
    path = folder / name
    try:
        return path.read_text(encoding="utf-8"), path.parent
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read this recipe ({reason})") from error


def _read_packaged(name: str) -> str:
    if not name:
        raise UserError(
            "the recipe's name is empty, expected a name from `hpff list recipes` or a .yaml file"
        )
    parts = name.split("/")
    file = _PACKAGED.joinpath(*parts[:-1], f"{parts[-1]}.yaml")
    if any(part in ("", ".", "..") for part in parts) or not file.is_file():
        hint = did_you_mean(name, [known for known, _ in names()])
        raise UserError(
            f"{name}: unknown recipe, expected a name from `hpff list recipes` or a .yaml file"
            f"{hint}"
        )
    return file.read_text(encoding="utf-8")


def _parse(text: str, name: str) -> Plain:
    data = parse_yaml(text, name)
    if not isinstance(data, dict):
        raise UserError(f"{name}: is not a recipe, expected keys and values (`epochs: 10`)")
    return data


def _with_preset(plain: Plain, source: str) -> Plain:
    """The plain data with the settings of its preset, where it has none of its own."""
    name = plain.pop("preset", None)
    if name is None:
        return plain
    try:
        return {**preset(name, plain), **plain}
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _merge(base: Plain, own: Plain) -> Plain:
    """`own` over `base`, mapping by mapping; a model or method replaces the base's whole."""
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], dict(value)) if both and key not in _NAMED else value
    return merged


def _apply(plain: Plain, override: str) -> None:
    """Set one `dotted.key=value` in the plain data, in place."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise UserError(f"{override}: not an override, expected key=value (`optimizer.lr=0.1`)")
    value = parse_yaml(text, override)
    if key == "preset":
        plain.update(_with_preset({key: value}, override))
        return
    if parts[0] in _NAMED and len(parts) > 1 and isinstance(plain.get(parts[0]), str):
        plain[parts[0]] = {"name": plain[parts[0]]}
    here = plain
    for depth, part in enumerate(parts[:-1], 1):
        below = here.get(part, {})
        if not isinstance(below, dict):
            path = ".".join(parts[:depth])
            raise UserError(f"{override}: {path} holds a value, expected a key without parts")
        here[part] = dict(below)
        here = here[part]
    here[parts[-1]] = value
