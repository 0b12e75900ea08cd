"""An optimizer's step under fake tensors: parameters that look alike are stepped once.

An optimizer that steps its parameters one after the other makes the same temporaries for all that
look alike, and has let go of them when the next but one takes its turn. So what comes and goes in
a turn follows from how the parameter looks, and the one before it, and the one after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from hpff.engine.phase import Phase
from hpff.memory.ledger import Ledger, Piece


class Turn(NamedTuple):
    """What comes and goes from a parameter's first temporary to the next parameter's.

    Attributes:
        events: each a birth's place, or its complement for the death; the first ``before`` births
            are of the parameter before.
        before: how many.
        sizes: bytes of this parameter's births, in order.
    """

    events: tuple[int, ...]
    before: int
    sizes: tuple[int, ...]


def fill_states(optimizer: Optimizer) -> None:
    """Give parameters the state that a first step makes, by a step of those unlike each other."""
    parameters = _stepped(optimizer)
    kinds = {_kind(parameter): parameter for parameter in parameters}
    _step(optimizer, list(kinds.values()))
    for parameter in parameters:
        like = kinds[_kind(parameter)]
        if parameter is not like and like in optimizer.state:
            optimizer.state[parameter] = {
                name: value.clone() if isinstance(value, Tensor) else value
                for name, value in optimizer.state[like].items()
            }


@dataclass
class OptimizerRepeats:
    """Takes optimizers' steps under fake tensors, or repeats them in the ledger.

    Args:
        ledger: of the step that is rehearsed.
    """

    ledger: Ledger
    _births: dict[Any, int] = field(default_factory=dict)
    _turns: dict[Any, Turn | None] = field(default_factory=dict)

    def __call__(self, optimizer: Optimizer) -> None:
        """Take the optimizer's step."""
        turns = self._all_turns(optimizer)
        if None in turns:
            optimizer.step()
            return
        for turn in turns:
            assert turn is not None
            self.ledger.take_turn(turn.events, turn.before, turn.sizes)

    def _all_turns(self, optimizer: Optimizer) -> list[Turn | None]:
        parameters = _stepped(optimizer)
        kinds = [None, *map(_kind, parameters), None]
        turns = []
        with self.ledger.looking_away():
            for place, key in enumerate(zip(kinds, kinds[1:], kinds[2:], strict=False)):
                if key not in self._turns:
                    near = parameters[max(0, place - 1) : place + 2]
                    self._turns[key] = self._watched(optimizer, near, min(place, 1))
                turns.append(self._turns[key])
        return turns

    def _watched(self, optimizer: Optimizer, near: Sequence[Tensor], which: int) -> Turn | None:
        """The turn of one among neighbors; None if they do not take turns."""
        made = [self._births_of(optimizer, parameter) for parameter in near]
        piece = _seen(optimizer, near)
        if len(set(made)) > 1 or sum(made) != len(piece.births):
            return None
        starts = [0, *accumulate(made)]
        before, first, end = starts[max(0, which - 1)], starts[which], starts[which + 1]
        if first == end:
            return Turn((), 0, ())
        stop = piece.events.index(end) if end < starts[-1] else len(piece.events)
        events = piece.events[piece.events.index(first) : stop]
        if any(event < 0 and ~event < before for event in events):
            return None
        return Turn(
            tuple(event - before if event >= 0 else event + before for event in events),
            first - before,
            tuple(size for _, size in piece.births[first:end]),
        )

    def _births_of(self, optimizer: Optimizer, parameter: Tensor) -> int:
        kind = _kind(parameter)
        if kind not in self._births:
            self._births[kind] = len(_seen(optimizer, [parameter]).births)
        return self._births[kind]


def _seen(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Piece:
    """What comes and goes while these parameters are stepped."""
    ledger = Ledger(Phase())
    with ledger:
        for parameter in parameters:
            state = optimizer.state[parameter].values()
            ledger.track(t for t in (parameter, parameter.grad, *state) if isinstance(t, Tensor))
        mark = ledger.mark()
        _step(optimizer, parameters)
        return ledger.piece_since(mark)


def _step(optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
    """Step some of an optimizer's parameters."""
    (group,) = optimizer.param_groups
    everything, group["params"] = group["params"], list(parameters)
    try:
        optimizer.step()
    finally:
        group["params"] = everything


def _stepped(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _kind(parameter: Tensor) -> Any:
    gradient = parameter.grad
    assert gradient is not None
    return parameter.dtype, parameter.shape, parameter.stride(), gradient.dtype, gradient.stride()
