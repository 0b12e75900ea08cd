"""Which parameters belong to which local module."""

from __future__ import annotations

from torch import nn

from hpff.cutting.local_modules import Partition
from hpff.engine.auxiliary_networks import AuxiliaryNetworks
from hpff.engine.reach import Reach
from hpff.errors import UserError


def backbone_parameters(model: nn.Module, partition: Partition) -> list[list[nn.Parameter]]:
    """For each module the backbone's parameters that it may use.

    One that the example did not reach may be used by any module, and is listed with all.

    Raises:
        UserError: the model has lost a parameter since it was wrapped.
    """
    named = dict(model.named_parameters())
    expected = {name for module in partition for name in module.parameter_names}
    lost = sorted(expected - named.keys())
    if lost:
        raise UserError(
            f"the model has no parameter {lost[0]!r} any more; it was changed after it was "
            "wrapped: wrap it again"
        )
    anywhere = [p for name, p in named.items() if name not in expected]
    return [[*(named[name] for name in module.parameter_names), *anywhere] for module in partition]


def module_parameters(
    model: nn.Module, networks: AuxiliaryNetworks, reach: Reach
) -> list[list[nn.Parameter]]:
    """For each module the parameters whose gradients are final when it is done.

    These are the backbone's and its auxiliary networks'. A parameter that several modules share
    is with the one that is done last.
    """
    owned: dict[nn.Parameter, int] = {}
    by_module = backbone_parameters(model, networks.partition)
    for j in reach.completion_order():
        owned |= dict.fromkeys(by_module[j - 1], j)
    lists: list[list[nn.Parameter]] = [[] for _ in networks.partition]
    for parameter, j in owned.items():
        lists[j - 1].append(parameter)
    for j, parameters in enumerate(lists, start=1):
        for network in networks.at_module(j):
            parameters.extend(network.parameters())
    return lists
