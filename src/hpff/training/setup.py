"""What a run works with, built from its recipe: data, learner, optimizers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpff import data, methods, models
from hpff.data import Dataset, ImageBatches, ImageSet, Policy
from hpff.engine.step import Losses
from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.methods import Criterion, Method
from hpff.models.pretrained import load_backbone
from hpff.recipes.recipe import Recipe
from hpff.schema import Component
from hpff.settings import LocalSettings
from hpff.torch_support.autocast import autocast
from hpff.torch_support.cuda_graph import Replayed
from hpff.training.optimizer import ModuleOptimizers
from hpff.training.team import Alone, ByData, ByModules


@dataclass(frozen=True)
class Parts:
    """The pieces of a run, all on one device; `data_bytes` is what the images hold there.

    `team` takes the run's steps, with other processes if there are any; `step` is one of them, on
    images and targets on the device.
    """

    recipe: Recipe
    device: torch.device
    dataset: Dataset
    learner: LocalLearner
    optimizers: ModuleOptimizers
    train: ImageBatches
    test: ImageBatches
    data_bytes: int
    team: Alone
    step: Callable[[Tensor, Tensor], Losses]

    @property
    def broken(self) -> dict[str, str]:
        """Name to reason of the images that were left out because they cannot be read."""
        return {**self.dataset.broken, **self.train.broken, **self.test.broken}


def assemble(
    recipe: Recipe, dataset: Dataset | None = None, model: nn.Module | None = None
) -> Parts:
    """Build everything. Seeds torch's global generators and sets its number of threads.

    Args:
        recipe: what to build.
        dataset: takes the place of the recipe's data.
        model: takes the place of the recipe's model; it is on the device already.

    Raises:
        UserError: something cannot be built.
    """
    device = choose_device(recipe.device)
    if recipe.cuda_graph and device.type != "cuda":
        raise UserError("cuda_graph: is true on the CPU; expected false, or device=cuda")
    torch.manual_seed(recipe.seed)
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    if dataset is None:
        dataset = load_data(recipe)
    dataset = dataset.cropped(recipe.crop_size)
    splits = dataset.holding_out(recipe.held_out)
    images = splits.train
    if recipe.subset is not None:
        images = images.subset(recipe.subset, seed=recipe.seed)
    train = _batches(recipe, dataset, images, device, training=True)
    test = _batches(recipe, dataset, splits.test, device, training=False)
    held = held_bytes(dataclasses.replace(splits, train=images))
    if model is None:
        model = create_model(recipe, dataset)
        if recipe.parallel != "modules":
            model = model.to(device)
    kept_on = torch.device("cpu") if recipe.parallel == "modules" else device
    learner = _learner(recipe, dataset, model, kept_on)
    if recipe.compile:
        learner.compile()
    optimizers = ModuleOptimizers(
        learner.module_parameters,
        recipe.optimizer,
        per_module=recipe.step_per_module,
        rate_on=device if recipe.cuda_graph else None,
    )
    team = _team(recipe, learner, optimizers, train, device)
    step = _step(recipe, team, device)
    return Parts(recipe, device, dataset, learner, optimizers, train, test, held, team, step)


def _step(recipe: Recipe, team: Alone, device: torch.device) -> Callable[[Tensor, Tensor], Losses]:
    def step(images: Tensor, targets: Tensor) -> Losses:
        with autocast(device, recipe.precision):
            return team.step(images, targets)

    return Replayed(step) if recipe.cuda_graph else step


def _team(
    recipe: Recipe,
    learner: LocalLearner,
    optimizers: ModuleOptimizers,
    train: ImageBatches,
    device: torch.device,
) -> Alone:
    if recipe.parallel == "data":
        return ByData(learner, optimizers, recipe.seed, synchronized=recipe.sync_batch_norm)
    if recipe.parallel == "modules":
        images, targets = next(train.epoch(epoch_generator(recipe.seed, 1)))
        batch = images.cpu(), targets.cpu()
        return ByModules(
            learner,
            optimizers,
            recipe.seed,
            batch,
            device,
            recipe.rank_timeout,
            replicas=recipe.replicas,
            synchronized=recipe.sync_batch_norm,
        )
    return Alone(learner, optimizers, recipe.seed)


def load_data(recipe: Recipe) -> Dataset:
    """The recipe's data; several runs in one process decode them once."""
    found = load_once(recipe.data, recipe.treatment, recipe.broken_images)
    return found.cropped(recipe.crop_size)


def load_once(name: str, treatment: str = "auto", broken: Policy = "stop") -> Dataset:
    """`hpff.data.load`; the last data set is kept for whoever asks for the same again."""
    return _load(data.absolute_name(name), treatment, broken)


@functools.lru_cache(maxsize=1)
def _load(name: str, treatment: str, broken: Policy) -> Dataset:
    return data.load(name, treatment=treatment, broken=broken)


def held_bytes(dataset: Dataset) -> int:
    """What a data set's images and labels hold on the device; nothing where they are streamed."""
    splits = [split for split in (dataset.train, dataset.test) if isinstance(split, ImageSet)]
    return sum(split.images.nbytes + split.labels.nbytes for split in splits)


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        UserError: it is cuda, and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("device: is cuda, but torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The generator that alone decides an epoch's order and augmentation."""
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def create_model(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """The recipe's model for a data set, with random weights."""
    model = models.create(
        recipe.model.name,
        num_classes=dataset.num_classes,
        in_channels=dataset.image_shape()[0],
        **recipe.model.settings,
    )
    if recipe.backbone_weights is not None:
        load_backbone(model, Path(recipe.backbone_weights).expanduser())
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _learner(
    recipe: Recipe, dataset: Dataset, model: nn.Module, device: torch.device
) -> LocalLearner:
    example = _example(dataset, recipe.image_size).to(device)
    if recipe.channels_last:
        example = example.contiguous(memory_format=torch.channels_last)
    settings = dataclasses.replace(recipe.local, method=_method(recipe.local, dataset))
    return LocalLearner.from_settings(
        model,
        settings,
        example=example,
        num_classes=dataset.num_classes,
        task=dataset.task,
        ignore_index=dataset.ignore_index,
        criterion=_criterion(recipe, dataset),
    )


def _criterion(recipe: Recipe, dataset: Dataset) -> Criterion:
    if not recipe.label_smoothing:
        return functional.cross_entropy
    if dataset.task == "segmentation":
        raise UserError(
            f"label_smoothing: is {recipe.label_smoothing} in a segmentation; expected 0, or data "
            "to classify"
        )
    return functools.partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)


def _example(dataset: Dataset, image_size: int | None) -> torch.Tensor:
    """Two images in 0..1 as the model will see them; gray ones where reading them takes work."""
    shape = dataset.image_shape(image_size)
    images = dataset.train
    if not isinstance(images, ImageSet) or images.shape != shape:
        return torch.full((2, *shape), 0.5)
    return images.images[:2].to(torch.float32) / 255


def _method(local: LocalSettings, dataset: Dataset) -> Component | Method:
    """The recipe's method; one that undoes the images' normalization is told the data's."""
    method = local.method
    if not isinstance(method, Component):
        return method
    normalization = {"mean": dataset.mean, "std": dataset.std}
    known = methods.setting_names(method.name)
    told = {key: value for key, value in normalization.items() if key in known}
    return Component(method.name, {**told, **method.settings})


def _batches(
    recipe: Recipe,
    dataset: Dataset,
    images: data.Split,
    device: torch.device,
    *,
    training: bool,
) -> ImageBatches:
    return data.batches(
        images,
        dataset,
        batch_size=recipe.batch_size,
        device=device,
        shuffle=training,
        augment=training and recipe.augment,
        drop_last=training,
        channels_last=recipe.channels_last,
        image_size=recipe.image_size,
        workers=recipe.workers,
        broken_images=recipe.broken_images,
        steps=None if recipe.iterations is None else recipe.iterations // recipe.epochs,
        shares=recipe.ranks if recipe.parallel == "data" else recipe.replicas,
    )
