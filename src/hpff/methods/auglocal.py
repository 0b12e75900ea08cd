"""AugLocal: auxiliary networks that look like the rest of the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hpff.auxiliary import GlobalAverage
from hpff.auxiliary.ahead import FreshBlocks
from hpff.errors import UserError, shown
from hpff.methods.base import AuxiliaryContext, Method
from hpff.methods.next_blocks import DO_NOT_RUN, output_of
from hpff.models.cifar_resnet import BasicBlock

_DEPTHS = {"resnet32": 2, "resnet110": 3, "resnet34": 4}


class AugLocal(Method):
    """AugLocal: layers chosen evenly from the rest of the network.

    Ma et al., "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024,
    https://arxiv.org/abs/2402.17318.

    The auxiliary network of a module is a chain of residual blocks with the widths of blocks that
    follow it, chosen evenly, then global average pooling and a linear classifier; the loss is the
    task's. In a dense task the blocks keep the features' resolution, and a 1×1 convolution stands
    for pooling and classifier. On tokens the chain is of the network's own blocks that follow, with
    weights of its own and a LayerNorm before the classifier; where these do not run on the grid of
    tokens alone, or features are narrowed, of residual blocks too (ours; the paper has no
    transformers).

    Args:
        depth: d, blocks of the first chain, at most 1000. With d = 1 a BatchNorm stands before the
            classifier.
        pyramid: whether chains shrink, from ``depth`` blocks at the first module to about half at
            the last. False is the public code's way on ImageNet: ``depth`` blocks everywhere, and
            no BatchNorm before the classifier.

    Raises:
        UserError: a setting is out of range.
    """

    dense: bool = True

    def __init__(self, depth: int = 2, pyramid: bool = True) -> None:
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 1000:
            raise UserError(
                f"auglocal: depth is {shown(depth)}; expected a whole number from 1 to 1000"
            )
        if not isinstance(pyramid, bool):
            raise UserError(f"auglocal: pyramid is {pyramid!r}; expected true or false")
        self.depth = depth
        self.pyramid = pyramid

    @classmethod
    def published(cls, network: str, data: str, modules: int) -> dict[str, Any]:
        """The depths of AugLocal's code, and its way on ImageNet."""
        depth = {"depth": _DEPTHS[network]} if network in _DEPTHS else {}
        return {**depth, "pyramid": False} if data == "imagenet" else depth

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        if len(context.features) != 3:
            raise UserError(
                f"auglocal takes maps and tokens on a grid; module {context.module} gives a "
                f"{context.kind} of width {context.features[0]}; use dgl or predsim, or "
                "cut elsewhere"
            )
        if context.kind == "tokens" and not context.dense:
            chain = self._of_own_blocks(context)
            if chain is not None:
                return chain
        widths = [shape[0] for shape in context.following if len(shape) == 3] or [
            context.features[0]
        ]
        places = _evenly(len(widths), self._depth(context), context.preceding)
        chosen = [widths[place] for place in places]
        blocks: list[nn.Module] = []
        channels = context.features[0]
        for width in chosen:
            grows = width > channels and not context.dense
            blocks.append(BasicBlock(channels, width, stride=2 if grows else 1))
            channels = width
        if context.dense:
            return nn.Sequential(*blocks, nn.Conv2d(channels, context.num_classes, 1))
        norm = [nn.BatchNorm1d(channels)] if self.depth == 1 and self.pyramid else []
        classifier = nn.Linear(channels, context.num_classes)
        return nn.Sequential(*blocks, GlobalAverage(), *norm, classifier)

    def _of_own_blocks(self, context: AuxiliaryContext) -> nn.Module | None:
        """A chain of the network's own blocks, if they run on what auxiliary networks see."""
        following = context.next_blocks
        if not following:
            return None
        places = _evenly(len(following), self._depth(context), context.preceding)
        chain = FreshBlocks([following[place] for place in places], as_tokens=True)
        try:
            output = output_of(chain, context.features)
        except DO_NOT_RUN:
            return None
        if not isinstance(output, Tensor) or output.ndim != 4:
            return None
        width = output.shape[1]
        classifier = nn.Linear(width, context.num_classes)
        return nn.Sequential(chain, GlobalAverage(), nn.LayerNorm(width), classifier)

    def _depth(self, context: AuxiliaryContext) -> int:
        """How many blocks the chain of a module has."""
        if not self.pyramid:
            return self.depth
        shrunk = 0.5 * (context.module - 1) / max(context.modules - 2, 1)
        return max(1, round(self.depth * (1 - shrunk) + shrunk))


def _evenly(count: int, depth: int, preceding: int) -> list[int]:
    """``depth`` places among the ``count`` units that follow, or all if they are fewer.

    The last one is always there. As in the public code the places are counted, and halves rounded
    to even, from the network's beginning: which of two neighbours is taken depends on how many
    units lie before.
    """
    depth = min(depth, count)
    step = count / depth
    return [round(preceding + step * i) - preceding - 1 for i in range(1, depth + 1)]
