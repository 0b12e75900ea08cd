"""BatchNorm by the statistics of a whole batch whose shares are on several ranks.

Every normalization by a batch's own statistics gathers count, mean and variance of each rank's
share, and its backward adds up two sums for each channel; that is all that travels. Ranks run the
same operations in the same order, so they meet in each. When a module's operations run again for
its backward, what was gathered counts as given; only patches that run one by one gather again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpff.torch_support.batch_norm import batch_norm_as, plain_batch_norm
from hpff.torch_support.modes import dispatch_modes_off


@contextmanager
def batch_statistics(group: Any = None) -> Iterator[None]:
    """Inside, what normalizes a batch by its own statistics does so by those of all ranks.

    Modules stay what they are: it is the function that they call which does something else.

    Args:
        group: of the ranks; None: all.
    """

    def normalize(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        running = (running_mean, running_var, momentum)
        if not training:
            return plain_batch_norm(
                x, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled
            )
        given = (x, weight, bias, running, eps, group)
        output: Tensor = _Normalized.apply(*given)  # type: ignore[no-untyped-call]
        return output

    with batch_norm_as(normalize):
        yield


class _Normalized(torch.autograd.Function):
    """A share of a batch, normalized by the statistics of the whole."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None, float],
        eps: float,
        group: Any,
    ) -> Tensor:
        with dispatch_modes_off():  # for who notes operations, these are numbers that are given
            mean, variance, count = _gathered(x, group)
            _move(running, mean, variance, count)
            wide_weight, wide_bias = (
                None if each is None else each.to(mean.dtype) for each in (weight, bias)
            )
            scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, wide_weight, mean, scale)
        ctx.count, ctx.group = count, group
        return plain_batch_norm(
            x, wide_weight, wide_bias, mean, variance, False, 0.0, eps, torch.backends.cudnn.enabled
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, mean, scale = ctx.saved_tensors
        dims, shape = _axes(x)
        deviation = x.to(mean.dtype) - mean.view(shape)
        plain = gradient.sum(dims, dtype=mean.dtype)
        along = (gradient * deviation).sum(dims, dtype=mean.dtype)
        of_input = None
        if ctx.needs_input_grad[0]:
            sums = torch.cat((plain, along))
            dist.all_reduce(sums, group=ctx.group)
            mean_plain, mean_along = (sums / ctx.count).chunk(2)
            factor = scale if weight is None else scale * weight
            deviation.mul_((-mean_along * scale.square()).view(shape)).add_(gradient)
            of_input = deviation.sub_(mean_plain.view(shape)).mul_(factor.view(shape)).to(x.dtype)
        of_weight = along * scale if ctx.needs_input_grad[1] else None
        of_bias = plain if ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias, None, None, None


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """All axes but the channels', and the shape in which a channel's number is broadcast."""
    return [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]


def _gathered(x: Tensor, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (biased) of each channel, and how many values it has, over all ranks.

    Variances of shares are put together by their distances from the common mean, so that none is
    the difference of two large numbers.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, _axes(x)[0], correction=0)
    own = torch.cat((mean, variance, mean.new_tensor([x.numel() // x.shape[1]])))
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    rows = torch.stack(everyone)
    means, variances, counts = rows.split((len(mean), len(mean), 1), dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    variance = ((variances + (means - mean).square()) * counts).sum(0) / count
    return mean, variance, count


def _move(
    running: tuple[Tensor | None, Tensor | None, float],
    mean: Tensor,
    variance: Tensor,
    count: Tensor,
) -> None:
    """Move running statistics, if there are any: the variance without bias."""
    running_mean, running_variance, momentum = running
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
    if running_variance is not None:
        unbiased = variance * (count / (count - 1))
        running_variance.lerp_(unbiased.to(running_variance.dtype), momentum)
