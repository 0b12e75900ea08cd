"""LocalLearner: local learning for any model, in three lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff.auxiliary.patches import PatchNorm
from hpff.cutting.balance import Balance
from hpff.cutting.local_modules import Partition
from hpff.cutting.partition import partition
from hpff.engine.anchors import Kept, kept_inside
from hpff.engine.arguments import (
    check_classes,
    check_dense_numbers,
    check_example,
    check_inputs,
    check_model,
    check_not_wrapped,
    check_streams,
    check_task,
)
from hpff.engine.auxiliary_builder import AuxiliaryBuilder, PatchMode
from hpff.engine.level_weights import AuxiliaryWeight
from hpff.engine.parameters import backbone_parameters, module_parameters
from hpff.engine.phase import Phase
from hpff.engine.reach import Cascade, reach_of
from hpff.engine.recomputation import Recompute
from hpff.engine.step import HookedStep, Losses
from hpff.errors import UserError
from hpff.features import Given
from hpff.methods import Criterion, Method, TaskName, criterion_of
from hpff.presets import PresetName, takes_preset
from hpff.settings import LocalSettings

_USUAL_BATCH = 128  # what steps are given is not known when the learner is made
_COMPILED_VARIANTS = 64
OWN_HEAD_WEIGHT = 0.4


class LocalLearner(nn.Module):
    """Trains ``model`` in local modules by HPFF (Su et al., ECCV 2024), or by plain local learning.

    The model is used as it is: it is cut at the outputs of existing submodules, and keeps its
    forward, its parameters' names and its ``state_dict``. ``learner(images)`` is the model itself.
    In a training step, a tensor that the model hands from one module to the next loses its content
    once the next module is done: a hook that wants to keep one must keep a copy.

    ``method``, ``modules`` and every argument that is not described here are those of
    :class:`~hpff.LocalSettings`, which ``learner.settings`` is.

    Args:
        model: any module whose forward runs through a chain of blocks and returns logits.
        modules: K, or the names of the submodules after which to cut; None: one for each block.
            Backprop has one.
        example: one small input: a tensor, or a tuple or dict of forward's arguments. Give it two
            samples or more where the model has BatchNorm.
        num_classes: of the task; as many as the model's output has.
        task: "classification", or "segmentation", where the model returns (B, num_classes, H, W)
            and targets are (B, H, W). Auxiliary networks then predict at the resolution of the
            features, and losses interpolate to that of the targets; under PFF each patch predicts
            its own region. See ``docs/segmentation.md``.
        ignore_index: the target of pixels that count for nothing.
        own_head_weight: weight of the loss of an auxiliary head that the model itself has, whose
            output it returns as "aux" beside "out" (torchvision's segmentation models); it is a
            part of the final loss. 0.4 in InfoPro's experiments on Cityscapes.
        criterion: the task's loss, ``criterion(logits, targets)`` -> scalar; in a segmentation of
            logits at the targets' resolution. Another than the default must leave out pixels of
            ``ignore_index`` itself.
        features: what the outputs at the cuts are, where it is found wrong (``learner.partition``
            shows it): "map", "map-last" (B, H, W, C), "tokens", "sequence", "sequence-first"
            (B, D, L), "vector", or a :class:`~hpff.features.FeatureKind`; or a dict of these by
            the cut's name.
        preset: settings found by a study, "light", "balanced" or "accurate", for those of
            ``LocalSettings`` that are not given.

    Attributes:
        around_step: gives what each step runs inside of; nothing by default.

    Raises:
        UserError: an argument is out of its range, or the model cannot be cut as asked.
    """

    @takes_preset
    def __init__(
        self,
        model: nn.Module,
        *,
        modules: int | Sequence[str] | None = None,
        example: Any,
        num_classes: int,
        balance: Balance = "blocks",
        method: str | Method | Mapping[str, Any] = "dgl",
        cascade: Cascade = 2,
        cascade_budget: float = 1.0,
        cascade_stride: int = 1,
        independent: bool = True,
        patches: int = 2,
        smallest_patch: int = 2,
        independent_weight: float | None = None,
        cascade_weight: float | None = None,
        auxiliary_weight: AuxiliaryWeight = 1.0,
        auxiliary_width: int | None = None,
        auxiliary_pool: int = 1,
        patch_mode: PatchMode = "auto",
        patch_norm: PatchNorm = "apart",
        recompute: Recompute = "never",
        recompute_budget: float = 1.0,
        streams: int = 1,
        criterion: Criterion = F.cross_entropy,
        features: Given = None,
        task: TaskName = "classification",
        ignore_index: int = -100,
        own_head_weight: float = OWN_HEAD_WEIGHT,
        preset: PresetName | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, LocalLearner):
            raise UserError("the model is a LocalLearner already; give the model inside, .model")
        check_model(model)
        check_task(task, num_classes, criterion)
        check_dense_numbers(ignore_index, own_head_weight)
        check_example(example)
        self.settings = LocalSettings(
            method=method,  # type: ignore[arg-type]  # a name is read too
            modules=modules,  # type: ignore[arg-type]
            balance=balance,
            cascade=cascade,  # type: ignore[arg-type]
            cascade_budget=cascade_budget,
            cascade_stride=cascade_stride,
            independent=independent,
            patches=patches,
            smallest_patch=smallest_patch,
            patch_mode=patch_mode,
            patch_norm=patch_norm,
            independent_weight=independent_weight,
            cascade_weight=cascade_weight,
            auxiliary_weight=auxiliary_weight,
            auxiliary_width=auxiliary_width,
            auxiliary_pool=auxiliary_pool,
            recompute=recompute,
            recompute_budget=recompute_budget,
            streams=streams,
        )
        self.model = model
        self.num_classes = num_classes
        self.task = task
        self.ignore_index = ignore_index
        self.own_head_weight = own_head_weight
        self.criterion = criterion_of(task, criterion, ignore_index)
        self.method = self.settings.create_method()
        self.example = example
        self.phase = Phase()
        self._compiled_in_less = False
        self.around_step: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._set_up(features)

    @classmethod
    def from_settings(
        cls,
        model: nn.Module,
        settings: LocalSettings,
        *,
        example: Any,
        num_classes: int,
        criterion: Criterion = F.cross_entropy,
        features: Given = None,
        task: TaskName = "classification",
        ignore_index: int = -100,
        own_head_weight: float = OWN_HEAD_WEIGHT,
    ) -> LocalLearner:
        """The learner that settings describe; the other arguments are those of the class."""
        return cls(
            model,
            example=example,
            num_classes=num_classes,
            criterion=criterion,
            features=features,
            task=task,
            ignore_index=ignore_index,
            own_head_weight=own_head_weight,
            **vars(settings),
        )

    def _set_up(self, features: Given) -> None:
        """Cut the model, and put the auxiliary networks at its cuts."""
        settings, local = self.settings, self.method.local
        modules = settings.modules if local else 1
        cut = partition(self.model, modules, self.example, balance=settings.balance)
        check_classes(self.task, self.num_classes, cut)
        self.reach = reach_of(
            settings.cascade if local else 1,
            cut,
            settings.cascade_budget,
            settings.cascade_stride,
            independent=settings.independent or not local,
        )
        builder = AuxiliaryBuilder(
            model=self.model,
            example=self.example,
            method=self.method,
            criterion=self.criterion,
            num_classes=self.num_classes,
            features=features,
            patches=settings.patches,
            smallest_patch=settings.smallest_patch,
            width=settings.auxiliary_width,
            pool=settings.auxiliary_pool,
            patch_mode=settings.patch_mode,
            patch_norm=settings.patch_norm,
            keeps_graphs=settings.recompute == "never",
            dense=self.task != "classification",
            own_head_weight=self.own_head_weight,
        )
        weights = settings.level_weights(cascades=max(self.reach.lengths) > 1)
        self.auxiliary_networks = builder.build(cut, self.reach, weights)
        check_streams(settings.streams, self.model, self.auxiliary_networks)
        self.independent_auxiliary = self.auxiliary_networks.independent
        self.cascade_auxiliary = self.auxiliary_networks.cascade
        self.kept: Sequence[Kept] = ()
        if settings.recompute == "blocks":
            self.kept = kept_inside(
                self.partition,
                self.reach,
                lambda j: self.auxiliary_networks.bytes_at(j, self.example),
                settings.recompute_budget,
                self._gradient_bytes(),
            )

    def _gradient_bytes(self) -> int:
        """Of all parameters' gradients, for the example as a part of a usual batch."""
        trained = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return sum(p.nbytes for p in trained) * self.partition[0].samples // _USUAL_BATCH

    @property
    def partition(self) -> Partition:
        """The K local modules, with the features and n in force."""
        return self.auxiliary_networks.partition

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model itself."""
        return self.model(*args, **kwargs)

    def compile(self, **options: Any) -> None:
        """Compile what training runs, in place: each block, and each auxiliary network.

        With backprop that is the model as a whole; where it is recomputed by blocks, compiled code
        does that, as by :func:`hpff.compile_options`, and its rounding is not eager code's. The
        model's ``state_dict`` stays as it is.

        Args:
            options: of ``torch.compile``.

        Raises:
            UserError: local modules are recomputed, by single operations.
        """
        settings = self.settings
        if not self.method.local and settings.recompute == "blocks":
            self._compile_in_less_memory(options)
            return
        if settings.recompute != "never":
            raise UserError(
                "compiled blocks cannot be recomputed; use recompute='never', or method='bp' with "
                "recompute='blocks'"
            )
        mode = options.get("mode")
        if self.settings.streams > 1 and mode in ("reduce-overhead", "max-autotune"):
            raise UserError(
                f"mode {mode!r} records graphs that share memory, which several streams must not; "
                "use cuda_graph or hpff.Replayed, or streams=1"
            )
        if not self.method.local:
            self._compile_whole(options)
            return
        from torch._dynamo import config  # slow to import

        # Modules compiled in place count as variants of one function.
        config.recompile_limit = max(_COMPILED_VARIANTS, config.recompile_limit)
        blocks = dict(self.model.named_modules())
        for module in self.partition:
            for name in module.submodules:
                if name in blocks:
                    blocks[name].compile(**options)
            for network in self.auxiliary_networks.at_module(module.index):
                (network if network.together else network.network).compile(**options)

    def _compile_whole(self, options: dict[str, Any]) -> None:
        """Compile the model in place."""
        model = self.model

        def call(*args: Any, **kwargs: Any) -> Any:
            return model._call_impl(*args, **kwargs)

        # By itself an nn.Sequential would be compiled block by block: PyTorch skips its own frames.
        model._compiled_call_impl = torch.compile(call, **options)

    def _compile_in_less_memory(self, options: dict[str, Any]) -> None:
        """Compile the model so that its backward runs most of the forward again."""
        if options.get("backend", "inductor") != "inductor":
            raise UserError("recompute='blocks' is compiled by backend='inductor' only")
        from hpff.torch_support.compiled_blocks import compile_options  # slow to import

        mode, given = options.get("mode"), options.get("options") or {}
        if (mode and given) or "custom_partitioner_fn" in given:
            raise UserError("recompute='blocks' takes mode or options, and sets the partitioner")
        chosen = torch._inductor.list_mode_options(mode) if mode else {}
        ours = compile_options(self.settings.recompute_budget)
        self._compile_whole({**options, "mode": None, "options": {**chosen, **given, **ours}})
        self._compiled_in_less = True

    def backward(
        self,
        inputs: Any,
        targets: Tensor,
        *,
        scale: float | Tensor = 1.0,
        on_module_done: Callable[[int], None] | None = None,
    ) -> Losses:
        """One forward and all local backwards; adds to every parameter's ``.grad``.

        Meanwhile other threads may use the model, but not step it: their calls are its own.

        Args:
            inputs: what the model takes: a tensor, or a tuple or dict of its arguments.
            targets: (B,) class indices, (B, H, W) in a segmentation, or whatever the criterion
                takes.
            scale: factor of every gradient (1/steps for accumulation, a loss scaler's scale).
            on_module_done: called with j = 1..K as soon as the gradients of module j (those of
                ``module_parameters[j - 1]``) are final. It may use them up, for example by an
                optimizer step, and free them. With several streams it is called on the module's,
                and must leave other modules' tensors alone.

        Raises:
            UserError: the model did not run through its cuts as it did on the example; the inputs
                require gradients, which nothing gives them.
        """
        check_inputs(inputs)
        check_not_wrapped(self.model)
        torch.clear_autocast_cache()  # an optimizer may have stepped since
        # A copy of a compiled model is not compiled.
        by_itself = self._compiled_in_less and self.model._compiled_call_impl is not None
        step = HookedStep(
            self.model,
            self.auxiliary_networks,
            self.reach,
            backbone_parameters(self.model, self.partition),
            recompute="never" if by_itself else self.settings.recompute,
            kept=() if by_itself else self.kept,
            phase=self.phase,
            streams=self.phase.streams_on(targets.device, self.settings.streams),
        )
        with self.around_step():
            return step.run(inputs, targets, scale, on_module_done or (lambda _: None))

    @property
    def module_parameters(self) -> list[list[nn.Parameter]]:
        """For each module the parameters whose gradients are final when it is done.

        These are the backbone's and its auxiliary networks'. A parameter that several modules
        share is with the one that is done last.
        """
        return module_parameters(self.model, self.auxiliary_networks, self.reach)

    def detach_model(self) -> nn.Module:
        """The model, with nothing of the learner in it."""
        return self.model

    def extra_repr(self) -> str:
        return f"{self.settings.label()}, modules={len(self.partition)}"
