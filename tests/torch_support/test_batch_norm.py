"""Another function in the place of ``torch.batch_norm``: where it is seen, and that it goes."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpff.torch_support.batch_norm import batch_norm_as, plain_batch_norm

ORIGINAL = torch.batch_norm
X = torch.arange(8.0).view(4, 2)


def doubled(x: Tensor, *_: object) -> Tensor:
    return 2 * x


def test_it_is_what_layers_call_and_goes_again() -> None:
    norm = nn.BatchNorm1d(2)
    expected = norm(X)
    with batch_norm_as(doubled):
        assert torch.equal(norm(X), 2 * X)
        with batch_norm_as(lambda x, *_: 3 * x):
            assert torch.equal(norm(X), 3 * X)
        assert torch.equal(norm(X), 2 * X)
        given = (X, norm.weight, norm.bias, None, None, True, 0.1, 1e-5, False)
        assert torch.equal(plain_batch_norm(*given), expected)
    assert torch.batch_norm is ORIGINAL


def test_it_goes_where_something_fails_inside() -> None:
    with pytest.raises(ZeroDivisionError), batch_norm_as(doubled):
        raise ZeroDivisionError
    assert torch.batch_norm is ORIGINAL


def test_other_threads_see_nothing_of_it() -> None:
    norm, found = nn.BatchNorm1d(2), []
    expected = norm(X)
    with batch_norm_as(doubled):
        thread = threading.Thread(target=lambda: found.append(norm(X)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], expected)


def test_a_checkpointed_block_runs_again_as_it_ran() -> None:
    norm, x = nn.BatchNorm1d(2), X.clone().requires_grad_()
    with batch_norm_as(lambda x, *_: x.exp() * x):
        checkpoint(norm, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, X.exp() * (1 + X))
