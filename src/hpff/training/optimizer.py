"""SGD or AdamW over local modules: a step each as soon as a module is done, or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from hpff.recipes.recipe import OptimizerRecipe


class ModuleOptimizers:
    """The optimizers of a run.

    With `per_module`, `module_done(j)` (j from 1) steps module j and frees its gradients, and
    `step()` has nothing left to do; without, `step()` steps all. Both give the same weights.
    Usage: `zero_grad()`, `learner.backward(..., on_module_done=optimizers.module_done)`, `step()`.
    """

    def __init__(
        self,
        module_parameters: Sequence[Sequence[Parameter]],
        settings: OptimizerRecipe,
        *,
        per_module: bool = True,
    ) -> None:
        everything = [parameter for module in module_parameters for parameter in module]
        groups = module_parameters if per_module else [everything]
        self.per_module = per_module
        self._optimizers = [_optimizer(group, settings) for group in groups]

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)

    def module_done(self, module: int) -> None:
        """Module `module` (from 1) has its final gradients."""
        if self.per_module:
            self._optimizers[module - 1].step()
            self._optimizers[module - 1].zero_grad(set_to_none=True)

    def step(self) -> None:
        """Step whatever `module_done` has not stepped, and free its gradients."""
        if not self.per_module:
            self._optimizers[0].step()
            self.zero_grad()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of every module."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def state_tensors(self) -> list[torch.Tensor]:
        """The momentum buffers that exist by now."""
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        tensors = [value for state in states for value in state.values()]
        return [value for value in tensors if isinstance(value, torch.Tensor)]

    def state_dict(self) -> list[dict[str, Any]]:
        """One state for each optimizer."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take back what `state_dict` gave; raises ValueError if it is of other modules."""
        if len(states) != len(self._optimizers):
            raise ValueError(
                f"{len(states)} optimizer states for {len(self._optimizers)} optimizers"
            )
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def _optimizer(parameters: Sequence[Parameter], settings: OptimizerRecipe) -> torch.optim.Optimizer:
    groups = [{"params": list(parameters)}]  # A group may be empty (a frozen module), a list not.
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
