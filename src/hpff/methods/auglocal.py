"""AugLocal: auxiliary networks that look like the rest of the network."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpff.auxiliary import GlobalAverage
from hpff.errors import UserError
from hpff.methods.base import Method, Place
from hpff.models.cifar_resnet import BasicBlock

_DEPTHS = {"resnet32": 2, "resnet110": 3, "resnet34": 4}


class AugLocal(Method):
    """AugLocal (Ma et al., ICLR 2024): layers chosen evenly from the rest of the network.

    The auxiliary network of a module is a chain of residual blocks with the widths of blocks that
    follow it, chosen evenly, then global average pooling and a linear classifier; the loss is the
    task's. Chains shrink from ``depth`` blocks at the first module to about half at the last.

    Args:
        depth: d, blocks of the first chain.
    """

    def __init__(self, depth: int = 2) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise UserError(f"auglocal: depth is {depth!r}; expected 1 or more")
        self.depth = depth

    @classmethod
    def published(cls, network: str, data: str, modules: int) -> dict[str, Any]:
        """The depths of AugLocal's code."""
        return {"depth": _DEPTHS[network]} if network in _DEPTHS else {}

    def auxiliary(self, place: Place) -> nn.Module:
        if len(place.features) != 3:
            raise UserError(
                f"auglocal judges maps and tokens on a grid; module {place.module} gives a "
                f"{place.kind} of width {place.features[0]}; use dgl or predsim, or cut elsewhere"
            )
        widths = [shape[0] for shape in place.following if len(shape) == 3] or [place.features[0]]
        shrunk = 0.5 * (place.module - 1) / max(place.modules - 2, 1)
        depth = min(max(1, round(self.depth * (1 - shrunk) + shrunk)), len(widths))
        step = len(widths) / depth
        chosen = [widths[round(step * i) - 1] for i in range(1, depth + 1)]

        blocks: list[nn.Module] = []
        channels = place.features[0]
        for width in chosen:
            blocks.append(BasicBlock(channels, width, stride=2 if width > channels else 1))
            channels = width
        norm = [nn.BatchNorm1d(channels)] if depth == 1 else []
        classifier = nn.Linear(channels, place.num_classes)
        return nn.Sequential(*blocks, GlobalAverage(), *norm, classifier)
