"""Which kind of features each output of a model is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hpff.errors import UserError
from hpff.features import maps, sequences, tokens, vectors
from hpff.features.base import Facts, FeatureKind, Shape, Sides
from hpff.features.maps import Maps
from hpff.features.sequences import Sequences
from hpff.features.tokens import Tokens
from hpff.features.vectors import Vectors

GivenKind = str | FeatureKind
Given = GivenKind | Mapping[str, GivenKind] | None
# Asked in this order; the last takes anything.
_KINDS: tuple[Callable[[Shape, Facts], FeatureKind | None], ...] = (
    vectors.recognize,
    maps.recognize,
    tokens.recognize,
    sequences.recognize,
)
_NAMED: dict[str, FeatureKind] = {
    "map": Maps(),
    "map-last": Maps(channels_last=True),
    "tokens": Tokens(),
    "sequence": Sequences(),
    "sequence-first": Sequences(channels_first=True),
    "vector": Vectors(),
}
_DIMENSIONS = {Maps: (3, 3), Tokens: (2, 2), Sequences: (2, 9), Vectors: (1, 1)}
_PREFIX = re.compile(r"(cls|class|dist|distillation|reg|register)_?(tokens?|embeddings?)$")


class Finder:
    """Finds the features of a model's outputs, or takes what the user says.

    Args:
        model: the one whose outputs they are.
        example: a small input of it.
        sides: of the example's images, if its input is such.
        shapes: of the outputs of all its blocks, the batch left out.
        given: a kind's name or a :class:`FeatureKind` for all cuts, or by the cut's name.

    Raises:
        UserError: ``given`` names no kind.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        sides: Sides | None,
        shapes: Iterable[Shape],
        given: Given = None,
    ) -> None:
        self.sides = sides
        self._facts = _facts(model, example, sides, shapes)
        self._given = given

    def at(self, cut: str, shape: Shape) -> FeatureKind:
        """The features of one output.

        Args:
            cut: name of the submodule that returns it.
            shape: of the output, the batch left out.

        Raises:
            UserError: the kind that was given does not fit the shape.
        """
        given = self._given.get(cut) if isinstance(self._given, Mapping) else self._given
        return self._find(shape) if given is None else self._as_given(given, cut, shape)

    def features_shape(self, shape: Shape) -> Shape:
        """What methods would see of an output that is no cut."""
        said = self._given if isinstance(self._given, FeatureKind) else _NAMED.get(str(self._given))
        features = said if isinstance(said, Maps) and len(shape) == 3 else self._find(shape)
        return features.features_shape(shape, self.sides)

    def _find(self, shape: Shape) -> FeatureKind:
        return next(found for kind in _KINDS if (found := kind(shape, self._facts)) is not None)

    def _as_given(self, given: GivenKind, cut: str, shape: Shape) -> FeatureKind:
        features = _named(given)
        if not _fits(features, shape):
            raise UserError(
                f"features: the output of {cut!r} has shape (B, {', '.join(map(str, shape))}), "
                f"which is no {features.kind}; leave features out to have it found"
            )
        if given == "tokens":
            return tokens.recognize(shape, self._facts) or features
        return features


def check_given(given: object, cuts: Iterable[str]) -> None:
    """UserError unless ``features`` is a kind, or a mapping from names of cuts to kinds."""
    known = list(cuts)
    for name, value in given.items() if isinstance(given, Mapping) else []:
        if name not in known:
            raise UserError(f"features: {name!r} is no cut; the cuts are {', '.join(known)}")
        _named(value)
    if given is not None and not isinstance(given, Mapping):
        _named(given)


def _named(given: object) -> FeatureKind:
    if isinstance(given, FeatureKind):
        return given
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]
    raise UserError(f"features: {given!r} is no kind; expected one of: {', '.join(_NAMED)}")


def _fits(features: FeatureKind, shape: Shape) -> bool:
    least, most = _DIMENSIONS.get(type(features), (0, 9))
    return least <= len(shape) <= most


def _facts(model: nn.Module, example: Any, sides: Sides | None, shapes: Iterable[Shape]) -> Facts:
    first = next((leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor)), None)
    numbers = first is not None and first.ndim == 2 and not first.is_floating_point()
    facts = Facts(
        sides=sides,
        length=first.shape[1] if first is not None and numbers else None,
        widths=frozenset(p.numel() for p in model.parameters() if p.ndim == 1),
        prefix=_prefix(model),
    )
    readings = [maps.channels_are_last(shape, facts) for shape in shapes if len(shape) == 3]
    return replace(facts, channels_last=True in readings and False not in readings)


def _prefix(model: nn.Module) -> int:
    """How many class, distillation and register tokens a model learns (timm says it itself)."""
    said = getattr(model, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    return sum(
        1 if p.ndim == 1 else p.numel() // p.shape[-1]
        for name, p in model.named_parameters()
        if _PREFIX.search(name)
    )
