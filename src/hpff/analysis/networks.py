"""A network and its local modules, as the analyses read it: the features that each passes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hpff.cutting.local_modules import LocalModule, Partition
from hpff.cutting.partition import partition
from hpff.engine.auxiliary_networks import image_of, sides_of
from hpff.errors import UserError
from hpff.features import FeatureKind, Finder, Vectors, mask_of
from hpff.learner import LocalLearner
from hpff.torch_support.model_io import call_model, logits_of, replaced, tensor_at, tensors_in

Loader = Iterable[tuple[Any, Tensor]]
"""Batches (inputs, targets), as training takes them; it is gone through anew by each analysis."""


@dataclass(frozen=True)
class Place:
    """Where the features of a module are read.

    Attributes:
        module: j, from 1.
        name: of the submodule whose output they are; "logits" where the last module has no block.
        shape: of the output on the example, the batch left out.
        kind: what the output means.
    """

    module: int
    name: str
    shape: tuple[int, ...]
    kind: FeatureKind


@dataclass(frozen=True, eq=False)
class Network:
    """A model and its local modules.

    The features of a module are its output; those of the last one are the output of its last
    block, which the model's head reads. Nothing of the model is changed.

    Attributes:
        model: any module.
        partition: its local modules.
        places: where the features of each module are read.
        learner: that trains it, where there is one.
        label: what it is called in tables and pictures.
    """

    model: nn.Module
    partition: Partition
    places: tuple[Place, ...]
    learner: LocalLearner | None = None
    label: str = ""

    @classmethod
    def of(
        cls,
        model: nn.Module | LocalLearner,
        *,
        modules: int | Sequence[str] | None = None,
        example: Any = None,
        label: str = "",
    ) -> Network:
        """The network of a learner, cut as it is trained, or of any model.

        Args:
            model: a learner, or a model.
            modules: K, or the names of the submodules after which to cut; None for a learner's
                own cut, or as many modules as a model has blocks.
            example: one small input; None for a learner's own.
            label: what it is called.

        Raises:
            UserError: a model came without an example, or cannot be cut as asked.
        """
        learner = model if isinstance(model, LocalLearner) else None
        backbone = model.model if isinstance(model, LocalLearner) else model
        example = learner.example if learner is not None and example is None else example
        if example is None:
            raise UserError("a model is cut by an example; give one small input as example=")
        if learner is not None and modules is None and learner.method.local:
            cut = learner.partition
        else:
            wanted = learner.settings.modules if learner and modules is None else modules
            cut = partition(backbone, wanted, example)
        return cls(backbone, cut, _places(backbone, cut, example), learner, label)

    def __len__(self) -> int:
        return len(self.places)

    def features(self, inputs: Any) -> list[Tensor]:
        """The features of every module for one batch, in eval mode and without gradients.

        Args:
            inputs: what the model takes.

        Returns:
            One tensor a module, as methods read it: maps (B, C, H, W) or vectors (B, D).
        """
        with torch.no_grad(), evaluating(self.model):
            return self.read(inputs, self.outputs(inputs)[0])

    def outputs(
        self, inputs: Any, taps: dict[int, Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """One forward in the mode that the model is in: each module's output, and the logits.

        Args:
            inputs: what the model takes.
            taps: gets for each module, by j, a tensor of zeros that is added to its output: the
                gradient there is that of the output.
        """
        seen: dict[int, Tensor] = {}
        handles = [
            self.model.get_submodule(place.name).register_forward_hook(
                lambda _m, _a, returned, place=place: self._see(place, returned, seen, taps)
            )
            for place in self.places
            if place.name != _LOGITS
        ]
        try:
            with torch.compiler.set_stance("force_eager"):
                logits = logits_of(call_model(self.model, inputs))
        finally:
            for handle in handles:
                handle.remove()
        missed = [p.name for p in self.places if p.name != _LOGITS and p.module not in seen]
        if missed:
            raise UserError(f"submodule {missed[0]!r} did not run, as it did on the example")
        return [seen.get(place.module, logits) for place in self.places], logits

    def read(self, inputs: Any, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Outputs of all modules as methods read them: maps (B, C, H, W) or vectors (B, D)."""
        sides, mask = sides_of(image_of(inputs)), mask_of(self.model, inputs)
        return [
            features_at(place, output, sides, mask)
            for place, output in zip(self.places, outputs, strict=True)
        ]

    def over(
        self, loader: Loader, samples: int | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The features and targets (B,) of one batch after another; none is kept.

        Args:
            loader: the batches.
            samples: how many to take at most; None for all.
        """
        for inputs, targets in batches(loader, self.model, samples):
            yield self.features(inputs), targets

    def _see(
        self, place: Place, returned: Any, seen: dict[int, Tensor], taps: dict[int, Tensor] | None
    ) -> Any:
        module: LocalModule = self.partition[place.module - 1]
        output = _output_in(returned, module, place)
        if output is None:
            raise UserError(
                f"submodule {place.name!r} returns no tensor where it did on the example: the "
                "model does not run as it did on the example"
            )
        seen[place.module] = output.clone()  # the next module may overwrite it
        if taps is None:
            return returned
        taps[place.module] = torch.zeros_like(output, requires_grad=True)
        return replaced(returned, output, output + taps[place.module])


_LOGITS = "logits"


def features_at(
    place: Place, output: Tensor, sides: tuple[int, int] | None, mask: Tensor | None
) -> Tensor:
    """An output as methods read it: maps (B, C, H, W) or vectors (B, D)."""
    features = place.kind.features(output, 1, sides, mask)
    shared = place.kind.shared(output)
    return features if shared is None else features + shared[:, :, None, None]


def pooled(features: Tensor, most: int, grid: int = 4) -> Tensor:
    """Features as one vector a sample.

    Args:
        features: maps (B, C, H, W) or vectors (B, D).
        most: how many numbers a vector of maps has at most, unless C are more.
        grid: into how many cells a side maps are averaged at most.

    Returns:
        (B, C·s·s) with the largest s up to ``grid`` that ``most`` and the maps' sides allow;
        vectors as they are.
    """
    if features.ndim != 4:
        return features.flatten(1)
    channels, height, width = features.shape[1:]
    sides = range(1, min(grid, height, width) + 1)
    side = max((s for s in sides if channels * s * s <= most), default=1)
    return F.adaptive_avg_pool2d(features, side).flatten(1)


def batches(
    loader: Loader, model: nn.Module, samples: int | None = None
) -> Iterator[tuple[Any, Tensor]]:
    """The loader's batches on the model's device, at most so many samples of them.

    Raises:
        UserError: there is none.
    """
    if samples is not None and samples < 1:
        raise UserError(f"samples is {samples}; expected 1 or more")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    taken = 0
    for inputs, targets in loader:
        left = None if samples is None else samples - taken
        if left == 0:
            return
        count = len(targets) if left is None else min(left, len(targets))

        def part(value: Any, count: int = count, whole: int = len(targets)) -> Any:
            if not isinstance(value, Tensor):
                return value
            return (value[:count] if value.shape[:1] == (whole,) else value).to(device)

        yield tree_map(part, inputs), part(targets)
        taken += count
    if not taken:
        raise UserError("there is no sample to analyze; expected batches (inputs, targets)")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; each submodule's own mode comes back after."""
    modes = {each: each.training for each in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for each, training in modes.items():
            each.training = training


def _places(model: nn.Module, cut: Partition, example: Any) -> tuple[Place, ...]:
    last = cut[-1]
    ends = [(m.end, m.output_shape) for m in cut[:-1]]
    if last.submodules:
        ends.append((last.submodules[-1], last.block_shapes[-1]))
    shapes = [shape for module in cut for shape in module.block_shapes]
    finder = Finder(model, example, sides_of(image_of(example)), shapes)
    known = [m.features if m.index < len(cut) else None for m in cut]
    found = [
        Place(j, name, shape, _kind(kind, finder, name, shape))
        for j, ((name, shape), kind) in enumerate(zip(ends, known, strict=False), 1)
    ]
    if not last.submodules:
        found.append(Place(len(cut), _LOGITS, last.output_shape, Vectors()))
    return tuple(found)


def _kind(
    known: FeatureKind | None, finder: Finder, name: str, shape: tuple[int, ...]
) -> FeatureKind:
    """What a learner has found or was told; a bare cut says "vector" of everything."""
    told = known is not None and not (isinstance(known, Vectors) and len(shape) > 1)
    return known if told and known is not None else finder.at(name, shape)


def _output_in(returned: Any, module: LocalModule, place: Place) -> Tensor | None:
    if module.cut is not None:
        return tensor_at(returned, module.path)
    tensors = [tensor for _, tensor in tensors_in(returned)]
    fitting = [t for t in tensors if tuple(t.shape[1:]) == place.shape]
    return next(iter(fitting or tensors), None)
