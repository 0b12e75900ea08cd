"""What a shell completes: names of recipes, tables, models, data sets and methods.

Each is found without torch, so that a shell need not wait: tests hold these lists against those
that the commands themselves know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hpff.presets import NAMES as PRESETS

METHODS = ("bp", "dgl", "predsim", "infopro", "auglocal", "man")
LEVELS = ("cl", "hilo", "pff", "cl+pff", "hpff")
DATASETS = ("digits", "cifar10", "cifar100", "svhn", "stl10", "imagenet", "camvid", "cityscapes")
DATA = (*DATASETS, "folder:", "parquet:", "pairs:")
_DEPTHS = (20, 32, 44, 56, 110)
OWN_MODELS = (
    *(f"resnet{depth}" for depth in (*_DEPTHS, 1202)),
    *(f"fcn_resnet{depth}" for depth in _DEPTHS),
)
_RECIPES = Path(__file__).parents[1] / "recipes"
_BUILDER = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)
# Torchvision's models that neither classify images nor segment them.
_OTHERS = ("detection", "optical_flow", "quantization", "video")

Completer = Callable[[str], list[str]]


def recipes(incomplete: str) -> list[str]:
    """The packaged recipes that a word may become."""
    return _beginning(incomplete, recipe_names())


def tables(incomplete: str) -> list[str]:
    """The paper's tables that a word may become."""
    return _beginning(incomplete, table_names())


def models(incomplete: str) -> list[str]:
    """The models that a word may become: ours, and a library's once its name is there."""
    library, slash, _ = incomplete.partition("/")
    if slash and library in ("timm", "torchvision"):
        return _beginning(incomplete, [f"{library}/{name}" for name in built_by(library)])
    return _beginning(incomplete, [*OWN_MODELS, "timm/", "torchvision/"])


def data(incomplete: str) -> list[str]:
    """The data sets that a word may become."""
    return _beginning(incomplete, DATA)


def method(incomplete: str) -> list[str]:
    """The one method that a word may become."""
    return _beginning(incomplete, method_names())


def methods(incomplete: str) -> list[str]:
    """The methods that the last word of a list may become."""
    return _listed(incomplete, (*method_names(), *PRESETS, "all"))


def labels(incomplete: str) -> list[str]:
    """The labels that the last word of a list may become, with a method's levels after a `+`."""
    names = [name for name in method_names() if name != "bp"]
    levels = [f"{name}+{level}" for name in names for level in LEVELS]
    last = incomplete.rpartition(",")[2]
    return _listed(incomplete, levels if "+" in last else [*method_names(), *PRESETS])


def one_of(*words: str) -> Completer:
    """A completer of one of some words."""
    return lambda incomplete: _beginning(incomplete, words)


def some_of(*words: str) -> Completer:
    """A completer of a list of some words."""
    return lambda incomplete: _listed(incomplete, words)


def recipe_names() -> list[str]:
    """The packaged recipes."""
    files = (path.relative_to(_RECIPES) for path in sorted(_RECIPES.rglob("*.yaml")))
    return [
        path.with_suffix("").as_posix()
        for path in files
        if path.parts[0] != "tables" and not path.name.startswith("_")
    ]


def table_names() -> list[str]:
    """The packaged tables."""
    return [path.stem for path in sorted((_RECIPES / "tables").glob("*.yaml"))]


def method_names() -> Sequence[str]:
    """Our methods, and those that installed packages declare."""
    found = (point.name for point in entry_points(group="hpff.methods"))
    return list(dict.fromkeys((*METHODS, *found)))


def built_by(library: str) -> list[str]:
    """The models that a library registers, as its source has them."""
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return []
    files = (Path(spec.origin).parent / "models").rglob("*.py")
    texts = (path.read_text(encoding="utf-8") for path in files if path.parent.name not in _OTHERS)
    return sorted({name for text in texts for name in _BUILDER.findall(text)})


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _listed(incomplete: str, words: Iterable[str]) -> list[str]:
    """Words for the last place of a list with commas, none twice."""
    before, comma, last = incomplete.rpartition(",")
    rest = (word for word in words if word not in before.split(","))
    return [f"{before}{comma}{word}" for word in _beginning(last, rest)]
