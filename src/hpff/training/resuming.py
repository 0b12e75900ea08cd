"""Taking a run up again: only from its own checkpoint, whole, and on the data that it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpff import data
from hpff.errors import UserError
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs import checkpoint as checkpoints
from hpff.runs.checkpoint import Checkpoint
from hpff.runs.checkpoint_content import misfit
from hpff.runs.run_directory import RunDirectory
from hpff.training.setup import Parts

Metrics = dict[str, Any]


def describe(parts: Parts) -> Metrics:
    """What a run keeps of its data: their whole name, and their fingerprint."""
    return {"name": data.absolute_name(parts.recipe.data), **data.fingerprint(parts.dataset)}


def saved(directory: RunDirectory, recipe: Recipe) -> Checkpoint | None:
    """The run's checkpoint, if it has one by now.

    Raises:
        UserError: it is not sound or of another recipe, or the recipe's data are not where they
            were.
    """
    path = directory.checkpoint
    if not path.exists():
        return None
    state = checkpoints.load(path)
    if _is_another(state.recipe, recipe):
        raise UserError(f"{path}: is of another recipe than {directory.recipe}; put its own back")
    if state.epoch > recipe.epochs:
        raise _misfit(path, f"{state.epoch} epochs are done of {recipe.epochs}")
    named, now = state.data["name"], data.absolute_name(recipe.data)
    folder = now.partition(":")[2]
    if folder and now != named and not Path(folder).exists():
        raise UserError(
            f"{directory.path}: its data are {named}, and from this folder {recipe.data} is "
            f"{folder}, which is not there; run the command in the folder of before"
        )
    return state


def _is_another(before: Metrics, recipe: Recipe) -> bool:
    """Whether a checkpoint's recipe is another; an older one may lack keys that are new."""
    try:
        return bool(recipes.differences(recipes.parse(before, "checkpoint"), recipe))
    except UserError:
        return True


def restore(
    parts: Parts, found: Metrics, state: Checkpoint, directory: RunDirectory
) -> list[Metrics]:
    """Take everything back from the checkpoint; the metrics of the epochs it has done.

    Raises:
        UserError: the data that were `found` are others, or the state does not fit; nothing is
            taken then.
    """
    different = data.data_differences(state.data, found)
    if different:
        raise UserError(
            f"{directory.path}: holds a run on other data, which --resume cannot go on with; "
            f"different: {', '.join(different)}; it was on {state.data['name']}, now "
            f"{found['name']}"
        )
    path = directory.checkpoint
    wrong = misfit(state.learner, parts.learner.state_dict())
    if wrong:
        raise _misfit(path, wrong)
    try:
        parts.team.load(state.learner, state.optimizers)
        checkpoints.restore_random_state(state.random)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _misfit(path, error) from error
    return state.history


def _misfit(path: Path, reason: object) -> UserError:
    text = " ".join(str(reason).split())
    return UserError(
        f"{path}: does not fit this run ({text[:200]}); put the run's own checkpoint back, or "
        "delete it to start the run again from its first epoch"
    )
