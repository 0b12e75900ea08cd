"""One run of benchmarks/cifar10_short.yaml with a change, for those that compare many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hpff.experiments import comparison
from hpff.recipes.recipe import Recipe
from hpff.training import loop


class Quiet:
    def started(self, *_: object) -> None: ...

    def stepped(self, *_: object) -> None: ...

    def epoch_done(self, *_: object) -> None: ...


def error_of(label: str, base: Recipe, changes: dict[str, Any], seed: int, path: Path) -> float:
    """Test error in percent, last epoch; a run that is there goes on or is kept."""
    recipe = comparison.recipe_for(
        label, dataclasses.replace(base, local=dataclasses.replace(base.local, **changes)), seed
    )
    report = loop.go_on(recipe, path, Quiet())
    return float(report["test_error_percent"])
