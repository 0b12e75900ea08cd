"""Builds a learner's auxiliary networks: one for each module and level, under PFF."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpff.auxiliary import PatchFusion, narrowed
from hpff.auxiliary.patches import PatchNorm, graph_bytes, overwrites_inputs
from hpff.cutting.local_modules import LocalModule, Partition
from hpff.cutting.trace import restored_state
from hpff.engine.auxiliary_networks import (
    AuxiliaryNetworks,
    PatchSizes,
    features_of,
    image_of,
    pooled,
    sides_of,
)
from hpff.engine.level_weights import Level, LevelWeights
from hpff.engine.reach import Reach
from hpff.errors import UserError
from hpff.features import FeatureKind, Finder, Given, check_given
from hpff.methods import AuxiliaryContext, Criterion, Method, name_of

PatchMode = Literal["auto", "together", "one-by-one"]


@dataclass(frozen=True)
class AuxiliaryBuilder:
    """Builds the auxiliary networks at the cuts of a model.

    Args:
        example: one small input of the model.
        features: what the outputs at the cuts are, where it is found wrong.
        patches, smallest_patch, width, pool, patch_mode, patch_norm: see
            :class:`~hpff.LocalSettings`.
        keeps_graphs: whether modules' graphs hold their content while losses are computed.
        dense: whether each place has a target of its own.
        own_head_weight: of the loss of an auxiliary head that the model itself has.
    """

    model: nn.Module
    example: Any
    method: Method
    criterion: Criterion
    num_classes: int
    features: Given
    patches: int
    smallest_patch: int
    width: int | None
    pool: int
    patch_mode: PatchMode
    patch_norm: PatchNorm
    keeps_graphs: bool
    dense: bool
    own_head_weight: float

    def build(self, cut: Partition, reach: Reach, weights: LevelWeights) -> AuxiliaryNetworks:
        """The networks at the cuts: of the independent level if it has weight, and of cascades.

        Raises:
            UserError: the method needs images and gets none, or cannot take such features.
        """
        image = image_of(self.example)
        if self.method.needs_images and image is None:
            raise UserError("this method needs images (B, C, H, W) as the model's first input")
        if self.dense and self.method.local and not self.method.dense:
            raise UserError(
                f"{name_of(self.method)} has no auxiliary networks for a target at each place: it "
                "judges a sample by its one class; expected dgl, infopro or auglocal, or a method "
                "with dense = True"
            )
        check_given(self.features, [m.end for m in cut[:-1]])
        shapes = [shape for m in cut for shape in m.block_shapes]
        finder = Finder(self.model, self.example, sides_of(image), shapes, self.features)
        sizes = PatchSizes(self.patches, self.smallest_patch, self.method.needs_images)
        kinds = [finder.at(m.end, m.output_shape) for m in cut[:-1]]
        counts = [
            sizes.for_output(kind, m.output_shape, image)
            for m, kind in zip(cut, kinds, strict=False)
        ]
        if self.dense:
            _check_grids(kinds, cut, image)
        described = cut.with_features(kinds, counts)
        levels = nn.ModuleDict(), nn.ModuleDict()
        contexts: dict[tuple[Level, int], AuxiliaryContext] = {}
        networks = AuxiliaryNetworks(
            self.method,
            self.criterion,
            described,
            sizes,
            weights,
            self.pool,
            self.dense,
            self.own_head_weight,
            *levels,
            contexts,
        )
        pair = None if image is None else image[:1].expand(2, -1, -1, -1)
        alive = reach.alive if self.keeps_graphs else (lambda _: [])
        at = _AtModule(self, described, finder.features_shape, pair, alive)
        for module in described[:-1]:
            j = module.index
            if weights.independent:
                networks.independent[str(j)], contexts["independent", j] = at.build(
                    "independent", module
                )
            if reach.lengths[j - 1] > 1:
                networks.cascade[str(j)], contexts["cascade", j] = at.build("cascade", module)
        return networks


@dataclass(frozen=True)
class _AtModule:
    """Builds the network of one level at one module.

    Args:
        shape_of: what methods would see of a block's output, by its shape.
        image: a batch of two images as the model sees them, or None where its input is none.
        alive: the modules (1-based) whose graphs are held while module j has its losses.
    """

    given: AuxiliaryBuilder
    partition: Partition
    shape_of: Callable[[tuple[int, ...]], tuple[int, ...]]
    image: Tensor | None
    alive: Callable[[int], Sequence[int]]
    _needed: dict[tuple[object, ...], int] = field(default_factory=dict, init=False)
    _overwriting: dict[tuple[object, ...], bool] = field(default_factory=dict, init=False)

    def build(self, level: Level, module: LocalModule) -> tuple[PatchFusion, AuxiliaryContext]:
        """The network of ``level`` at the output of ``module``, and what it was built for."""
        method, mode = self.given.method, self.given.patch_mode
        output = torch.zeros(2, *module.output_shape, dtype=module.dtype, device=module.device)
        features = features_of(
            method,
            module.features,
            output,
            module.patches,
            self.image,
            None,
            self.given.pool,
            dense=self.given.dense,
        )
        context = self._context(level, module, features)
        network = method.auxiliary(context)
        channels = features.shape[1 if features.ndim == 4 else -1]
        if context.features[0] < channels:
            network = narrowed(network, channels, context.features[0])
        network = _moved(network, output)
        fusion = PatchFusion(
            network,
            module.patches,
            together=mode != "one-by-one",
            pieces=features.ndim != 4,
            overwrites=self._overwrites(network, context, features),
            dense=self.given.dense,
            norm=self.given.patch_norm,
        )
        may_run_alone = mode == "auto" and module.patches > 1 and fusion.norm == "apart"
        if may_run_alone and self._too_much(fusion, features, module):
            fusion.together = False
            fusion.refit(module.patches)
        return fusion, context

    def _overwrites(self, network: nn.Module, context: AuxiliaryContext, like: Tensor) -> bool:
        """Whether a network changes what it is given; networks that look alike are run once."""
        shapes = [_part(like, context.patches)]
        image = self._image(context.patches)
        if self.given.method.needs_images and image is not None:
            shapes.append(context.image or tuple(image.shape[1:]))
        likeness = str(network), like.dtype, *shapes
        if likeness not in self._overwriting:
            inputs = [like.new_zeros(2, *shape) for shape in shapes]
            with restored_state(network):
                self._overwriting[likeness] = overwrites_inputs(network, *inputs)
        return self._overwriting[likeness]

    def _context(self, level: Level, module: LocalModule, features: Tensor) -> AuxiliaryContext:
        image = self._image(module.patches) if features.ndim == 4 else None
        seen = _part(features, module.patches)
        return AuxiliaryContext(
            module=module.index,
            modules=len(self.partition),
            level=level,
            kind=module.features.kind,
            features=self._narrow(seen),
            image=() if image is None else _part(image, module.patches),
            following=tuple(
                self._narrow(self.shape_of(shape))
                for later in self.partition[module.index :]
                for shape in later.block_shapes
            ),
            num_classes=self.given.num_classes,
            patches=module.patches,
            criterion=self.given.criterion,
            width=self.given.width,
            dense=self.given.dense,
            preceding=sum(len(m.block_shapes) for m in self.partition[: module.index]) - 1,
            next_blocks=() if seen[0] > (self.given.width or seen[0]) else self._blocks(module),
        )

    @cached_property
    def _submodules(self) -> dict[str, nn.Module]:
        return dict(self.given.model.named_modules())

    def _blocks(self, module: LocalModule) -> tuple[nn.Module, ...]:
        """The model's blocks after a module."""
        known = self._submodules
        return tuple(
            known[name]
            for later in self.partition[module.index :]
            for name, shape in zip(later.submodules, later.block_shapes, strict=False)
            if name in known and name != module.cut and len(shape) == len(module.output_shape)
        )

    def _narrow(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape of features with no more channels than auxiliary networks may see."""
        return (min(shape[0], self.given.width or shape[0]), *shape[1:])

    def _too_much(self, fusion: PatchFusion, features: Tensor, module: LocalModule) -> bool:
        """Whether all patches' graphs might take more than the step takes without patches.

        Without them it takes at some module at least what graphs hold there and, in the module's
        backward, two gradients of its output's size: one that comes in and one that goes out.
        """
        modules = self.partition[:-1]
        certain = max(self._held(m) + 2 * m.output_bytes for m in modules)
        samples = module.output_bytes / (math.prod(module.output_shape) * module.dtype.itemsize)
        needed = self._graph_bytes(fusion, features) / len(features) * samples
        return bool(self._held(module) + needed > certain)

    def _graph_bytes(self, fusion: PatchFusion, features: Tensor) -> int:
        """What all patches' graphs save; networks that look alike are run once."""
        likeness = str(fusion), features.shape, features.dtype
        if likeness not in self._needed:
            image = self._image(fusion.patches) if self.given.method.needs_images else None
            images = [] if image is None else [image]
            self._needed[likeness] = graph_bytes(fusion, features, *images)
        return self._needed[likeness]

    def _image(self, patches: int) -> Tensor | None:
        """What auxiliary networks see of two images."""
        return None if self.image is None else pooled(self.image, self.given.pool, patches)

    def _held(self, module: LocalModule) -> int:
        """Bytes that graphs hold on the example while a module has its losses."""
        return sum(self.partition[i - 1].saved for i in self.alive(module.index))


def _check_grids(kinds: Sequence[FeatureKind], cut: Partition, image: Tensor | None) -> None:
    """Refuse features without a grid, where each place of an image has a target."""
    for module, kind in zip(cut, kinds, strict=False):
        if len(kind.features_shape(module.output_shape, sides_of(image))) != 3:
            raise UserError(
                f"segmentation takes maps, or tokens on a grid; the output of {module.cut!r} is a "
                f"{kind.kind}; cut elsewhere, or say what it is by features=..."
            )


def _part(features: Tensor, patches: int) -> tuple[int, ...]:
    """Shape of one of n×n patches, or of one of n pieces, the batch left out."""
    if features.ndim != 4:
        return (features.shape[-1],)
    _, channels, height, width = features.shape
    return channels, height // patches, width // patches


def _moved(network: nn.Module, like: Tensor) -> nn.Module:
    if all(p.dtype == like.dtype and p.device == like.device for p in network.parameters()):
        return network  # fake tensors, which plan memory, cannot be moved
    return network.to(device=like.device, dtype=like.dtype)
