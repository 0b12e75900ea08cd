"""Recipes on disk: packaged names and paths, `base:` inheritance, `key=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpff.errors import UserError
from hpff.training import recipe as recipes
from hpff.training.recipe import Recipe
from hpff.training.schema import did_you_mean

Plain = dict[str, Any]

_PACKAGED = Path(__file__).parent.parent / "recipes"
_NAMED = ("model", "method")  # A name, or a mapping of its name and its settings.


class _Loader(yaml.SafeLoader):
    """yaml.safe_load that reads `1e-4` as a number and refuses a key given twice."""

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


def load(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a packaged name or a YAML file, with `key=value` overrides; or UserError."""
    plain = _read_with_bases(name, Path(), ())
    for override in overrides:
        _apply(plain, override)
    try:
        return recipes.parse(plain, name)
    except RecursionError as error:  # Such as a YAML list that holds itself.
        raise UserError(f"{name}: is nested too deeply") from error


def names() -> list[tuple[str, str]]:
    """The packaged recipes: name and the first line of the header comment."""
    files = [file for file in sorted(_PACKAGED.rglob("*.yaml")) if not file.name.startswith("_")]
    return [(_name(file), _header(file)) for file in files]


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out."""
    return yaml.safe_dump(recipe.to_plain(), sort_keys=False)


def _name(file: Path) -> str:
    return file.relative_to(_PACKAGED).with_suffix("").as_posix()


def _header(file: Path) -> str:
    return file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _read_with_bases(name: str, folder: Path, seen: tuple[str, ...]) -> Plain:
    """The plain data of a recipe laid over that of its base, and its base's base."""
    if name in seen:
        raise UserError(f"{name}: base goes round in a circle ({' -> '.join((*seen, name))})")
    text, home = _read_text(name, folder)
    plain = _parse(text, name)
    base = plain.pop("base", None)
    if base is None:
        return plain
    if not isinstance(base, str):
        raise UserError(f"{name}: base: is {base!r}, expected a recipe's name or file")
    return _merge(_read_with_bases(base, home, (*seen, name)), plain)


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
    data = _parse_yaml(text, name)
    if not isinstance(data, dict):
        raise UserError(f"{name}: is not a recipe, expected keys and values (`epochs: 10`)")
    return data


def _parse_yaml(text: str, source: str) -> Any:
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
    value = _parse_yaml(text, override)
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
