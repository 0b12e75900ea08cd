"""What a model's author would call its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from torch import nn


def blocks_of(model: nn.Module, separating: Collection[str]) -> tuple[list[str], bool]:
    """Names of the submodules that no number of modules cuts in two.

    Args:
        separating: the submodules whose output separates the model.

    Returns:
        The blocks, and whether they are the model's chain: repeated parts of one class that hold
        most of its weights, such as the layers of a transformer. What lies between the items of
        a chain belongs to the next of them. In a model without a chain (VGG, Inception) the
        blocks are its composite parts, and each layer outside them stands for itself.
    """
    tree = _Tree(model, separating)
    chain = tree.chain()
    if 2 * sum(tree.weights(name) for name in chain) > tree.weights(""):
        return chain, True
    return list(tree.composites("", in_list=isinstance(model, nn.Sequential))), False


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
        """The items of all lists of one class, in order; of nested ones the innermost.

        A class counts as holding others only if all its items do: a block may be made of two
        layers of one class, and separable between them in some places only.
        """
        items = self._listed()
        holding = {name for name in items if any(other.startswith(f"{name}.") for other in items)}
        plain = {self._kind(name) for name in items if name not in holding}
        blocks = [name for name in items if self._kind(name) in plain]
        return [
            name for name in blocks if not any(name.startswith(f"{other}.") for other in blocks)
        ]

    def _listed(self) -> list[str]:
        """The items of all lists of one class; a single item if its like stand in longer lists."""
        groups = {name: group for name in self._modules if (group := self._alike(name))}
        long = {name: group for name, group in groups.items() if len(group) > 1}
        lists = {*_LISTS, *(self._kind(name) for name in long)}
        kinds = {self._kind(group[0]) for group in (long or groups).values()}
        return [
            item
            for name, group in groups.items()
            if self._kind(name) in lists and self._kind(group[0]) in kinds
            for item in group
        ]

    def composites(self, name: str, *, in_list: bool) -> Iterator[str]:
        """The outermost parts inside ``name`` that are made of others, lists and wrappers apart."""
        for child in self._children(name):
            if not self._children(child):
                if in_list and name == "":
                    yield child  # of a plain nn.Sequential, each child with a weight
            elif self._opens(child, in_list=in_list):
                yield from self.composites(child, in_list=is_list(self._modules[child]))
            else:
                yield child

    def _opens(self, name: str, *, in_list: bool) -> bool:
        """Whether to look for blocks inside: in lists of parts, and in what holds most weights."""
        module = self._modules[name]
        if is_list(module):
            return not in_list or any(self._children(child) for child in self._children(name))
        alone = self._kinds[type(module)] == 1
        return alone and 2 * self.weights(name) > self.weights("")

    def _kind(self, name: str) -> type[nn.Module]:
        return type(self._modules[name])

    def _children(self, name: str) -> list[str]:
        """Names of a submodule's children that have weights."""
        prefix = f"{name}." if name else ""
        names = [f"{prefix}{child}" for child, _ in self._modules[name].named_children()]
        return [child for child in names if child in self._modules and self.weights(child)]

    def _alike(self, name: str) -> list[str]:
        """The children, if all are composite, of one class, and separate the model."""
        children = self._children(name)
        kinds = {self._kind(child) for child in children}
        if len(kinds) != 1 or is_list(self._modules[children[0]]):
            return []
        composite = all(self._children(child) for child in children)
        return children if composite and all(c in self._separating for c in children) else []
