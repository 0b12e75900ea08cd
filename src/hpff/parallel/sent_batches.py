"""Batches that only the first rank has: each other takes them from the rank before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hpff.errors import UserError
from hpff.parallel.neighbors import Connections
from hpff.torch_support.model_io import mapped, tensor_at, tensors_in


class SentBatches:
    """Hands batches on along the ranks, in the order of steps.

    Args:
        connections: to the ranks beside this one.
        example: built as the inputs are; what is no tensor in it is the same in every batch.
        is_first: whether this rank has the batches.
    """

    def __init__(self, connections: Connections, example: Any, *, is_first: bool) -> None:
        self._connections = connections
        self._example = example
        self._paths = [path for path, _ in tensors_in(example)]
        self._is_first = is_first

    def take(
        self, inputs: Any, targets: Tensor | None, *, with_targets: bool = True
    ) -> tuple[Any, Any]:
        """A batch: what was given on the first rank, and what it sent elsewhere.

        Args:
            inputs: None but on the first rank.
            targets: likewise.
            with_targets: whether there are targets.

        Raises:
            UserError: the first rank has none, or another has one.
        """
        self.check(inputs, targets)
        if self._is_first:
            self._connections.send_batch(
                self.content_of(inputs, targets, with_targets=with_targets)
            )
            return inputs, targets
        received = self._connections.receive_batch(len(self._paths) + with_targets)
        self._connections.send_batch(received)
        return self.batch_of(received)

    def check(self, inputs: Any, targets: Tensor | None) -> None:
        """Refuse a batch on another than the first rank, and none on that."""
        if self._is_first != (inputs is not None) or (targets is not None and inputs is None):
            raise UserError(
                "batches are sent by the first rank, which alone is given inputs and targets; "
                "give the others None"
            )

    def content_of(
        self, inputs: Any, targets: Tensor | None, *, with_targets: bool = True
    ) -> list[Tensor]:
        """A batch's tensors, in order: copies, as a loop may reuse its own before they arrive."""
        found = [tensor_at(inputs, path) for path in self._paths]
        return [_copied(tensor) for tensor in ([*found, targets] if with_targets else found)]

    def batch_of(self, content: Sequence[Tensor]) -> tuple[Any, Any]:
        """The batch that has these tensors: inputs, and targets if it has any."""
        given = iter(content)
        return mapped(self._example, lambda _: next(given)), next(given, None)


def _copied(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise UserError("a batch that is sent needs targets, and inputs built as the example is")
    return tensor.detach().to("cpu", copy=True)
