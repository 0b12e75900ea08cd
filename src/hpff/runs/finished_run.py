"""A finished run: its recipe, its report, and its trained backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from hpff import models
from hpff.errors import UserError
from hpff.recipes.recipe import Recipe
from hpff.runs.checkpoint_content import misfit
from hpff.runs.run_directory import RunDirectory


@dataclass(frozen=True)
class DataFacts:
    """What the model was trained on: classes in order, (C, H, W), mean and deviation in 0..1.

    Attributes:
        found: the data's whole name, and their fingerprint, as the run found them.
    """

    name: str
    found: Mapping[str, Any]
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
        """The run in a folder.

        Raises:
            UserError: there is none, it has not ended, or its files are damaged.
        """
        directory = RunDirectory(path)
        if not directory.recipe.exists():
            raise UserError(
                f"{path}: holds no run (no {directory.recipe.name}); expected the folder of "
                "`hpff train`"
            )
        if not directory.finished:
            raise UserError(f"{path}: its run has not ended; go on with it by --resume first")
        report = directory.read_report()
        directory.read_whole(directory.recipe)
        facts = _facts(report.get("data"), directory.report)
        return cls(path, directory.read_recipe(), report, facts)

    @property
    def is_dense(self) -> bool:
        """Whether its model classifies pixels."""
        return "test_miou_percent" in self.report

    def model(self) -> nn.Module:
        """The backbone with its trained weights, on the CPU, in eval mode.

        Raises:
            UserError: the weights are damaged, do not fit, or are not finite.
        """
        directory = RunDirectory(self.path)
        file = directory.weights
        content = directory.read_whole(file)
        model = models.create(
            self.recipe.model.name,
            num_classes=len(self.facts.class_names),
            in_channels=self.facts.image_shape[0],
            **self.recipe.model.settings,
        )
        try:
            weights = safetensors.torch.load(content)
            wrong = misfit(weights, model.state_dict())
            if wrong is None:
                model.load_state_dict(weights)
        except (SafetensorError, RuntimeError) as error:
            wrong = " ".join(str(error).split())[:200]
        if wrong is not None:
            raise UserError(
                f"{file}: cannot be used as the weights of {self.recipe.model.name} ({wrong}); "
                "put a whole copy in its place"
            )
        return model.eval()


def _facts(plain: Any, report: Path) -> DataFacts:
    try:
        channels, height, width = (int(side) for side in plain["image_shape"])
        return DataFacts(
            name=str(plain["name"]),
            found=dict(plain["found"]),
            class_names=tuple(str(name) for name in plain["class_names"]),
            image_shape=(channels, height, width),
            mean=tuple(float(value) for value in plain["mean"]),
            std=tuple(float(value) for value in plain["std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{report}: what it says of the data cannot be read; delete it and run with --resume"
        ) from error
