"""Train a recipe into a run directory, from the start or from its checkpoint."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

from hpff.errors import UserError
from hpff.recipes.recipe import Recipe
from hpff.runs import checkpoint as checkpoints
from hpff.runs import machine
from hpff.runs.checkpoint import Checkpoint
from hpff.runs.observer import Observer
from hpff.runs.run_directory import RunDirectory
from hpff.runs.tensorboard import Board
from hpff.torch_support.out_of_memory import out_of_memory_as
from hpff.training import following, resuming
from hpff.training.evaluation import uncompiled
from hpff.training.following import one_epoch
from hpff.training.memory_check import check_memory
from hpff.training.setup import Parts, assemble
from hpff.training.step_cost import PeakMemory

Metrics = dict[str, Any]
Measure = Callable[[Parts], Metrics]

_LOWER = (
    "{path}: out of memory; try a smaller batch_size, image_size or model, more modules, or "
    "precision=bf16, in another folder"
)


def train(
    recipe: Recipe,
    path: Path,
    *,
    resume: bool,
    observer: Observer,
    measure: Measure | None = None,
) -> Metrics:
    """Run `recipe` in the folder `path`; the report, also of a run that was finished before.

    `measure` gives further metrics, numbers or lists of them, of each epoch that is tested.

    The test error is that of the last epoch.

    Raises:
        UserError: bad input; the folder then holds what it held before, or a run that `resume`
            goes on with.
    """
    if following.is_follower(recipe):
        return following.follow(recipe)
    directory = RunDirectory(path)
    if resume and directory.finished:  # Needs no right to write there.
        with following.followed(recipe) as followers:
            report = directory.finished_before(recipe)
            followers.nothing_to_do()
        return report
    with contextlib.ExitStack() as use:
        with following.followed(recipe) as followers:
            use.enter_context(directory.in_use())
            directory.check(recipe, resume=resume)
            saved = resuming.saved(directory, recipe)
            with out_of_memory_as(_LOWER.format(path=path)):
                check_memory(recipe, path)
            followers.begin(saved)
        with out_of_memory_as(_LOWER.format(path=path)):
            parts = assemble(recipe)
        found = resuming.describe(parts)
        history = resuming.restore(parts, found, saved, directory) if saved else []
        del saved
        directory.write_recipe(recipe)
        directory.write_metrics(history)
        try:
            observer.started(recipe, path, len(history))
        except UserError:
            if not resume:
                directory.forget()
            raise
        with out_of_memory_as(_LOWER.format(path=path)):
            _train_epochs(parts, directory, history, observer, found, measure)
        report = _finish(parts, directory, history, found)
        parts.team.close()
        return report


def go_on(
    recipe: Recipe, path: Path, observer: Observer, measure: Measure | None = None
) -> Metrics:
    """`train`, from where the run in the folder stands; the report."""
    begun = RunDirectory(path).recipe.exists()
    gc.collect()  # The run before must not count in the memory of this one.
    return train(recipe, path, resume=begun, observer=observer, measure=measure)


def _train_epochs(
    parts: Parts,
    directory: RunDirectory,
    history: list[Metrics],
    observer: Observer,
    found: Metrics,
    measure: Measure | None,
) -> None:
    memory = PeakMemory(parts)
    board = Board(directory.tensorboard, first_epoch=len(history) + 1)
    with contextlib.closing(board):
        for epoch in range(len(history) + 1, parts.recipe.epochs + 1):
            metrics = one_epoch(parts, epoch, memory, observer)
            if measure is not None and metrics["test_error_percent"] is not None:
                with uncompiled(parts):
                    metrics |= measure(parts)
            history.append(metrics)
            _save(parts, directory, history, found)
            directory.write_metrics(history)
            directory.write_step_memory(memory.curve())
            directory.add_broken(parts.broken)
            board.write(metrics)
            observer.epoch_done(metrics)


def _save(parts: Parts, directory: RunDirectory, history: list[Metrics], found: Metrics) -> None:
    learner, optimizers = parts.team.states()
    state = Checkpoint(
        recipe=parts.recipe.to_plain(),
        data=found,
        epoch=len(history),
        learner=learner,
        optimizers=optimizers,
        random=checkpoints.random_state(),
        history=history,
    )
    checkpoints.save(directory.checkpoint, state)


def _finish(
    parts: Parts, directory: RunDirectory, history: list[Metrics], found: Metrics
) -> Metrics:
    """Write the plain backbone and, last, the report that marks the run as finished."""
    whole, _ = parts.team.states()
    names = parts.learner.model.state_dict()
    state = {name: whole[f"model.{name}"].contiguous() for name in names}
    directory.write_weights(safetensors.torch.save(state))
    return directory.write_report(_report(parts, history, found))


def _step_seconds(history: list[Metrics]) -> float:
    """The median over the epochs that have steps which no counting of memory slowed."""
    timed = [entry for entry in history if entry.get("timed_steps", 1)]
    seconds: float = statistics.median(entry["step_seconds"] for entry in timed or history)
    return seconds


def _report(parts: Parts, history: list[Metrics], found: Metrics) -> Metrics:
    last = history[-1]
    tested = [e["test_error_percent"] for e in history if e["test_error_percent"] is not None]
    backbone = sum(parameter.numel() for parameter in parts.learner.model.parameters())
    everything = sum(parameter.numel() for parameter in parts.learner.parameters())
    return {
        "epochs": last["epoch"],
        "test_error_percent": last["test_error_percent"],
        "test_loss": last["test_loss"],
        "test_top5_error_percent": last.get("test_top5_error_percent"),
        "best_test_error_percent": min(tested, default=None),
        **{key: last[key] for key in ("test_miou_percent",) if key in last},
        "test_images": (parts.recipe.held_out or len(parts.dataset.test)) - len(parts.test.broken),
        "broken_images": last.get("broken_images", 0),
        "peak_memory_bytes": max(entry["peak_memory_bytes"] for entry in history),
        "peak_memory_source": last["peak_memory_source"],
        "step_seconds": _step_seconds(history),
        "images_per_second": statistics.median(entry["images_per_second"] for entry in history),
        "train_seconds": sum(entry["seconds"] for entry in history),
        "backbone_parameters": backbone,
        "auxiliary_parameters": everything - backbone,
        "data": {**_described(parts), "found": found},
        "recipe": parts.recipe.to_plain(),
        "machine": machine.describe(),
    }


def _described(parts: Parts) -> Metrics:
    """What it takes to use the model on images: their size and normalization, and its classes."""
    dataset = parts.dataset
    return {
        "name": parts.recipe.data,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.image_shape(parts.recipe.image_size)),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
    }
