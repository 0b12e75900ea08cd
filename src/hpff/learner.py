"""LocalLearner: local learning for any model, in three lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import methods
from hpff.auxiliary import PatchFusion, patches_in_force
from hpff.cutting.balance import Balance
from hpff.cutting.partition import Partition, partition
from hpff.cutting.trace import is_compiled
from hpff.engine.auxiliary_networks import JudgeBuilder, PatchMode, image_of, read, sides_of
from hpff.engine.phase import Position
from hpff.engine.reach import Cascade, reach_of
from hpff.engine.recomputation import Lean
from hpff.engine.schedule import Level
from hpff.engine.step import HookedStep, Losses
from hpff.errors import UserError
from hpff.features import Features, Finder, check_given
from hpff.methods import Criterion, Method, Place

# Found by the sweep in benchmarks/level_weights.md.
HILO_WEIGHTS = (0.1, 1.0)
_COMPILED_VARIANTS = 64

AuxiliaryWeight = float | Literal["level"]


class LocalLearner(nn.Module):
    """Trains ``model`` in local modules by HPFF (Su et al., ECCV 2024), or by plain local learning.

    The model is used as it is: it is cut at the outputs of existing submodules, and keeps its
    forward, its parameters' names and its ``state_dict``. ``learner(images)`` is the model itself.
    In a training step, a tensor that the model hands from one module to the next loses its content
    once the next module is done: a hook that wants to keep one must keep a copy.

    Args:
        model: any module whose forward runs through a chain of blocks and returns logits.
        modules: K, or the names of the submodules after which to cut.
        example: one small input: a tensor, or a tuple or dict of forward's arguments. Give it two
            samples or more where the model has BatchNorm.
        num_classes: of the task.
        balance: for a number K, how to share out the model's blocks: "blocks" (as published, or
            evenly), "parameters" or "memory" (what a module saves for its backward): see
            :func:`hpff.cutting.partition.partition`.
        method: "dgl", "predsim", "infopro", "auglocal" or "bp", or a
            :class:`~hpff.methods.Method`. "bp" is backprop: one module.
        cascade: k, how many modules a cascade trains; 1 turns the cascade level off. "auto": as
            many at each module as fit into the memory that k = 2 needs at the widest modules (see
            :func:`hpff.engine.reach.within`). Or a list: for each module the length of the cascade that
            ends there, 1 for none.
        cascade_budget: of "auto": how many times that memory may be used.
        independent: False turns the independent level off.
        patches: n; 1 turns PFF off. Where n×n patches do not fit a map, n is the largest below
            that divides its sides; ``learner.partition`` shows it. Sequences are cut into n pieces.
        smallest_patch: n falls where the sides of patches would be smaller, in positions of the
            map (pieces of a sequence: shorter, on the example). The default, 2, never lowers the
            n of the published experiments; 1 allows patches of a single position.
        independent_weight, cascade_weight: the levels' weights (the update rule's η, as factors of
            the optimizer's rate). By default 1 where only one level is on, otherwise
            ``HILO_WEIGHTS``.
        auxiliary_weight: factor of the optimizer's rate for the auxiliary networks themselves; the
            update rule has η at the modules alone. "level": the weight of their level.
        patch_mode: "together" (all patches in one batch), "one-by-one" (the graph of one patch at
            a time), or "auto": one by one only where all patches together would take more memory
            than the step takes at another module anyway.
        criterion: the task's loss, ``criterion(logits, targets)`` -> scalar.
        features: what the outputs at the cuts are, where it is found wrong (``learner.partition``
            shows it): "map", "map-last" (B, H, W, C), "tokens", "sequence", "sequence-first"
            (B, D, L), "vector", or a :class:`~hpff.features.Features`; or a dict of these by the
            cut's name.
        lean: keep only the modules' inputs, and recompute the rest of their graphs, tensor by
            tensor, in the backwards: the same gradients from less memory, in more time. "light"
            recomputes each tensor once, True several times. Not with compiled blocks.

    Raises:
        UserError: an argument is out of its range, or the model cannot be cut as asked.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        modules: int | Sequence[str],
        example: Any,
        num_classes: int,
        balance: Balance = "blocks",
        method: str | Method = "dgl",
        cascade: Cascade = 2,
        cascade_budget: float = 1.0,
        independent: bool = True,
        patches: int = 2,
        smallest_patch: int = 2,
        independent_weight: float | None = None,
        cascade_weight: float | None = None,
        auxiliary_weight: AuxiliaryWeight = 1.0,
        patch_mode: PatchMode = "auto",
        criterion: Criterion = F.cross_entropy,
        features: str | Features | Mapping[str, str | Features] | None = None,
        lean: Lean = False,
    ) -> None:
        super().__init__()
        _check_model(model)
        self.method = methods.create(method)
        self.criterion = criterion
        if not self.method.local:
            modules, cascade, independent, patches = 1, 1, True, 1
            independent_weight = cascade_weight = None
        _check_levels(independent, patches, smallest_patch, patch_mode, num_classes)
        if lean not in (False, True, "light"):
            raise UserError(f"lean={lean!r}; expected False, True or 'light'")
        cut = partition(model, modules, example, balance=balance)
        self.reach = reach_of(cascade, cut, cascade_budget, independent=independent)
        self.model = model
        self.num_classes = num_classes
        self.independent = independent
        self.weights = _weights(independent_weight, cascade_weight, independent, self.cascade)
        self.auxiliary_weight = _checked_auxiliary_weight(auxiliary_weight)
        self.lean = lean
        self.position = Position()
        self.patches = patches
        self.smallest_patch = smallest_patch
        image = image_of(example)
        if self.method.needs_images and image is None:
            raise UserError("this method needs images (B, C, H, W) as the model's first input")
        check_given(features, [m.cut for m in cut[:-1]])
        shapes = [shape for m in cut for shape in m.block_shapes]
        finder = Finder(model, example, sides_of(image), shapes, features)
        kinds = [finder.at(m.cut, m.output_shape) for m in cut[:-1]]
        counts = [
            self._patches_for(kind, m.output_shape, image)
            for m, kind in zip(cut, kinds, strict=False)
        ]
        self.partition: Partition = cut.with_features(kinds, counts)
        self.patch_mode = patch_mode
        self.independent_auxiliary = nn.ModuleDict()
        self.cascade_auxiliary = nn.ModuleDict()
        self._places: dict[tuple[Level, int], Place] = {}
        self._add_auxiliaries(image, finder)

    @property
    def cascade(self) -> int:
        """How many modules the longest cascade trains: k."""
        return max(self.reach.lengths)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself."""
        return self.model(*args, **kwargs)

    def compile(self, **options: Any) -> None:
        """Compile what training runs, in place: each block, and each auxiliary network.

        With backprop that is the model as a whole. The model's ``state_dict`` stays as it is.

        Args:
            options: of ``torch.compile``.

        Raises:
            UserError: lean training, which notes single operations.
        """
        if self.lean:
            raise UserError(f"lean={self.lean!r} cannot recompute compiled blocks; use lean=False")
        if not self.method.local:
            self.model.compile(**options)
            return
        from torch._dynamo import config  # slow to import

        # Modules compiled in place count as variants of one function.
        config.recompile_limit = max(_COMPILED_VARIANTS, config.recompile_limit)
        blocks = dict(self.model.named_modules())
        for module in self.partition:
            for name in module.submodules:
                if name in blocks:
                    blocks[name].compile(**options)
            for network in self._auxiliaries_at(module.index):
                (network if network.together else network.network).compile(**options)

    def backward(
        self,
        inputs: Any,
        targets: Tensor,
        *,
        scale: float | Tensor = 1.0,
        on_module_done: Callable[[int], None] | None = None,
    ) -> Losses:
        """One forward and all local backwards; adds to every parameter's ``.grad``.

        Args:
            inputs: what the model takes: a tensor, or a tuple or dict of its arguments.
            targets: (B,) class indices, or whatever the criterion takes.
            scale: factor of every gradient (1/steps for accumulation, a loss scaler's scale).
            on_module_done: called with j = 1..K as soon as the gradients of module j (those of
                ``module_parameters[j - 1]``) are final. It may use them up, for example by an
                optimizer step, and free them.

        Raises:
            UserError: the model did not run through its cuts as it did on the example.
        """
        torch.clear_autocast_cache()  # an optimizer may have stepped since
        step = HookedStep(self, inputs, targets, scale, on_module_done or (lambda _: None))
        return step.run(inputs)

    @property
    def module_parameters(self) -> list[list[nn.Parameter]]:
        """For each module the parameters whose gradients are final when it is done.

        These are the backbone's and its auxiliary networks'. A parameter that several modules
        share is with the one that is done last.
        """
        owned: dict[nn.Parameter, int] = {}
        by_module = self.backbone_parameters()
        for j in self.reach.completion_order():
            owned |= dict.fromkeys(by_module[j - 1], j)
        lists: list[list[nn.Parameter]] = [[] for _ in self.partition]
        for parameter, j in owned.items():
            lists[j - 1].append(parameter)
        for j, parameters in enumerate(lists, start=1):
            for auxiliary in self._auxiliaries_at(j):
                parameters.extend(auxiliary.parameters())
        return lists

    def backbone_parameters(self) -> list[list[nn.Parameter]]:
        """For each module the backbone's parameters that it may use.

        One that the example did not reach may be used by any module, and is listed with all.

        Raises:
            UserError: the model has lost a parameter since it was wrapped.
        """
        named = dict(self.model.named_parameters())
        expected = {name for module in self.partition for name in module.parameter_names}
        lost = sorted(expected - named.keys())
        if lost:
            raise UserError(
                f"the model has no parameter {lost[0]!r} any more; it was changed after it was "
                "wrapped: wrap it again"
            )
        anywhere = [p for name, p in named.items() if name not in expected]
        return [
            [*(named[name] for name in module.parameter_names), *anywhere]
            for module in self.partition
        ]

    def detach_model(self) -> nn.Module:
        """The model, with nothing of the learner in it."""
        return self.model

    def auxiliary(self, level: Level, j: int) -> PatchFusion:
        """The auxiliary network of a level at module j, as it is used: under PFF."""
        networks = self.cascade_auxiliary if level == "cascade" else self.independent_auxiliary
        network = networks[str(j)]
        assert isinstance(network, PatchFusion)
        return network

    def place(self, level: Level, j: int) -> Place:
        """Where the auxiliary network of a level at module j sits."""
        return self._places[level, j]

    def weight(self, level: Level) -> float:
        """A level's weight; the final loss bears those of both levels, as it stands for both."""
        independent, cascade = self.weights
        both = (independent if self.independent else 0.0) + (cascade if self.cascade > 1 else 0.0)
        return {"independent": independent, "cascade": cascade, "final": both}[level]

    def own_weight(self, level: Level) -> float:
        """The weight of a level's loss for what judges: its auxiliary networks, or the head."""
        if level == "final" or self.auxiliary_weight == "level":
            return self.weight(level)
        return self.auxiliary_weight

    def fit_patches(self, j: int, output: Tensor, image: Tensor | None) -> int:
        """The n in force for this output of module j; its networks are set to it.

        That is ``partition[j - 1].patches`` for images of the example's size.
        """
        module = self.partition[j - 1]
        shape = tuple(output.shape[1:])
        fixed = shape == module.output_shape or module.features.kind == "sequence"
        n = module.patches if fixed else self._patches_for(module.features, shape, image)
        for network in self._auxiliaries_at(j):
            if network.patches != n:
                network.refit(n)
        return n

    def see(self, j: int, output: Tensor, image: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the auxiliary networks see of the output of module j: maps, vectors, or pieces."""
        features = self.partition[j - 1].features
        n = self.fit_patches(j, output, image)
        view = features.view(output, n, sides_of(image), mask)
        return read(self.method, view, n, features.shared(output))

    def _patches_for(self, features: Features, shape: tuple[int, ...], image: Tensor | None) -> int:
        form = features.form(shape, sides_of(image))
        if len(form) != 3:
            return features.pieces(self.patches, self.smallest_patch, shape)
        also = [tuple(image.shape[1:])] if self.method.needs_images and image is not None else []
        return patches_in_force(self.patches, form, *also, smallest=self.smallest_patch)

    def extra_repr(self) -> str:
        return (
            f"modules={len(self.partition)}, cascade={self.cascade}, "
            f"independent={self.independent}, weights={self.weights}"
        )

    def _auxiliaries_at(self, j: int) -> Iterator[PatchFusion]:
        for level, networks in (
            ("independent", self.independent_auxiliary),
            ("cascade", self.cascade_auxiliary),
        ):
            if str(j) in networks:
                yield self.auxiliary(level, j)  # type: ignore[arg-type]

    def _add_auxiliaries(self, image: Tensor | None, finder: Finder) -> None:
        builder = JudgeBuilder(
            method=self.method,
            partition=self.partition,
            form=finder.form,
            num_classes=self.num_classes,
            criterion=self.criterion,
            image=None if image is None else image[:1].expand(2, -1, -1, -1),
            patch_mode=self.patch_mode,
            alive=(lambda _: ()) if self.lean else self.reach.alive,
        )
        for module in self.partition[:-1]:
            j = module.index
            if self.independent:
                network, self._places["independent", j] = builder.build("independent", module)
                self.independent_auxiliary[str(j)] = network
            if self.reach.lengths[j - 1] > 1:
                network, self._places["cascade", j] = builder.build("cascade", module)
                self.cascade_auxiliary[str(j)] = network


def _weights(
    independent_weight: float | None, cascade_weight: float | None, independent: bool, cascade: int
) -> tuple[float, float]:
    defaults = HILO_WEIGHTS if independent and cascade > 1 else (1.0, 1.0)
    given = {"independent_weight": independent_weight, "cascade_weight": cascade_weight}
    for name, weight in given.items():
        if weight is not None and not (isinstance(weight, (int, float)) and 0 < weight < math.inf):
            raise UserError(
                f"{name}={weight!r}; expected a number above 0, or None for the default"
            )
    first, second = (
        default if weight is None else float(weight)
        for weight, default in zip(given.values(), defaults, strict=True)
    )
    return first, second


def _checked_auxiliary_weight(weight: AuxiliaryWeight) -> AuxiliaryWeight:
    if weight == "level":
        return "level"
    if isinstance(weight, (int, float)) and not isinstance(weight, bool) and 0 < weight < math.inf:
        return float(weight)
    raise UserError(f"auxiliary_weight={weight!r}; expected a number above 0, or 'level'")


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, LocalLearner):
        raise UserError("the model is a LocalLearner already; give the model inside, .model")
    if is_compiled(model):
        raise UserError(
            "the whole model is compiled, and cannot be cut; give the plain model, with its "
            "blocks compiled one by one"
        )
    if not any(p.is_floating_point() for p in model.parameters()):
        raise UserError("the model has no parameters: nothing can be trained")


def _check_levels(
    independent: bool,
    patches: int,
    smallest_patch: int,
    patch_mode: str,
    num_classes: int,
) -> None:
    numbers = {
        "patches": patches,
        "smallest_patch": smallest_patch,
        "num_classes": num_classes,
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r}; expected a whole number, 1 or more")
    if not isinstance(independent, bool):
        raise UserError(f"independent={independent!r}; expected True or False")
    if patch_mode not in ("auto", "together", "one-by-one"):
        raise UserError(f"patch_mode={patch_mode!r}; expected 'auto', 'together' or 'one-by-one'")
