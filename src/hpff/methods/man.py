"""MAN: auxiliary networks that follow the block to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hpff.auxiliary import AheadNetwork, AheadOfPatches, FollowedBlocks, FreshBlocks, PatchNetwork
from hpff.errors import UserError, shown
from hpff.methods import registry
from hpff.methods.base import AuxiliaryContext, Method
from hpff.methods.infopro import InfoPro
from hpff.methods.next_blocks import DO_NOT_RUN, output_of

_PUBLISHED = {
    ("cifar10", "resnet32"): ((4.64, 3.93), (0.46, 0.39)),
    ("imagenet", ""): ((5.0, 5.0), (0.75, 0.75)),
}


@registry.register("man")
class MAN(Method):
    """MAN: another method's auxiliary network behind a moving average of the next block.

    Su et al., "Momentum Auxiliary Network for Supervised Local Learning", ECCV 2024; with
    ``twin=False`` MAN++, "Scaling Momentum Auxiliary Network for Supervised Local Learning in
    Vision Tasks", TPAMI 2026, https://arxiv.org/abs/2507.16279.

    The features pass a copy of the model's next block whose parameters have no gradient: at the
    start of each step they move towards the block's, w ← μ·w + (1 - μ)·w_block. A trained twin of
    that block, with fresh weights, takes the same features, and the outputs are added (MAN); or
    each channel of the copy's output has a learned scale and bias (MAN++). Then comes the auxiliary
    network of ``base``, and its loss.

    Where the network's blocks are over (the last cut), the base stands alone.

    Args:
        base: the method behind: a name, ``{"name": ..., and its settings}``, or a Method. MAN's
            public code has ``"infopro"``.
        momentum: μ, from 0 (the block's own weights) to 1 (a copy that never moves).
        twin: whether a trained twin is added, instead of a scale and a bias.
        depth: how many of the blocks to come are followed. The papers follow 1.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        base: str | Mapping[str, Any] | Method = "dgl",
        momentum: float = 0.995,
        twin: bool = True,
        depth: int = 1,
    ) -> None:
        is_number = isinstance(momentum, int | float) and not isinstance(momentum, bool)
        if not is_number or not 0 <= momentum <= 1:
            raise UserError(f"man: momentum is {momentum!r}; expected a number from 0 to 1")
        if not isinstance(twin, bool):
            raise UserError(f"man: twin is {twin!r}; expected true or false")
        if isinstance(depth, bool) or not isinstance(depth, int) or not 1 <= depth <= 1000:
            raise UserError(f"man: depth is {shown(depth)}; expected a whole number from 1 to 1000")
        self.base = _method(base)
        self.momentum = float(momentum)
        self.twin = twin
        self.depth = depth
        self.needs_images = self.base.needs_images
        self.dense = self.base.dense

    @classmethod
    def published(cls, network: str, data: str, modules: int) -> dict[str, Any]:
        """The public code's: InfoPro behind, with its own λ1 and λ2.

        There λ depend on the stage; here, as InfoPro's do, on the module, between the same ends.
        """
        weights = _PUBLISHED.get((data, network if data == "cifar10" else ""))
        if weights is None:
            return {}
        names = ("reconstruction", "classification")
        own = {name: list(ends) for name, ends in zip(names, weights, strict=True)}
        return {"base": {"name": "infopro", **InfoPro.published(network, data, modules), **own}}

    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        blocks = context.next_blocks[: self.depth]
        if not blocks and context.features[0] == context.width:
            raise UserError(
                "man looks ahead by copies of the model's own next blocks, which take its features "
                "as wide as they are; leave out auxiliary_width (auxiliary_pool makes it light)"
            )
        as_tokens = context.kind == "tokens"
        followed = FollowedBlocks(blocks, as_tokens=as_tokens) if blocks else None
        shape = _output_shape(followed, context) if followed else context.features
        behind = self.base.auxiliary(
            replace(
                context,
                features=shape,
                following=context.following[len(blocks) :],
                next_blocks=context.next_blocks[len(blocks) :],
                preceding=context.preceding + len(blocks),
            )
        )
        kind = AheadOfPatches if isinstance(behind, PatchNetwork) else AheadNetwork
        twin = FreshBlocks(blocks, as_tokens=as_tokens) if blocks and self.twin else None
        return kind(followed, twin, shape[0], _whole if context.dense else self.base.read, behind)

    def before_step(self, network: nn.Module, context: AuxiliaryContext) -> None:
        assert isinstance(network, AheadNetwork)
        if network.followed is not None:
            network.followed.move(context.next_blocks, self.momentum)

    def loss(self, outputs: Any, targets: Tensor, context: AuxiliaryContext) -> Tensor:
        return self.base.loss(outputs, targets, context)

    def logits(self, outputs: Any, context: AuxiliaryContext) -> Tensor | None:
        return self.base.logits(outputs, context)


def _whole(features: Tensor, patches: int) -> Tensor:
    return features


def _method(base: str | Mapping[str, Any] | Method) -> Method:
    """The method behind, by what a setting says."""
    if isinstance(base, Mapping) and isinstance(base.get("name"), str):
        made = registry.create(base["name"], **{k: v for k, v in base.items() if k != "name"})
    elif isinstance(base, Method | str):
        made = registry.create(base)
    else:
        raise UserError(f"man: base is {base!r}; expected a name, or a name and its settings")
    if not made.local or isinstance(made, MAN):
        raise UserError(f"man: base is {registry.name_of(made)!r}; expected another local method")
    return made


def _output_shape(blocks: nn.Module, context: AuxiliaryContext) -> tuple[int, ...]:
    """What the blocks make of features, the batch left out."""
    try:
        output = output_of(blocks, context.features)
    except DO_NOT_RUN as error:
        raise _cannot(context, f"fails on them ({type(error).__name__})") from error
    if not isinstance(output, Tensor) or output.ndim != len(context.features) + 1:
        raise _cannot(context, "gives something else")
    return tuple(output.shape[1:])


def _cannot(context: AuxiliaryContext, why: str) -> UserError:
    return UserError(
        f"man: a copy of the block after module {context.module} does not run on that module's "
        f"features, a {context.kind} {tuple(context.features)} alone: it {why}; use auglocal, dgl "
        "or predsim, or cut elsewhere"
    )
