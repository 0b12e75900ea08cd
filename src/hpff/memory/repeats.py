"""Local losses that take the same memory are computed once.

In a deep network most auxiliary networks look like another one, and what comes and goes while such
a loss and its gradients are computed is the same. The first time it is watched; after that only
what stays is made: the gradients, and the loss itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpff.engine.local_loss import LocalLoss, Work
from hpff.memory.arithmetic import ArithmeticCounter, count_again
from hpff.memory.ledger import Ledger, Mark, Piece

_OF_ALL_MODULES = set(vars(nn.Module())) - {"training"}
Known = dict[Any, "_Watched | None"]


class _UnlikeAnyError(Exception):
    """It cannot be told whether something is like another."""


@dataclass(frozen=True)
class Repeats:
    """Does the work of local losses under fake tensors, or repeats it in the ledger.

    Args:
        ledger: of the step that is rehearsed.
        known: what was watched before; None for a loss that leaves more behind than its gradients.
    """

    ledger: Ledger
    known: Known

    def __call__(self, loss: LocalLoss, work: Work) -> Tensor:
        """The gradient at the module's output, with all else that the work does."""
        try:
            key = _likeness(loss)
            watched = self.known.get(key)
        except (_UnlikeAnyError, TypeError):
            return work()
        if watched is not None:
            return watched.again(self.ledger, loss)
        mark = self.ledger.mark()
        with ArithmeticCounter() as counter:
            gradient = work()
        if key not in self.known:
            self.known[key] = _Watched.since(mark, self.ledger, loss, gradient, counter.total)
        return gradient


@dataclass(frozen=True)
class _Left:
    """A tensor that stays: its birth, how it looks, and the size of its storage."""

    birth: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    size: int

    @classmethod
    def of(cls, tensor: Tensor, birth: int) -> _Left:
        shape, stride, offset = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return cls(birth, tensor.dtype, shape, stride, offset, tensor.untyped_storage().nbytes())

    def again(self) -> Tensor:
        whole = torch.empty(self.size // self.dtype.itemsize, dtype=self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class _Watched:
    """What computing a local loss did: what came and went, and the tensors that stay."""

    piece: Piece
    left: tuple[_Left, ...]
    trained: tuple[bool, ...]
    arithmetic: int

    @classmethod
    def since(
        cls, mark: Mark, ledger: Ledger, loss: LocalLoss, gradient: Tensor, arithmetic: int
    ) -> _Watched | None:
        """What was done since then, if it can be done again."""
        piece = ledger.piece_since(mark)
        gradients = [parameter.grad for parameter in loss.network.parameters()]
        tensors = [gradient, loss.losses[loss.name], *(g for g in gradients if g is not None)]
        left = tuple(_Left.of(tensor, ledger.place_since(mark, tensor)) for tensor in tensors)
        births = {each.birth for each in left}
        owners = {owner.module for owner, _ in piece.births}
        whole = (
            births == piece.stays()
            and len(births) == len(left)
            and piece.stands_alone()
            and owners <= {0, loss.module}
        )
        trained = tuple(g is not None for g in gradients)
        return cls(piece, left, trained, arithmetic) if whole else None

    def again(self, ledger: Ledger, loss: LocalLoss) -> Tensor:
        """Do it for another loss: its gradients, and the ledger's entries."""
        with torch.no_grad(), ledger.looking_away():
            gradient, value, *gradients = (each.again() for each in self.left)
        made = (gradient, value, *gradients)
        there = {each.birth: tensor for each, tensor in zip(self.left, made, strict=True)}
        for parameter, has in zip(loss.network.parameters(), self.trained, strict=True):
            if has:
                parameter.grad = gradients.pop(0)
        loss.losses[loss.name] = value
        count_again(self.arithmetic)
        ledger.repeat(self.piece, loss.module, there)
        return gradient


def _likeness(loss: LocalLoss) -> Any:
    """What all losses have in common that take the same memory."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_default_dtype()
    given = tuple(_looks(each) for each in loss.given)
    return loss.settings, autocast, given, tuple(_looks_of_network(loss.network))


def _looks_of_network(network: nn.Module) -> Iterator[Any]:
    for name, module in network.named_modules():
        yield name, type(module)
        for attribute, value in vars(module).items():
            if attribute not in _OF_ALL_MODULES:
                yield attribute, value
            elif value and "hook" in attribute:
                raise _UnlikeAnyError
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        yield name, _looks(tensor), tensor.requires_grad
        if tensor.grad is not None:
            raise _UnlikeAnyError


def _looks(tensor: Tensor | None) -> Any:
    if tensor is None:
        return None
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
