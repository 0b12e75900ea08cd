"""The auxiliary networks of a learner: what each is given, and its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hpff.auxiliary import PatchFusion, patches_in_force
from hpff.auxiliary.pooling import average_blocks
from hpff.cutting.local_modules import Partition
from hpff.cutting.trace import restored_state
from hpff.engine.level_weights import Level, LevelWeights
from hpff.features import FeatureKind
from hpff.methods import AuxiliaryContext, Criterion, Method


@dataclass(frozen=True)
class PatchSizes:
    """Into how many patches features are cut.

    Attributes:
        wanted: the n asked for.
        smallest: what the sides of a patch are at least.
        images_too: whether the images are cut alike.
    """

    wanted: int
    smallest: int
    images_too: bool

    def for_output(self, kind: FeatureKind, shape: tuple[int, ...], image: Tensor | None) -> int:
        """The n in force for outputs of a shape, the batch left out."""
        seen = kind.features_shape(shape, sides_of(image))
        if len(seen) != 3:
            return kind.pieces(self.wanted, self.smallest, shape)
        also = [tuple(image.shape[1:])] if self.images_too and image is not None else []
        return patches_in_force(self.wanted, seen, *also, smallest=self.smallest)


@dataclass(frozen=True)
class AuxiliaryNetworks:
    """Owns the auxiliary networks at the cuts of a model, under PFF, and knows their losses.

    Attributes:
        partition: the cut, with the features and n in force.
        pool: by which factor maps, and images, are pooled before the method reads them.
        dense: whether each place has a target of its own.
        own_head_weight: of the loss of an auxiliary head that the model itself has.
        independent, cascade: the networks of a level, by module: "1", "2", ...
        contexts: what each was built for, by level and module.
        weights: of the levels.
    """

    method: Method
    criterion: Criterion
    partition: Partition
    patch_sizes: PatchSizes
    weights: LevelWeights
    pool: int
    dense: bool
    own_head_weight: float
    independent: nn.ModuleDict
    cascade: nn.ModuleDict
    contexts: Mapping[tuple[Level, int], AuxiliaryContext]
    _needed: dict[tuple[object, ...], int] = field(default_factory=dict, init=False)

    def at(self, level: Level, j: int) -> PatchFusion:
        """The network of a level at module j, as it is used: under PFF."""
        network = (self.cascade if level == "cascade" else self.independent)[str(j)]
        assert isinstance(network, PatchFusion)
        return network

    def at_module(self, j: int) -> Iterator[PatchFusion]:
        """All networks at module j."""
        for level, at in self.contexts:
            if at == j:
                yield self.at(level, j)

    def before_step(self) -> None:
        """Let the method do what comes once before each step."""
        for (level, j), context in self.contexts.items():
            self.method.before_step(self.at(level, j).network, context)

    def bytes_at(self, j: int, example: object) -> int:
        """What the losses at module j take, for as many samples as the example has; 0: none."""
        module = self.partition[j - 1]
        if not any(at == j for _, at in self.contexts):
            return 0
        output = torch.zeros(2, *module.output_shape, dtype=module.dtype, device=module.device)
        image = image_of(example)
        pair = None if image is None else image[:1].expand(2, -1, -1, -1)
        features = self.features(j, output, pair, mask=None)
        needed = [
            self._bytes_of(network, features, self.images(network, pair))
            for network in self.at_module(j)
        ]
        gradients = 2 * features.nbytes  # of the levels
        return int((max(needed) + gradients) * module.samples // 2)

    def _bytes_of(self, network: PatchFusion, features: Tensor, images: Sequence[Tensor]) -> int:
        """What a network's graph holds at a time; networks that look alike are run once."""
        likeness = str(network), features.shape, features.stride(), features.dtype
        if likeness not in self._needed:
            with restored_state(network):
                self._needed[likeness] = network.bytes_at_once(features, *images)
        return self._needed[likeness]

    def features(self, j: int, output: Tensor, image: Tensor | None, mask: Tensor | None) -> Tensor:
        """What the networks at module j take of its output: maps, vectors, or pieces."""
        kind = self.partition[j - 1].features
        n = self.fit_patches(j, output, image)
        return features_of(self.method, kind, output, n, image, mask, self.pool, dense=self.dense)

    def fit_patches(self, j: int, output: Tensor, image: Tensor | None) -> int:
        """The n in force for this output of module j; its networks are set to it.

        That is ``partition[j - 1].patches`` for images of the example's size.
        """
        module = self.partition[j - 1]
        shape = tuple(output.shape[1:])
        fixed = shape == module.output_shape or module.features.kind == "sequence"
        n: int = module.patches
        if not fixed:
            n = self.patch_sizes.for_output(module.features, shape, image)
        for network in self.at_module(j):
            if network.patches != n:
                network.refit(n)
        return n

    def loss(
        self, level: Level, j: int, features: Tensor, image: Tensor | None, targets: Tensor
    ) -> Tensor:
        """The loss of a level at module j (a scalar, not weighted); "final": of the logits.

        That of the model's own auxiliary head is a part of the final loss, weighted as such.
        """
        if level == "final":
            return self.criterion(features, targets)
        if level == "own head":
            return self.own_head_weight * self.criterion(features, targets)
        network = self.at(level, j)
        outputs = network(features, *self.images(network, image))
        return self.method.loss(outputs, targets, self.contexts[level, j])

    def images(self, network: PatchFusion, image: Tensor | None) -> list[Tensor]:
        """What a network sees of the images, if its method needs them."""
        if image is None or not self.method.needs_images:
            return []
        return [pooled(image, self.pool, network.patches)]


def features_of(
    method: Method,
    kind: FeatureKind,
    output: Tensor,
    pieces: int,
    image: Tensor | None,
    mask: Tensor | None,
    pool: int,
    *,
    dense: bool,
) -> Tensor:
    """What auxiliary networks take of an output: of maps, what their method reads of them.

    Where each place has a target of its own, that is all.
    """
    features = kind.features(output, pieces, sides_of(image), mask)
    if features.ndim != 4:
        return features
    maps = pooled(features, pool, pieces)
    if not dense:
        maps = method.read(maps, pieces)
    shared = kind.shared(output)
    return maps if shared is None else maps + shared[:, :, None, None]


def pooled(maps: Tensor, factor: int, patches: int) -> Tensor:
    """Maps or images, average-pooled by the largest factor that divides patches' sides."""
    sides = [side // patches for side in maps.shape[2:]]
    factor = max(f for f in range(1, factor + 1) if all(side % f == 0 for side in sides))
    return average_blocks(maps, (factor, factor)) if factor > 1 else maps


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
