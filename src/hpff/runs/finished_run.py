"""A finished run: its recipe, its report, and its trained backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from hpff import data, models
from hpff.errors import UserError
from hpff.recipes.recipe import Recipe
from hpff.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class DataFacts:
    """What the model was trained on: classes in order, (C, H, W), mean and deviation in 0..1."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory holds once its run has ended."""

    path: Path
    recipe: Recipe
    report: dict[str, Any]
    facts: DataFacts

    @classmethod
    def read(cls, path: Path) -> FinishedRun:
        """The run in a folder; raises UserError if there is none, or if it has not ended."""
        directory = RunDirectory(path)
        if not directory.recipe.exists():
            raise UserError(
                f"{path}: holds no run (no {directory.recipe.name}); expected the folder of "
                "`hpff train`"
            )
        recipe = directory.read_recipe()
        if not directory.finished:
            raise UserError(f"{path}: its run has not ended; go on with it by --resume first")
        report = directory.read_report()
        return cls(path, recipe, report, _facts(report.get("data"), recipe, directory.report))

    def model(self) -> nn.Module:
        """The backbone with its trained weights, on the CPU, in eval mode."""
        file = RunDirectory(self.path).weights
        model = models.create(
            self.recipe.model.name,
            num_classes=len(self.facts.class_names),
            in_channels=self.facts.image_shape[0],
            **self.recipe.model.settings,
        )
        try:
            model.load_state_dict(safetensors.torch.load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{file}: cannot be read as the weights of {self.recipe.model.name} ({reason}); "
                "put a whole copy in its place"
            ) from error
        return model.eval()


def _facts(plain: Any, recipe: Recipe, report: Path) -> DataFacts:
    """From the report, or from the data themselves for a run of before reports had them."""
    if plain is None:
        loaded = data.load(recipe.data, treatment=recipe.treatment, broken=recipe.broken_images)
        shape = loaded.image_shape(recipe.image_size)
        return DataFacts(recipe.data, loaded.class_names, shape, loaded.mean, loaded.std)
    try:
        channels, height, width = (int(side) for side in plain["image_shape"])
        return DataFacts(
            name=str(plain["name"]),
            class_names=tuple(str(name) for name in plain["class_names"]),
            image_shape=(channels, height, width),
            mean=tuple(float(value) for value in plain["mean"]),
            std=tuple(float(value) for value in plain["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{report}: what it says of the data cannot be read; delete it and run with --resume"
        ) from error
