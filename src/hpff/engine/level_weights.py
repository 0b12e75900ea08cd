"""How much each level's loss weighs: for the modules it trains, and for its own networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "own head": of an auxiliary head that the model itself has, whose loss is a part of the final one
Level = Literal["independent", "cascade", "final", "own head"]
AuxiliaryWeight = float | Literal["level"]


@dataclass(frozen=True)
class LevelWeights:
    """The weights of a step's losses.

    Attributes:
        independent, cascade: η of the update rule, 0 where the level is off.
        auxiliary: of a loss for the auxiliary network that gives it; "level": its level's.
    """

    independent: float
    cascade: float
    auxiliary: AuxiliaryWeight

    def for_modules(self, level: Level) -> float:
        """A loss's weight for the modules it trains; the final loss stands for both levels."""
        if level in ("final", "own head"):
            return self.independent + self.cascade
        return self.cascade if level == "cascade" else self.independent

    def for_network(self, level: Level) -> float:
        """A loss's weight for what gives it: an auxiliary network, or the model's own head."""
        if level in ("final", "own head") or self.auxiliary == "level":
            return self.for_modules(level)
        return self.auxiliary
