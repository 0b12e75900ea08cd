"""What `hpff plan`, `hpff bench` and `hpff fit` are told of a workload."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from hpff import models
from hpff.engine.reach import Cascade
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError, did_you_mean
from hpff.memory import Strategy, Workload, default_strategies, first_strategies
from hpff.presets import PRESETS
from hpff.settings import LIGHT, LocalSettings


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """What the command line said of a workload."""

    model: str
    batch: int
    image: str | None
    num_classes: int
    optimizer: str
    precision: str
    step_per_module: bool
    light: bool

    def workload(self) -> Workload:
        """The workload.

        Raises:
            UserError: a text does not say what it should.
        """
        return Workload(
            model=_model(self.model),
            image=_image(self.image, self.model),
            num_classes=self.num_classes,
            optimizer=self.optimizer,
            precision=self.precision,  # type: ignore[arg-type]
            step_per_module=self.step_per_module,
        )


@dataclass(frozen=True, kw_only=True)
class RowOptions(WorkloadOptions):
    """What it said of a workload's cut too, and of the rows of a table."""

    modules: str | None
    balance: str
    methods: str | None
    cascade: str
    patches: int
    recompute: str | None
    recompute_budget: float
    streams: int

    def workload(self) -> Workload:
        """The workload, with its cut.

        Raises:
            UserError: a text does not say what it should.
        """
        return replace(
            super().workload(),
            modules=None if self.modules is None else _modules(self.modules),
            balance=self.balance,  # type: ignore[arg-type]
        )

    def strategies(self, *, first: bool = False) -> list[Strategy]:
        """Backprop, with and without checkpointing, and the methods that were chosen.

        Args:
            first: where nothing was chosen, only what one wants to see first.
        """
        found = [self._as_asked(strategy) for strategy in self._chosen(first=first)]
        self._check_budget(found)
        return found

    def words(self) -> list[str]:
        """The arguments of a command line that say the same."""
        words = [self.model]
        for name, value in vars(self).items():
            option = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [option] if value else []
            elif name != "model" and value is not None:
                words += [option, str(value)]
        return words

    def one_strategy(self) -> Strategy:
        """The one method that was chosen, by default dgl, with k and n.

        Raises:
            UserError: several were chosen, or several ways to recompute.
        """
        ways = _recompute(self.recompute)
        if "," in (self.methods or "") or self.methods == "all" or len(ways) > 1:
            raise UserError(
                "--ranks: several ranks train by one method and one way to recompute; give one of "
                "each to --methods and --recompute"
            )
        name = self.methods or "dgl"
        if name in PRESETS:
            found = Strategy(LocalSettings(**PRESETS[name]))
        else:
            make = Strategy.labeled if "+" in name else Strategy.of
            found = make(name, _cascade(self.cascade), self.patches)
        found = self._as_asked(found.with_settings(recompute=ways[0]) if ways else found)
        self._check_budget([found])
        return found

    def _as_asked(self, strategy: Strategy) -> Strategy:
        """With a budget for blocks, light auxiliary networks and streams, if asked for."""
        if strategy.settings.recompute == "blocks":
            strategy = strategy.with_settings(recompute_budget=self.recompute_budget)
        if strategy.settings.is_backprop:
            return strategy
        return strategy.with_settings(streams=self.streams, **(LIGHT if self.light else {}))

    def _check_budget(self, found: Sequence[Strategy]) -> None:
        by_blocks = any(strategy.settings.recompute == "blocks" for strategy in found)
        if self.recompute_budget != 1 and not by_blocks:
            raise UserError(
                f"--recompute-budget: is {self.recompute_budget:g}, but no row is recomputed by "
                "blocks; give --recompute blocks"
            )

    def _chosen(self, *, first: bool) -> list[Strategy]:
        k, n = _cascade(self.cascade), self.patches
        if first and self.methods is None and self.recompute is None:
            return first_strategies(cascade=k, patches=n)
        chosen: Sequence[str] | None = ["dgl"] if first else None
        if self.methods is not None:
            chosen = None if self.methods == "all" else _split(self.methods, "--methods")
        return default_strategies(
            chosen, cascade=k, patches=n, recompute=_recompute(self.recompute)
        )


def described(workload: Workload, batch: int, modules: int) -> str:
    """A workload in a few words."""
    shape = "×".join(map(str, workload.image))
    return (
        f"{workload.model_name}, {modules} modules, batch {batch} of {shape}, "
        f"{workload.precision}, {workload.optimizer}"
    )


def _split(text: str, option: str) -> Sequence[str]:
    """Different words with commas between."""
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise UserError(f"{option}: is {text!r}, expected different words with commas between")
    return words


def _modules(text: str) -> int | tuple[str, ...]:
    if text.isdecimal() and len(text) < 10:
        return int(text)
    return tuple(_split(text, "--modules"))


def _cascade(text: str) -> Cascade:
    if text == "auto":
        return "auto"
    if text.isdecimal() and len(text) < 10:
        return int(text)
    raise UserError(f"--cascade: is {text!r}, expected a whole number of at least 1, or auto")


def _recompute(text: str | None) -> list[Recompute]:
    words = [] if text is None else _split(text, "--recompute")
    known = ("blocks", "once", "repeatedly")
    wrong = [word for word in words if word not in known]
    if wrong:
        raise UserError(
            f"--recompute: is {text!r}, expected blocks, once, repeatedly, or several with commas "
            f"between{did_you_mean(wrong[0], known)}"
        )
    return list(words)  # type: ignore[arg-type]


def _model(text: str) -> str | Callable[[], nn.Module]:
    """A model's name, or the function that ``MODULE:FUNCTION`` names.

    Raises:
        UserError: what is named is not there; the module must have been imported by `--import`.
    """
    module, colon, name = text.partition(":")
    if not colon:
        return text
    if module not in sys.modules:
        raise UserError(f"model {text!r}: no module {module!r} is imported, add --import {module}")
    found = getattr(sys.modules[module], name, None)
    if not callable(found):
        raise UserError(f"model {text!r}: {module!r} has no function {name!r} that makes a model")
    return found  # type: ignore[no-any-return]


def _image(text: str | None, model: str) -> tuple[int, ...]:
    """An image's C, H, W: as given, or as the model was made for.

    Raises:
        UserError: the text is no such sizes, or only the user can know them.
    """
    if text is None and ":" in model:
        raise UserError(f"model {model!r}: say what it takes, --image C,H,W such as 3,224,224")
    if text is None:
        return models.image_size(model)
    words = text.split(",")
    if len(words) != 3 or not all(word.strip().isdecimal() and len(word) < 8 for word in words):
        raise UserError(
            f"--image: is {text!r}, expected channels, height and width such as 3,32,32"
        )
    return tuple(int(word) for word in words)
