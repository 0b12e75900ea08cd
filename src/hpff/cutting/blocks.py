"""What a model's author would call its blocks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator

from torch import nn


def blocks_of(model: nn.Module, separating: Collection[str]) -> tuple[list[str], bool]:
    """Names of the submodules that no number of modules cuts in two.

    Args:
        model: the one that is cut.
        separating: the submodules whose output separates the model.

    Returns:
        The blocks, and whether they are the model's chain: numbered parts, made of others, that
        hold most of its weights, such as the layers of a transformer. What lies between the
        items of a chain belongs to the next of them. In a model without a chain (VGG, GoogLeNet)
        the blocks are its composite parts, and each layer outside them stands for itself.
    """
    tree = _Tree(model, separating)
    chain = tree.chain()
    if 2 * sum(tree.weights(name) for name in chain) > tree.weights(""):
        return chain, True
    return list(tree.composites("", chain, in_list=isinstance(model, nn.Sequential))), False


_LISTS = (nn.Sequential, nn.ModuleList)


def is_list(module: nn.Module) -> bool:
    """Whether a module is only a list of others."""
    return type(module) in _LISTS


class _Tree:
    """A model's submodules by name, and what is known of them."""

    def __init__(self, model: nn.Module, separating: Collection[str]) -> None:
        self._modules = dict(model.named_modules())
        self._separating = separating
        self._kinds = Counter(type(module) for module in self._modules.values())

    def weights(self, name: str) -> int:
        """How many parameters of two or more dimensions a submodule has."""
        return sum(p.ndim >= 2 for p in self._modules[name].parameters())

    def chain(self) -> list[str]:
        """The items of all lists, in order; of nested ones the innermost.

        A class counts as holding others only if all its items do: a block may be made of two
        layers that are separable in some places only.
        """
        items = self._listed()
        holding = {name for name in items if any(other.startswith(f"{name}.") for other in items)}
        plain = {self._kind(name) for name in items if name not in holding}
        blocks = [name for name in items if self._kind(name) in plain]
        return [
            name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)
        ]

    def _listed(self) -> list[str]:
        """The items of all lists; a single item only if its like stand in longer lists."""
        lists = {name: items for name in self._modules if (items := self._items(name))}
        long = {name: items for name, items in lists.items() if len(items) > 1}
        classes = {*_LISTS, *(self._kind(name) for name in long)}
        kinds = {self._kind(item) for items in (long or lists).values() for item in items}
        return [
            item
            for name, items in lists.items()
            if self._kind(name) in classes
            for item in items
            if self._kind(item) in kinds
        ]

    def composites(self, name: str, chain: Collection[str], *, in_list: bool) -> Iterator[str]:
        """The outermost parts inside ``name`` that are made of others, lists and wrappers apart."""
        for child in self._children(name):
            if not self._children(child):
                if in_list and name == "":
                    yield child  # of a plain nn.Sequential, each child with a weight
            elif child not in chain and self._opens(child, chain, in_list=in_list):
                inside = is_list(self._modules[child])
                yield from self.composites(child, chain, in_list=inside)
            else:
                yield child

    def _opens(self, name: str, chain: Collection[str], *, in_list: bool) -> bool:
        """Whether to look for blocks inside: in lists of parts, and around a chain or most weights.

        A list of layers is a block where it stands in a list itself.
        """
        module = self._modules[name]
        if is_list(module):
            return not in_list or any(self._children(child) for child in self._children(name))
        if any(block.startswith(f"{name}.") for block in chain):
            return True
        return self._kinds[type(module)] == 1 and 2 * self.weights(name) > self.weights("")

    def _kind(self, name: str) -> type[nn.Module]:
        return type(self._modules[name])

    def _children(self, name: str) -> list[str]:
        """Names of a submodule's children that have weights."""
        prefix = f"{name}." if name else ""
        names = [f"{prefix}{child}" for child, _ in self._modules[name].named_children()]
        return [child for child in names if child in self._modules and self.weights(child)]

    def _items(self, name: str) -> list[str]:
        """The composite parts of a list, if they are numbered, and all separate the model.

        A list of lists has stages, and transitions between them, but no blocks.
        """
        items = [child for child in self._children(name) if self._children(child)]
        if any(is_list(self._modules[item]) for item in items):
            return []
        stems = {re.sub(r"\d+", "", item.rpartition(".")[2]) for item in items}
        separate = all(item in self._separating for item in items)
        return items if len(stems) == 1 and separate else []
