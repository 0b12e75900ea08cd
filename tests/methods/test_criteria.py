"""Cross-entropy in chunks: the same numbers from less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpff import LocalLearner, check_gradients
from hpff.errors import UserError
from hpff.memory import AllocationCounter
from hpff.methods import Criterion
from hpff.methods.criteria import ChunkedCrossEntropy


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_it_is_cross_entropy(chunk: int) -> None:
    scores = torch.randn(7, 5, requires_grad=True)
    targets = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    found = ChunkedCrossEntropy(chunk)(scores, targets)
    expected = F.cross_entropy(scores, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(2 * found, scores), torch.autograd.grad(2 * expected, scores)
    )


def test_it_holds_less() -> None:
    scores, targets = torch.randn(64, 5000, requires_grad=True), torch.zeros(64, dtype=torch.long)

    def peak(criterion: Criterion) -> int:
        with AllocationCounter() as counter:
            counter.track([scores])
            criterion(scores, targets).backward()
        scores.grad = None
        return counter.peak

    usual, chunked = peak(F.cross_entropy), peak(ChunkedCrossEntropy(8))
    assert usual >= 3 * scores.nbytes
    assert chunked <= 2.4 * scores.nbytes


def test_a_learner_takes_it() -> None:
    class Chain(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = Chain(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 30))
    x = torch.randn(9, 6)
    learner = LocalLearner(
        model, modules=2, example=x, num_classes=30, criterion=ChunkedCrossEntropy(4)
    )
    assert not check_gradients(learner, x, torch.arange(9), tolerance=1e-4)


def test_wrong_uses_are_refused() -> None:
    with pytest.raises(UserError, match="chunk is 0; expected a whole number of at least 1"):
        ChunkedCrossEntropy(0)
    with pytest.raises(UserError, match=r"the scores are \(2, 3, 4\) and the targets \(2, 4\)"):
        ChunkedCrossEntropy(1)(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
