"""Criteria of a task that take less memory than PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hpff.errors import UserError


class ChunkedCrossEntropy:
    """Cross-entropy, mean over samples, that looks at some samples at a time.

    ``LocalLearner(..., criterion=ChunkedCrossEntropy(256))``. PyTorch's keeps the log-probabilities
    of all samples beside their scores until the backward, which makes the gradient: three tensors
    of samples by classes. Here there are two, and one sample's worth for each of a chunk. For many
    classes; with a thousand it saves next to nothing.

    Args:
        chunk: how many samples at a time, 1 or more.

    Raises:
        UserError: the chunk is no such number.
    """

    def __init__(self, chunk: int = 256) -> None:
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise UserError(f"chunk is {chunk!r}; expected a whole number of at least 1")
        self.chunk = chunk

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, of scores (B, classes) and class indices (B,)."""
        if logits.ndim != 2 or targets.shape != logits.shape[:1]:
            raise UserError(
                f"the scores are {tuple(logits.shape)} and the targets {tuple(targets.shape)}; "
                "expected (B, classes) and (B,)"
            )
        loss: Tensor = _Chunked.apply(logits, targets, self.chunk)  # type: ignore[no-untyped-call]
        return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(logits, targets)
        ctx.chunk = chunk
        pairs = zip(logits.split(chunk), targets.split(chunk), strict=True)
        total = sum(F.cross_entropy(a.float(), b, reduction="sum") for a, b in pairs)
        return torch.as_tensor(total / len(logits), dtype=logits.dtype, device=logits.device)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Any:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        rows = zip(gradient.split(ctx.chunk), logits.split(ctx.chunk), strict=True)
        for (into, part), wanted in zip(rows, targets.split(ctx.chunk), strict=True):
            share = torch.softmax(part.float(), dim=1)
            share[torch.arange(len(wanted), device=wanted.device), wanted] -= 1
            into.copy_(share.mul_(incoming / len(logits)))
        return gradient, None, None
