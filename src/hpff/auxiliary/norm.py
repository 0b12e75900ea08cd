"""BatchNorm for networks that only ever see a training batch, some of it cut into patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpff.errors import UserError


class PatchAware(nn.Module):
    """A layer whose work depends on which patch position a sample of its batch comes from.

    Attributes:
        groups: how many patch positions the batch holds, one after another: first every sample's
            first patch, then every sample's second, and so on.
    """

    groups: int = 1


class BatchStatisticsNorm(PatchAware):
    """Batch normalization by the batch's own statistics, without running ones.

    Takes (groups·B, C, ...) and normalizes each patch position by its own statistics over the
    batch: exactly what the network would do if it were given one patch position after another.

    Args:
        channels: C.
        affine: whether a scale and a shift are learned.
        eps: added to the variance.
    """

    def __init__(self, channels: int, *, affine: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.channels = channels
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The normalized (groups·B, C, ...), laid out as ``x`` is.

        Raises:
            UserError: there is one value a channel, so that nothing is left of it.
        """
        if self.groups == 1:
            return self._normalized(x, self.weight, self.bias)
        positions = x.chunk(self.groups)  # each is a whole batch, in the layout of x
        return torch.cat([self._normalized(p, self.weight, self.bias) for p in positions])

    def of_rows(self, rows: Tensor, groups: int) -> Tensor:
        """The same for rows (B·groups, C) where the patches of a sample stand side by side.

        That is one normalization, of groups·C columns, or of C where all positions have the same
        statistics (the attribute ``groups`` is 1).

        Raises:
            UserError: as :meth:`forward`.
        """
        if groups == 1 or self.groups == 1:
            return self._normalized(rows, self.weight, self.bias)
        columns = rows.view(-1, groups * self.channels)
        weight, bias = (
            None if each is None else each.expand(groups, -1).reshape(-1)
            for each in (self.weight, self.bias)
        )
        return self._normalized(columns, weight, bias).view(rows.shape)

    def _normalized(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if x.numel() == x.shape[1]:
            raise UserError("BatchNorm in an auxiliary network: the batch is 1; give 2 or more")
        return torch.batch_norm(x, weight, bias, None, None, True, 0.0, self.eps, True)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


def use_batch_statistics(network: nn.Module, groups: int) -> nn.Module:
    """Replace every BatchNorm inside ``network`` and set the groups of all.

    Args:
        network: changed in place; the BatchNorms' parameters are kept, as the same objects.
        groups: how many patch positions a batch will hold.

    Returns:
        The network, or what stands for it if it is a BatchNorm itself.
    """
    if isinstance(network, _BatchNorm):
        network = _converted(network)
    if isinstance(network, PatchAware):
        network.groups = groups
    for name, child in network._modules.items():
        if child is not None:
            network._modules[name] = use_batch_statistics(child, groups)
    return network


def _converted(norm: _BatchNorm) -> BatchStatisticsNorm:
    converted = BatchStatisticsNorm(norm.num_features, affine=norm.affine, eps=norm.eps)
    for name in ("weight", "bias"):
        value = getattr(norm, name)
        delattr(converted, name)  # may be a buffer there
        if name in norm._buffers:
            converted.register_buffer(name, value)
        else:
            converted.register_parameter(name, value)
    return converted
