"""What is inside of the arguments and results of an operation below autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

_NESTS = (tuple, list, dict)


def mapped(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    """An operation's arguments with ``function`` applied to those of a kind.

    Each call of PyTorch's own ``tree_map`` leaves a cycle for the garbage collector.
    """
    if isinstance(tree, kind):
        return function(tree)
    nest = type(tree)
    if nest not in _NESTS:
        return tree
    if nest is dict:
        return {key: mapped(kind, function, value) for key, value in tree.items()}
    return nest([mapped(kind, function, value) for value in tree])


def leaves_of(tree: Any) -> list[Any]:
    """What tuples, lists and dicts hold, in order; several times as fast as ``tree_leaves``."""
    nest = type(tree)
    if nest not in _NESTS:
        return [tree]
    found: list[Any] = []
    for value in tree.values() if nest is dict else tree:
        if type(value) in _NESTS:
            found += leaves_of(value)
        else:
            found.append(value)
    return found


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors that tuples, lists and dicts hold, in order."""
    return [leaf for leaf in leaves_of(tree) if isinstance(leaf, Tensor)]
