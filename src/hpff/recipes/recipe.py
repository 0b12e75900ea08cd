"""A recipe: everything that decides a run, validated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from hpff import methods
from hpff.data import Policy, TreatmentName
from hpff.errors import UserError
from hpff.recipes import schema
from hpff.recipes.cross_checks import CROSS_CHECKS
from hpff.recipes.schema import (
    CountFromZero,
    FactorFromOne,
    Fraction,
    ImageSize,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
    Threads,
    Values,
    Workers,
)


@dataclass(frozen=True)
class Named:
    """A model or a method by name, with its settings."""

    expected: ClassVar[str] = "a name, or {name: ..., and settings}"

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, value: object) -> Named:
        """`dgl` or `{name: dgl, hidden_layers: 2}`; raises ValueError for anything else."""
        if isinstance(value, str) and value:
            return cls(value)
        if isinstance(value, Mapping) and isinstance(value.get("name"), str):
            settings = {str(key): item for key, item in value.items() if key != "name"}
            return cls(value["name"], settings)
        raise ValueError(cls.expected)

    def to_plain(self) -> str | dict[str, Any]:
        """The form that `from_plain` reads."""
        return {"name": self.name, **self.settings} if self.settings else self.name


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

    name: Literal["cosine", "cosine-from-full", "constant"] = "cosine"
    warmup_epochs: CountFromZero = 0
    warmup_lr: NonNegativeFloat = 0.01


@dataclass(frozen=True)
class Recipe:
    """One run.

    `method` has the settings that were published for the network, the data and K, unless the recipe
    gives its own.
    `modules` is K or the names of the submodules after which to cut, `balance` what K modules
    share out evenly (blocks, or as published; parameters; activation memory). `cascade` is k; or
    auto: at each module as many as fit into `cascade_budget` times the memory of k = 2; or a list:
    how many modules the cascade trains that ends at each (1: none does). `subset` is a number of
    training images (null: all); `threads` of the CPU (null: torch's choice; 1 is quickest for tiny
    models).
    `treatment` is the published normalization and augmentation for data given by a path (auto:
    "imagenet" for folders, "cifar" for Parquet images of 3x32x32). `image_size` is what images are
    resized or cropped to (null: as they are; 224 under "imagenet"). `workers` is the number of
    processes that decode images (null: the cores, at most 16), where they are not held in memory.
    `broken_images` says what to do with an image that cannot be read: stop, or skip it and count.
    `auxiliary_weight` is the factor of the rate for the auxiliary networks themselves ("level":
    their level's weight).
    `compile` compiles what training runs: the model for bp, else its blocks and the auxiliary
    networks, which takes minutes and pays on a GPU.
    `channels_last` sets how models and images lie in memory; false leaves a model as it comes, and
    this library's own CIFAR ResNets (`resnet20` and its like) come channels-last.
    """

    model: Named
    data: str
    method: Named
    epochs: PositiveInt
    batch_size: PositiveInt
    optimizer: OptimizerRecipe
    modules: PositiveInt | tuple[str, ...] | None = None
    balance: Literal["blocks", "parameters", "memory"] = "blocks"
    cascade: PositiveInt | Literal["auto"] | tuple[PositiveInt, ...] = 1
    cascade_budget: FactorFromOne = 1.0
    independent: bool = True
    patches: PositiveInt = 1
    smallest_patch: PositiveInt = 2
    patch_mode: Literal["auto", "together", "one-by-one"] = "auto"
    lean: bool | Literal["light"] = False
    independent_weight: PositiveFloat | None = None
    cascade_weight: PositiveFloat | None = None
    auxiliary_weight: PositiveFloat | Literal["level"] = 1.0
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    augment: bool = True
    treatment: TreatmentName = "auto"
    image_size: ImageSize | None = None
    workers: Workers | None = None
    broken_images: Policy = "stop"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    seed: Seed = 0
    subset: PositiveInt | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Threads | None = None
    step_per_module: bool = True
    evaluate_every: PositiveInt = 1

    @property
    def local(self) -> bool:
        """Whether the run trains in local modules (not by backprop)."""
        return self.method.name != "bp"

    def to_plain(self) -> dict[str, Any]:
        """The recipe as plain data, every key written out, for YAML and for checkpoints."""
        plain = dataclasses.asdict(self)
        plain["model"] = self.model.to_plain()
        plain["method"] = self.method.to_plain()
        for key in ("modules", "cascade"):
            if isinstance(plain[key], tuple):
                plain[key] = list(plain[key])
        return plain


def parse(data: object, source: str) -> Recipe:
    """The recipe in plain `data`; raises UserError with one line for each fault."""
    faults: dict[str, str] = {}
    values = schema.read(Recipe, data, faults)
    for check in CROSS_CHECKS:
        try:
            fault = check(values)
        except KeyError:  # A value it needs is itself at fault.
            continue
        if fault:
            faults.setdefault(*fault)
    if faults:
        raise UserError("\n".join(f"{source}: {key}: {text}" for key, text in faults.items()))
    recipe: Recipe = schema.build(Recipe, values)
    return dataclasses.replace(recipe, method=_in_force(recipe))


def _in_force(recipe: Recipe) -> Named:
    """The method with the settings published for the network, data and K, where none are given."""
    modules = recipe.modules if isinstance(recipe.modules, int) else len(recipe.modules or ()) + 1
    method = recipe.method
    published = methods.published(
        method.name, network=recipe.model.name, data=recipe.data, modules=modules
    )
    return Named(method.name, {**published, **method.settings})


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One text for each key whose value differs: `optimizer.lr (0.1, now 0.2)`."""
    before, after = flatten(old.to_plain()), flatten(new.to_plain())
    keys = sorted(before.keys() | after.keys())
    return [
        f"{key} ({schema.shown(before.get(key))}, now {schema.shown(after.get(key))})"
        for key in keys
        if before.get(key) != after.get(key)
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
