"""SGD or AdamW over local modules: a step each as soon as a module is done, or one for all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from hpff.recipes.recipe import OptimizerRecipe
from hpff.runs.checkpoint_content import misfit


class ModuleOptimizers:
    """The optimizers of a run.

    With `per_module`, `module_done(j)` (j from 1) steps module j and frees its gradients, and
    `step()` has nothing left to do; without, `step()` steps all. Both give the same weights.
    Usage: `zero_grad()`, `learner.backward(..., on_module_done=optimizers.module_done)`, `step()`.

    Args:
        module_parameters: of each module.
        settings: of the optimizer.
        per_module: whether each module has an optimizer.
        rate_on: a device to hold the learning rate, so that a step can be replayed with another;
            None: each step is told it.
    """

    def __init__(
        self,
        module_parameters: Sequence[Sequence[Parameter]],
        settings: OptimizerRecipe,
        *,
        per_module: bool = True,
        rate_on: torch.device | None = None,
    ) -> None:
        everything = [parameter for module in module_parameters for parameter in module]
        groups = module_parameters if per_module else [everything]
        self.per_module = per_module
        self._settings = settings
        self._optimizers = [_optimizer(group, settings) for group in groups]
        self._rate: torch.Tensor | None = None
        if rate_on is not None:
            self._rate = torch.tensor(settings.lr, dtype=torch.float32, device=rate_on)
            self._hold_rate()

    def another(self, parameters: Sequence[Parameter]) -> torch.optim.Optimizer:
        """One of the same settings, of other parameters."""
        return _optimizer(parameters, self._settings)

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
        if self._rate is not None:
            self._rate.fill_(rate)
            return
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _hold_rate(self) -> None:
        """Let every optimizer read its rate where it is held, and do its step in one launch."""
        for optimizer in self._optimizers:
            # A few steps run without being recorded, which torch would warn of.
            vars(optimizer)["_warned_capturable_if_run_uncaptured"] = True
            for group in optimizer.param_groups:
                group.update(_replayable(group), lr=self._rate)

    def state_tensors(self) -> list[torch.Tensor]:
        """The momentum buffers that exist by now."""
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        tensors = [value for state in states for value in state.values()]
        return [value for value in tensors if isinstance(value, torch.Tensor)]

    def state_dict(self) -> list[dict[str, Any]]:
        """One state for each optimizer."""
        states = [optimizer.state_dict() for optimizer in self._optimizers]
        if self._rate is not None:
            told = {"lr": self._rate.item(), "fused": None, "foreach": None}
            for group in (group for state in states for group in state["param_groups"]):
                group.update(told, **({"capturable": False} if "capturable" in group else {}))
        return states

    def load_state_dict(
        self, states: list[dict[str, Any]], *, modules: Collection[int] | None = None
    ) -> None:
        """Take back what `state_dict` gave, or of that only some modules' (from 1).

        Raises:
            ValueError: it is of other optimizers, or not sound.
        """
        if len(states) != len(self._optimizers):
            raise ValueError(
                f"{len(states)} optimizer states for {len(self._optimizers)} optimizers"
            )
        pairs = zip(self._optimizers, self.state_dict(), states, strict=True)
        for j, (optimizer, ours, state) in enumerate(pairs, start=1):
            if modules is not None and j not in modules:
                continue
            _check_settings(ours["param_groups"], state["param_groups"])
            for group in optimizer.param_groups:
                _check_state(optimizer, group["params"], state["state"])
            if self._rate is not None:  # or torch leaves AdamW's count of steps on the CPU
                groups = [{**group, **_replayable(group)} for group in state["param_groups"]]
                state = {**state, "param_groups": groups}  # noqa: PLW2901
            optimizer.load_state_dict(state)
        if self._rate is not None:
            self._hold_rate()


def _replayable(group: dict[str, Any]) -> dict[str, bool]:
    """What a group must say so that its step can be recorded."""
    capturable = {"capturable": True} if "capturable" in group else {}
    return {"fused": True, "foreach": False, **capturable}


def _check_settings(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Raise ValueError unless both are the same but for the rate, which each epoch sets."""
    without_rate = [[{**group, "lr": None} for group in groups] for groups in (ours, theirs)]
    if without_rate[0] != without_rate[1]:
        raise ValueError("an optimizer's settings are others")


def _check_state(
    optimizer: torch.optim.Optimizer, parameters: list[Parameter], state: dict[int, dict[str, Any]]
) -> None:
    """Raise ValueError for the state of an unknown parameter, or one that does not fit its own."""
    if not state.keys() <= set(range(len(parameters))):
        raise ValueError("an optimizer's state is of other parameters")
    names = _ADAMW if isinstance(optimizer, torch.optim.AdamW) else _SGD
    for index, found in state.items():
        parameter = parameters[index].detach()
        expected = {name: torch.zeros(()) if name == "step" else parameter for name in names}
        wrong = misfit(found, expected)
        if wrong or any(found[name].min() < 0 for name in names & _NOT_NEGATIVE):
            raise ValueError(f"an optimizer's state: {wrong or 'a number is below 0'}")


_SGD = {"momentum_buffer"}
_ADAMW = {"step", "exp_avg", "exp_avg_sq"}
_NOT_NEGATIVE = {"step", "exp_avg_sq"}


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
