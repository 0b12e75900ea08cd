"""The auxiliary networks of a learner: one for each place, built by its method, under PFF."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from hpff.auxiliary import PatchFusion
from hpff.auxiliary.patches import graph_bytes, overwrites_inputs
from hpff.cutting.partition import LocalModule, Partition
from hpff.cutting.trace import restored_state
from hpff.methods import Criterion, Method, Place

PatchMode = Literal["auto", "together", "one-by-one"]


@dataclass(frozen=True)
class JudgeBuilder:
    """Builds the auxiliary network of any place.

    Args:
        form: what methods would see of a block's output, by its shape.
        image: a batch of two images as the model sees them, or None where its input is none.
        alive: the modules (1-based) whose graphs are held while that of module j is judged.
    """

    method: Method
    partition: Partition
    num_classes: int
    criterion: Criterion
    form: Callable[[tuple[int, ...]], tuple[int, ...]]
    image: Tensor | None
    patch_mode: PatchMode
    alive: Callable[[int], Sequence[int]]
    _needed: dict[tuple[object, ...], int] = field(default_factory=dict, init=False)

    def build(self, level: str, module: LocalModule) -> tuple[PatchFusion, Place]:
        """The network of ``level`` at the output of ``module``, and its place."""
        output = torch.zeros(2, *module.output_shape, dtype=module.dtype, device=module.device)
        view = module.features.view(output, module.patches, sides_of(self.image), None)
        given = read(self.method, view, module.patches, module.features.shared(output))
        place = self._place(level, module, given)
        network = _moved(self.method.auxiliary(place), output)
        fusion = PatchFusion(
            network,
            module.patches,
            together=self.patch_mode != "one-by-one",
            pieces=given.ndim != 4,
            overwrites=self._overwrites(network, place, given),
        )
        if (
            self.patch_mode == "auto"
            and module.patches > 1
            and self._too_much(fusion, given, module)
        ):
            fusion.together = False
            fusion.refit(module.patches)
        return fusion, place

    def _overwrites(self, network: nn.Module, place: Place, like: Tensor) -> bool:
        shapes = [place.features]
        if self.method.needs_images and self.image is not None:
            shapes.append(place.image or tuple(self.image.shape[1:]))
        with restored_state(network):
            return overwrites_inputs(network, *(like.new_zeros(2, *shape) for shape in shapes))

    def _place(self, level: str, module: LocalModule, given: Tensor) -> Place:
        is_map = given.ndim == 4 and self.image is not None
        return Place(
            module=module.index,
            modules=len(self.partition),
            level=level,
            kind=module.features.kind,
            features=_part(given, module.patches),
            image=_part(self.image, module.patches) if is_map and self.image is not None else (),
            following=tuple(
                self.form(shape)
                for later in self.partition[module.index :]
                for shape in later.block_shapes
            ),
            num_classes=self.num_classes,
            patches=module.patches,
            criterion=self.criterion,
            preceding=sum(len(m.block_shapes) for m in self.partition[: module.index]) - 1,
        )

    def _too_much(self, fusion: PatchFusion, given: Tensor, module: LocalModule) -> bool:
        """Whether all patches' graphs take more than the step takes elsewhere anyway.

        That is a backward through the widest module, and what more graphs hold at another module.
        The backward takes about four tensors of its output's size: the gradient that comes in, the
        one that goes out, the shortcut's, and one between two layers.
        """
        modules = self.partition[:-1]
        widest = max(m.output_bytes for m in modules)
        room = max(self._held(m) for m in modules) - self._held(module)
        samples = module.output_bytes / (math.prod(module.output_shape) * module.dtype.itemsize)
        needed = self._graph_bytes(fusion, given) / len(given)
        return bool(needed * samples > 4 * widest + room)

    def _graph_bytes(self, fusion: PatchFusion, given: Tensor) -> int:
        """What all patches' graphs save; networks that look alike are run once."""
        likeness = str(fusion), given.shape, given.dtype
        if likeness not in self._needed:
            images = [self.image] if self.method.needs_images and self.image is not None else []
            self._needed[likeness] = graph_bytes(fusion, given, *images)
        return self._needed[likeness]

    def _held(self, module: LocalModule) -> int:
        """Bytes that graphs hold on the example while the output of a module is judged."""
        return sum(self.partition[i - 1].saved for i in self.alive(module.index))


def read(method: Method, view: Tensor, patches: int, shared: Tensor | None) -> Tensor:
    """What of a view the auxiliary networks see: of maps, what the method reads of them.

    Args:
        shared: (B, C), added at each position that is read.
    """
    if view.ndim != 4:
        return view
    maps = method.read(view, patches)
    return maps if shared is None else maps + shared[:, :, None, None]


def _part(view: Tensor, patches: int) -> tuple[int, ...]:
    """Shape of one of n×n patches, or of one of n pieces, the batch left out."""
    if view.ndim != 4:
        return (view.shape[-1],)
    _, channels, height, width = view.shape
    return channels, height // patches, width // patches


def _moved(network: nn.Module, like: Tensor) -> nn.Module:
    if all(p.dtype == like.dtype and p.device == like.device for p in network.parameters()):
        return network  # fake tensors, which plan memory, cannot be moved
    return network.to(device=like.device, dtype=like.dtype)


def image_of(inputs: object) -> Tensor | None:
    """The images (B, C, H, W) among a model's inputs, if its first tensor is such."""
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
    is_image = isinstance(first, torch.Tensor) and first.ndim == 4 and first.is_floating_point()
    return first if is_image else None  # type: ignore[return-value]


def sides_of(image: Tensor | None) -> tuple[int, int] | None:
    """Height and width of images (B, C, H, W)."""
    return None if image is None else (image.shape[2], image.shape[3])
