"""The learner of a finished run, with the auxiliary networks' weights of its checkpoint."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from hpff.data import Dataset
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.recipes import recipe as recipes
from hpff.recipes.recipe import Recipe
from hpff.runs import checkpoint as checkpoints
from hpff.runs.checkpoint_content import misfit
from hpff.runs.finished_run import FinishedRun
from hpff.runs.run_directory import RunDirectory
from hpff.training.setup import assemble

Shape = tuple[int, int, int]


def learner_of_run(
    run: FinishedRun, recipe: Recipe, found: Dataset, shape: Shape
) -> LocalLearner | None:
    """A run's learner with all its weights; None where only the backbone's are left.

    Args:
        run: the run.
        recipe: its recipe, as it is built here.
        found: its data, or others.
        shape: (C, H, W) of an image as the network sees it.

    Raises:
        UserError: the checkpoint is not whole, not of the run's last epoch, or does not fit.
    """
    file = RunDirectory(run.path).checkpoint
    if not file.exists():
        return None
    state = checkpoints.load(file)
    before = recipes.parse(state.recipe, str(file))  # an older one lacks keys that are new
    if before.to_plain() != run.recipe.to_plain() or state.epoch != run.recipe.epochs:
        raise UserError(
            f"{file}: is not of the run's last epoch; put its own back, or delete it to analyze "
            "the backbone alone"
        )
    threads = torch.get_num_threads()
    sized = dataclasses.replace(recipe, subset=None, held_out=None, threads=None, batch_size=1)
    if shape != found.image_shape():
        sized = dataclasses.replace(sized, image_size=shape[1])
    with torch.random.fork_rng():
        learner = assemble(sized, found).learner
    torch.set_num_threads(threads)
    wrong = misfit(state.learner, learner.state_dict())
    if wrong is not None:
        raise UserError(f"{file}: does not fit this run ({wrong}); put the run's own back")
    learner.load_state_dict(state.learner)
    _check_backbone(run, learner.model)
    return learner.eval()


def _check_backbone(run: FinishedRun, model: nn.Module) -> None:
    """Raise UserError where checkpoint and final weights are not of the same network."""
    final = run.model().state_dict()
    for name, value in model.state_dict().items():
        if not torch.equal(value.cpu(), final[name]):
            raise UserError(
                f"{run.path}: its checkpoint and its model.safetensors differ; put whole copies "
                "of one run in their place"
            )
