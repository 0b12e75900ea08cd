"""One step through a part of a model: its other modules are at work on other devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpff.cutting.local_modules import LocalModule
from hpff.cutting.part import Part, PartEnd
from hpff.engine.schedule import Step
from hpff.engine.step import HookedStep
from hpff.errors import UserError
from hpff.torch_support.model_io import outputs_of, tensors_in


@dataclass(frozen=True)
class PartialLosses:
    """What one step gives on one device. All tensors are detached; losses are unweighted scalars.

    Attributes:
        independent: by module (from 1), of the modules that are there.
        cascade: by the module where the cascade ends, of those that end there.
        final: the loss of the network's own output; None where the last module is elsewhere.
        logits: (B, num_classes), the network's own output; None likewise.
    """

    independent: dict[int, Tensor]
    cascade: dict[int, Tensor]
    final: Tensor | None
    logits: Tensor | None


class PartialStep(HookedStep):
    """One step through a part of a model's own forward.

    After ``run_part`` the modules at the end of the part that later cascades train still hold
    their graphs: ``carry_on`` takes these cascades' cotangents, in the order of their ends.

    Args:
        part: the modules.
        enter: gives the leaf's content that the part begins from.
        before: called with j before module j runs.
        on_crossing: called with the end of a cascade that trains modules before the part, and the
            gradient at the part's start.
        given: see :class:`~hpff.engine.step.HookedStep`.
    """

    def __init__(
        self,
        *given: Any,
        part: Part,
        enter: Callable[[], Tensor],
        before: Callable[[int], None],
        on_crossing: Callable[[int, Tensor], None],
        **named: Any,
    ) -> None:
        super().__init__(*given, **named)
        self._part = part
        self._receive = enter
        self._before = before
        self._on_crossing = on_crossing
        self._rest: Step | None = None
        self._logits: Tensor | None = None  # type: ignore[assignment]  # elsewhere, perhaps

    def run_part(
        self,
        inputs: Any,
        targets: Tensor,
        scale: float | Tensor,
        on_done: Callable[[int], None],
    ) -> tuple[PartialLosses, Tensor | None]:
        """The part's forward, with local work at every cut.

        Args:
            inputs: what the whole model takes.
            targets: what the losses compare with.
            scale: factor of every gradient.
            on_done: called with j when the gradients of module j are final, perhaps in
                ``carry_on``.

        Returns:
            The losses, and the detached output where the part ends, if modules follow.
        """
        self._output: Tensor | None = None
        self._run(inputs, targets, scale, on_done)
        losses = PartialLosses(
            independent={j: x for (level, j), x in self._losses.items() if level == "independent"},
            cascade={j: x for (level, j), x in self._losses.items() if level == "cascade"},
            final=self._losses.get(("final", len(self._partition))),
            logits=self._logits,
        )
        output, self._output = self._output, None
        return losses, output

    def carry_on(self, end: int, cotangent: Tensor) -> None:
        """Carry a cascade's cotangent through this part: the gradient at its end."""
        assert self._rest is not None
        with torch.enable_grad():
            self._rest.carry_on(end, cotangent)

    def forget(self) -> None:
        """No cotangent comes any more: let go of everything."""
        self._rest = None

    def _own(self) -> Sequence[LocalModule]:
        return self._partition.modules[self._part.first - 1 : self._part.last]

    def _schedule(self, **part: Any) -> Step:
        first, crossing = self._part.first, self._on_crossing
        self._rest = super()._schedule(first=first, on_crossing=crossing, **part)
        return self._rest

    def _forward(self, inputs: Any) -> None:
        self._next = self._part.first - 1
        if self._part.is_first:
            self._before(1)
            self._record(next((tensor for _, tensor in tensors_in(inputs)), None))
        output = self._part.run(self._model, inputs, self._enter)
        if self._part.is_last:
            self._finish(outputs_of(output))
        elif self._output is None:
            raise UserError(
                f"submodule {self._partition[self._part.last - 1].cut!r} did not run in this step: "
                "the model does not run as it did on the example"
            )

    def _enter(self) -> Tensor:
        """What the model goes on with where the part begins."""
        self._before(self._part.first)
        carried = self._reach.carried_through[self._part.first - 1]
        self._start = self._receive().requires_grad_(carried)
        self._record(self._start)
        return self._next_input(overwritten=self._partition[self._part.first - 2].overwritten)

    def _go_on(self, module: LocalModule, returned: Any, output: Tensor) -> Any:
        if module.index == self._part.last:
            self._output = self._start.detach()
            raise PartEnd(self._output)
        self._before(module.index + 1)
        return super()._go_on(module, returned, output)
