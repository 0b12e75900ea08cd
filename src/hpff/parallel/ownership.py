"""What of a learner belongs to which of its modules: parameters, buffers, entries of its state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpff.errors import UserError
from hpff.learner import LocalLearner
from hpff.parallel.groups import rank_of

_AUXILIARY = ("independent_auxiliary.", "cascade_auxiliary.")


class Ownership:
    """Whose each entry of a learner's ``state_dict`` is.

    Args:
        learner: the whole.
        buffers: for each buffer of the model the modules that may change it.
    """

    def __init__(self, learner: LocalLearner, buffers: Mapping[str, set[int]]) -> None:
        self._learner = learner
        self._by_parameter = {
            parameter: j
            for j, parameters in enumerate(learner.module_parameters, start=1)
            for parameter in parameters
        }
        self._users = self._parameter_users()
        self._buffers = buffers
        self.modules = {
            name: self._module_of(name, value)
            for name, value in learner.state_dict(keep_vars=True).items()
        }

    def check(self, sizes: Sequence[int]) -> None:
        """Refuse what modules of two ranks would change.

        Raises:
            UserError: there is such a parameter or buffer.
        """
        for name, users in (*self._users.items(), *self._buffers.items()):
            if len({rank_of(sizes, j) for j in users}) > 1:
                listed = ", ".join(map(str, sorted(users)))
                raise UserError(
                    f"{name} is shared by modules {listed}, which would be on different ranks; "
                    "untie it, cut elsewhere, or use parallel=data"
                )

    def waits_for(self) -> list[int]:
        """For each module the last cascade's end that must be done before it runs again.

        That is its own, and that of the modules that step a parameter which it shares.
        """
        last_use = list(self._learner.reach.last_use)
        needed = list(last_use)
        for users in self._users.values():
            latest = max(last_use[j - 1] for j in users)
            for j in users:
                needed[j - 1] = max(needed[j - 1], latest)
        return needed

    def keep(self, first: int, last: int, device: torch.device) -> None:
        """Put what these modules own on the device, and let go of the content of all else."""
        own = range(first, last + 1)
        for parameter, j in self._by_parameter.items():
            if j in own:
                parameter.data = parameter.data.to(device)
            else:
                parameter.data = _hollow(parameter, device)
        for module in self._learner.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = buffer.to(device)

    def names(self, first: int, last: int) -> list[str]:
        """Of the entries of the ``state_dict`` that these modules own."""
        own = range(first, last + 1)
        return [name for name, j in self.modules.items() if j in own]

    def state(self, first: int, last: int) -> dict[str, Tensor]:
        """The entries of the ``state_dict`` that these modules own, on the CPU."""
        state = self._learner.state_dict()
        return {name: state[name].cpu() for name in self.names(first, last)}

    def load(self, state: Mapping[str, Tensor], first: int, last: int) -> None:
        """Take these modules' entries from a whole state.

        Raises:
            UserError: one is missing, or of another shape.
        """
        mine = self._learner.state_dict()
        for name in self.names(first, last):
            if name not in state or state[name].shape != mine[name].shape:
                raise UserError(f"the state has no {name} of this learner's shape")
            mine[name].copy_(state[name])

    def _module_of(self, name: str, value: Tensor) -> int:
        if isinstance(value, nn.Parameter):
            return self._by_parameter[value]
        for level in _AUXILIARY:
            if name.startswith(level):
                return int(name.removeprefix(level).partition(".")[0])
        return min(self._buffers.get(name.removeprefix("model."), {1}))

    def _parameter_users(self) -> dict[str, set[int]]:
        users: dict[str, set[int]] = {}
        for module in self._learner.partition:
            for name in module.parameter_names:
                users.setdefault(name, set()).add(module.index)
        return users


def _hollow(parameter: Tensor, device: torch.device) -> Tensor:
    """A tensor of this shape that takes no memory; what is computed from it shows (NaN)."""
    content = math.nan if parameter.is_floating_point() else 0
    return torch.full((), content, dtype=parameter.dtype, device=device).expand(parameter.shape)
