"""A recipe: everything that decides a run, validated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hpff import methods, schema
from hpff.data import Policy, TreatmentName
from hpff.errors import UserError, shown
from hpff.recipes.cross_checks import cross_faults
from hpff.schema import Component, Values
from hpff.schema.rules import (
    BatchSize,
    CountFromZero,
    Fraction,
    ImageSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Threads,
    Workers,
)
from hpff.settings import LocalSettings

_HOW_IT_RUNS = (
    *("parallel", "ranks", "replicas", "rank_timeout", "sync_batch_norm"),  # over processes
    *("cuda_graph", "streams"),
)


@dataclass(frozen=True)
class OptimizerRecipe:
    """SGD or AdamW: learning rate, weight decay; momentum and nesterov are SGD's alone."""

    lr: PositiveFloat
    momentum: Fraction = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 1e-4
    name: Literal["sgd", "adamw"] = "sgd"


@dataclass(frozen=True)
class ScheduleRecipe:
    """How the learning rate goes with the epochs; see `rate`."""

    name: Literal["cosine", "cosine-from-full", "constant", "poly"] = "cosine"
    warmup_epochs: CountFromZero = 0
    warmup_lr: NonNegativeFloat = 0.01
    power: PositiveFloat = 0.9
    last_lr: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Recipe:
    """One run. In YAML the keys of `local` stand among the others.

    `local` says how the network is trained: see :class:`~hpff.LocalSettings`. A recipe turns levels
    and patches on: without keys of their own, `cascade` and `patches` are 1. `method` has the
    settings that were published for the network, the data and K, unless the recipe gives its own.
    `iterations` is how many steps a run takes in all; `epochs` is then into how many stretches of
    equal length they are divided, after each of which the model is tested and saved (null: an epoch
    is a pass over the data). Only for segmentation, like `crop_size`, the height and width of
    training images (null: the data's). `backbone_weights` is a file of pretrained weights of the
    model's backbone, safetensors or a plain state dict (null: random).
    `label_smoothing` is the share of a target that all classes get alike, in every loss of classes.
    `held_out` is a number of training images that are tested on instead of the test split, the same
    for every seed and never trained on (null: none), for choosing settings.
    `subset` is a number of training images (null: all); `threads` of the CPU (null: torch's choice;
    1 is quickest for tiny models).
    `treatment` is the published normalization and augmentation for data given by a path (auto:
    "imagenet" for folders, "cifar" for Parquet images of 3x32x32). `image_size` is what images are
    resized or cropped to (null: as they are; 224 under "imagenet"). `workers` is the number of
    processes that decode images (null: the cores, at most 16), where they are not held in memory.
    `broken_images` says what to do with an image that cannot be read: stop, or skip it and count.
    `compile` compiles what training runs: the model for bp, else its blocks and the auxiliary
    networks, which takes minutes and pays on a GPU. `cuda_graph` records a step as one CUDA graph
    and replays it, so that small kernels do not wait for the host; a run can go on with or without.
    `channels_last` sets how models and images lie in memory; false leaves a model as it comes, and
    this library's own CIFAR ResNets (`resnet20` and its like) come channels-last.
    `parallel` shares the run out over `ranks` processes: "modules" gives each some local modules,
    "data" a part of each batch. With "modules" there may be several `replicas` of the `ranks`, each
    with a part of each batch: ranks × replicas processes. `rank_timeout` is how many seconds they
    wait for each other. `sync_batch_norm` lets BatchNorm normalize by the whole batch, and not by
    each rank's part, with "data" or replicas. None of the five is part of what a run is: it can go
    on with others.
    """

    model: Component
    data: str
    local: LocalSettings = field(
        metadata={schema.INLINE: {"method": dataclasses.MISSING, "cascade": 1, "patches": 1}}
    )
    epochs: PositiveInt
    batch_size: BatchSize
    optimizer: OptimizerRecipe
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    label_smoothing: Fraction = 0.0
    augment: bool = True
    treatment: TreatmentName = "auto"
    image_size: ImageSize | None = None
    workers: Workers | None = None
    iterations: PositiveInt | None = None
    crop_size: tuple[ImageSize, ...] | None = None
    backbone_weights: str | None = None
    broken_images: Policy = "stop"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    cuda_graph: bool = False
    channels_last: bool = False
    seed: Seed = 0
    held_out: PositiveInt | None = None
    subset: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    step_per_module: bool = True
    evaluate_every: PositiveInt = 1
    parallel: Literal["none", "modules", "data"] = "none"
    ranks: PositiveInt = 1
    replicas: PositiveInt = 1
    rank_timeout: PositiveFloat = 600.0
    sync_batch_norm: bool = False

    def to_plain(self) -> dict[str, Any]:
        """The recipe as plain data, every key written out, for YAML and for checkpoints."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, LocalSettings):
                plain |= value.to_plain()
            elif isinstance(value, Component):
                plain[name] = value.to_plain()
            elif isinstance(value, OptimizerRecipe | ScheduleRecipe):
                plain[name] = dataclasses.asdict(value)
            else:
                plain[name] = list(value) if isinstance(value, tuple) else value
        return plain


def parse(data: object, source: str) -> Recipe:
    """The recipe in plain `data`.

    Raises:
        UserError: it has faults; one line for each.
    """
    faults: dict[str, str] = {}
    values = schema.read(Recipe, data, faults)
    for key, text in cross_faults(values):
        faults.setdefault(key, text)
    if faults:
        raise UserError(*(f"{source}: {key}: {text}" for key, text in faults.items()))
    recipe: Recipe = schema.build(Recipe, {**values, "method": _in_force(values)})
    return recipe


def _in_force(values: Values) -> Component:
    """The method with the settings published for the network, data and K, where none are given."""
    method, modules = values["method"], values["modules"]
    count = modules if isinstance(modules, int) else len(modules or ()) + 1
    published = methods.published(
        method.name, network=values["model"].name, data=values["data"], modules=count
    )
    return Component(method.name, {**published, **method.settings})


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One text for each key whose value differs: `optimizer.lr (0.1, now 0.2)`.

    How a run is shared out over processes, or launched, is no difference.
    """
    before, after = flatten(old.to_plain()), flatten(new.to_plain())
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key} ({shown(before.get(key))}, now {shown(after.get(key))})"
        for key in keys
        if before.get(key) != after.get(key) and key not in _HOW_IT_RUNS
    ]


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested mappings as one: full key path to value."""
    flat: Values = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
