"""Where a run's settings come from: a paper, a public code, or nobody but us."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hpff import methods
from hpff import recipes as packaged
from hpff.errors import shown
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.recipes.yaml_text import parse_yaml
from hpff.settings import HILO_WEIGHTS

_FILE = Path(packaged.__file__).with_name("_sources.yaml")
_PAGE = "docs/methods.md, Where papers and public codes differ"
_OURS = "ours: "

# Keys that say where, when and how fast a run goes, not what it computes.
_WITHOUT_EFFECT = {
    *("seed", "device", "threads", "workers", "evaluate_every", "broken_images"),
    *("patch_mode", "recompute", "compile", "cuda_graph", "channels_last", "step_per_module"),
    *("parallel", "ranks", "replicas", "rank_timeout", "sync_batch_norm"),
}
# Keys that change nothing as long as they have this value.
_OFF = {
    "subset": None,
    "held_out": None,
    "image_size": None,
    "iterations": None,
    "crop_size": None,
    "backbone_weights": None,
    "treatment": "auto",
    "precision": "fp32",
    "cascade_budget": 1.0,
    "cascade_stride": 1,
    "patch_norm": "apart",
    "recompute_budget": 1.0,
    "streams": 1,
    "label_smoothing": 0.0,
}
_LOCAL = ("method", "modules", "balance", "cascade", "independent", "patches", "smallest_patch")
_TOLD_BY_DATA = ("mean", "std")


@dataclass(frozen=True)
class Setting:
    """A setting that decides a run's result.

    `source` is the paper or the public code that gives it; "ours: " and a reason where nobody
    published one; None where nothing is known, as for recipes of your own, or where the run has
    another than the published value.
    """

    value: Any
    source: str | None

    @property
    def ours(self) -> bool:
        """Whether nobody published it."""
        return self.source is not None and self.source.startswith(_OURS)


def settings(name: str, before: Recipe, recipe: Recipe) -> dict[str, Setting]:
    """What decides a run's result, by full key path, with the defaults of method and levels.

    Args:
        name: of the packaged recipe, or of a file.
        before: that recipe, before anything was changed.
        recipe: the run's own.
    """
    old, new = _values(before), _values(recipe)
    found = {key: Setting(new[key], _source(name, key)) for key in sorted(new)}
    return {
        key: setting
        if setting.ours or setting.value == old.get(key)
        else replace(setting, source=None)
        for key, setting in found.items()
    }


def lines(runs: Mapping[str, Mapping[str, Setting]]) -> list[str]:
    """One line for what was published, by source, and one for each reason for what is ours.

    Args:
        runs: the settings of each run, by its name.
    """
    published: dict[str, set[str]] = {}
    ours: dict[str, dict[str, None]] = {}
    for found in runs.values():
        for key, setting in found.items():
            if setting.source and setting.ours:
                ours.setdefault(setting.source, {})[key] = None
            elif setting.source:
                published.setdefault(setting.source, set()).add(key)
    if not published and not ours:
        return []
    texts = [f"{', '.join(sorted(keys))} ({source})" for source, keys in sorted(published.items())]
    return [
        f"Published: {'; '.join(texts)}.",
        *(_our_line(source, keys, runs) for source, keys in ours.items()),
        f"How a step is computed differs in places, too: {_PAGE}.",
    ]


def _our_line(source: str, keys: Iterable[str], runs: Mapping[str, Mapping[str, Setting]]) -> str:
    """`Ours: KEY VALUE, KEY VALUE (why; in these runs)`; a value only where there is but one."""
    texts, others = [], set()
    for key in keys:
        there = {name: found[key] for name, found in runs.items() if key in found}
        values = {_text(setting.value) for setting in there.values() if setting.source == source}
        texts.append(f"{key} {values.pop()}" if len(values) == 1 else key)
        others |= {name for name, setting in there.items() if setting.source != source}
    reason = source.removeprefix(_OURS)
    if others:
        names = [name for name in runs if any(_has(runs[name], key, source) for key in keys)]
        reason += f"; in {', '.join(names)}"
    return f"Ours: {', '.join(texts)} ({reason})."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _has(found: Mapping[str, Setting], key: str, source: str) -> bool:
    return key in found and found[key].source == source


def _values(recipe: Recipe) -> dict[str, Any]:
    flat = recipes.flatten(recipe.to_plain())
    for key in ("model", "method"):
        if key in flat:
            flat[f"{key}.name"] = flat.pop(key)
    if not recipe.local.is_backprop:
        flat = {**_defaults(recipe.local.method_name), **flat}
    for key, weight in zip(("independent_weight", "cascade_weight"), HILO_WEIGHTS, strict=True):
        flat[key] = weight if flat[key] is None else flat[key]
    return {key: value for key, value in flat.items() if _matters(key, value, recipe)}


def _matters(key: str, value: Any, recipe: Recipe) -> bool:
    top = key.partition(".")[0]
    if top in _WITHOUT_EFFECT or (key in _OFF and value == _OFF[key]):
        return False
    if top in _LOCAL or top.endswith("_weight"):
        return _matters_locally(key, recipe)
    if key in ("optimizer.momentum", "optimizer.nesterov"):
        return recipe.optimizer.name == "sgd"
    if key in ("schedule.power", "schedule.last_lr"):
        return recipe.schedule.name == "poly"
    return key != "schedule.warmup_lr" or recipe.schedule.warmup_epochs > 0


def _matters_locally(key: str, recipe: Recipe) -> bool:
    if recipe.local.is_backprop:
        return key == "method.name"
    if key.endswith("_weight"):
        return recipe.local.independent and recipe.local.has_cascades
    if key == "method.dropout":
        return bool(recipe.local.method_settings.get("dropout"))
    if key == "method.temperature":
        return recipe.local.method_settings.get("task") == "contrast"
    return key != "smallest_patch" or recipe.local.patches > 1


def _defaults(method: str) -> dict[str, Any]:
    """The settings of a method by full key path, without those that the data decide."""
    parameters = inspect.signature(type(methods.create(method))).parameters
    return {
        f"method.{name}": list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in parameters.items()
        if name not in _TOLD_BY_DATA
    }


def _source(name: str, key: str) -> str | None:
    known = _known(name)
    while key and key not in known:
        key = key.rpartition(".")[0]
    return known.get(key)


@functools.cache
def _blocks() -> Mapping[str, Mapping[str, Sequence[str]]]:
    found: Mapping[str, Mapping[str, Sequence[str]]]
    found = parse_yaml(_FILE.read_text(encoding="utf-8"), _FILE.name)
    return found


@functools.cache
def _known(name: str) -> Mapping[str, str]:
    """Key to source, from all blocks that are for the packaged recipe of that name."""
    known: dict[str, str] = {}
    if name.endswith((".yaml", ".yml")):
        return known
    for pattern, block in _blocks().items():
        if fnmatchcase(name, pattern):
            for source, keys in block.items():
                for key in keys:
                    known = {k: s for k, s in known.items() if not k.startswith(f"{key}.")}
                    known[key] = source
    return known
