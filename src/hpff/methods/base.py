"""What a method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from hpff.errors import UserError
from hpff.methods.tasks import Criterion


@dataclass(frozen=True)
class AuxiliaryContext:
    """Where an auxiliary network sits.

    Attributes:
        module: j, the module at whose output it sits, from 1.
        modules: K.
        level: ``"independent"`` or ``"cascade"``.
        features: shape of one feature as the network sees it, the batch left out; under PFF
            that of one patch. Maps and tokens are seen as (C, H, W), the others as (D,).
        image: shape of the part of the image that belongs to it, the batch left out; empty where
            the model's first input is no image, or where features have no place in it.
        following: what would be seen of the blocks that come after, in order.
        num_classes: of the task.
        patches: n in force here.
        criterion: the task's loss, ``criterion(logits, targets)`` -> scalar. In a dense task it
            takes logits (B, num_classes, h, w) of any resolution.
        kind: of the features: ``"map"``, ``"tokens"``, ``"sequence"`` or ``"vector"``.
        preceding: how many of the network's units (its stem and its blocks) come before the one
            whose output is judged.
        width: how many channels of features an auxiliary network sees at most (``features`` and
            ``following`` say so already); its own hidden maps should be no wider. None: any.
        dense: whether each place of the features has a target of its own.
        next_blocks: the model's own blocks that come after, in order. Their weights move with every
            step. A network that holds one of them as its submodule would train it: hold a copy, or
            read them in :meth:`Method.before_step`. Empty where features are narrowed (``width``).
    """

    module: int
    modules: int
    level: str
    features: tuple[int, ...]
    image: tuple[int, ...]
    following: tuple[tuple[int, ...], ...]
    num_classes: int
    patches: int
    criterion: Criterion
    kind: str = "map"
    preceding: int = 0
    width: int | None = None
    dense: bool = False
    next_blocks: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)


class Method(ABC):
    """What one auxiliary network is, and its loss. Subclass it, and pass an instance as ``method``.

    A method says nothing of levels, cascades or patches: the learner puts its networks where
    they belong, and PFF averages their outputs.
    """

    local: ClassVar[bool] = True
    needs_images: bool = False
    dense: bool = False
    """Whether it has auxiliary networks for dense tasks, where each place has a target."""

    @classmethod
    def published(cls, network: str, data: str, modules: int) -> dict[str, Any]:
        """The settings that were published for a network, a data set and K; often none.

        Recipes take them where they give no value of their own.

        Args:
            network: a model's name without its library: ``"resnet110"``.
            data: a data set's name; for one given by a path, its folder's.
            modules: K.
        """
        return {}

    def read(self, features: Tensor, patches: int) -> Tensor:
        """What of maps the auxiliary networks see; features without a grid are seen whole.

        All networks at one place share it. It has no parameters and leaves patches apart: reading
        the whole and then cutting it gives what reading each patch would. The channels stay. In a
        dense task it is left out.

        Args:
            features: (B, C, H, W), n×n patches in each.
            patches: n.
        """
        return features

    @abstractmethod
    def auxiliary(self, context: AuxiliaryContext) -> nn.Module:
        """A new auxiliary network for features that look as ``context`` says.

        Its forward takes the features, and where the method ``needs_images`` the part of the
        images that belongs to them too. It returns a tensor, or a tuple or dict of tensors, the
        batch first: PFF averages them over patches. In a dense task (``context.dense``) it takes
        maps, and what it returns as maps (B, C, h, w) PFF puts side by side.
        """

    def before_step(self, network: nn.Module, context: AuxiliaryContext) -> None:  # noqa: B027
        """Called at the start of each training step with each auxiliary network; often nothing.

        For what moves without a gradient (a moving average of ``context.next_blocks``). What it
        changes should be buffers of the network.
        """

    def loss(self, outputs: Any, targets: Tensor, context: AuxiliaryContext) -> Tensor:
        """The loss (a scalar) of an auxiliary network's fused outputs."""
        return context.criterion(outputs, targets)

    def logits(self, outputs: Any, context: AuxiliaryContext) -> Tensor | None:
        """The class scores (B, num_classes) among a network's fused outputs; None: it has none.

        By them an auxiliary network is an early exit. By default those under ``"logits"``, or an
        output that is one tensor.
        """
        scores = outputs.get("logits") if isinstance(outputs, Mapping) else outputs
        fits = isinstance(scores, Tensor) and scores.shape[1:] == (context.num_classes,)
        return scores if fits else None


def check_indices(method: str, targets: Tensor) -> None:
    """Raise UserError where targets are not class indices (B,), which ``method`` compares."""
    if targets.ndim != 1 or targets.is_floating_point():
        kind = str(targets.dtype).removeprefix("torch.")
        raise UserError(
            f"{method}: the targets are {kind} of shape {tuple(targets.shape)}; expected class "
            "indices (B,)"
        )
