"""The settings of local learning: the one form that everything holds, which checks itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from typing import Any, Literal, NamedTuple

from hpff import methods, schema
from hpff.auxiliary.patches import PatchNorm
from hpff.cutting.balance import Balance
from hpff.engine.auxiliary_builder import PatchMode
from hpff.engine.level_weights import LevelWeights
from hpff.engine.recomputation import Recompute
from hpff.errors import UserError, did_you_mean
from hpff.methods import Method
from hpff.presets import PRESETS, PresetName, takes_preset
from hpff.schema import Component
from hpff.schema.rules import FactorFromOne, Patches, PositiveFloat, PositiveInt, Streams

# benchmarks/level_weights.md: what it ranks, and what it does not.
HILO_WEIGHTS = (0.1, 1.0)
BASELINE = "bp"
# Of auxiliary networks whose size does not grow with the network; see docs/performance.md.
LIGHT: Mapping[str, int] = {"auxiliary_width": 128, "auxiliary_pool": 2}
_DGL = Component("dgl")


class _Parts(NamedTuple):
    """What a label switches on."""

    independent: bool
    cascade: bool
    patches: bool


_SUFFIXES = {
    "": _Parts(independent=True, cascade=False, patches=False),
    "cl": _Parts(independent=False, cascade=True, patches=False),
    "hilo": _Parts(independent=True, cascade=True, patches=False),
    "pff": _Parts(independent=True, cascade=False, patches=True),
    "cl+pff": _Parts(independent=False, cascade=True, patches=True),
    "hpff": _Parts(independent=True, cascade=True, patches=True),
}


@dataclass(frozen=True)
class LocalSettings:
    """How a network is trained in local modules.

    Attributes:
        method: a method's name, ``{"name": ..., and its settings}``, or a
            :class:`~hpff.methods.Method`. "bp" is backprop: one module.
        modules: K, or the names of the submodules after which to cut; None: one for each block.
        balance: for a number K, how to share out the model's blocks: "blocks" (as published, or
            evenly), "parameters" or "memory" (what a module saves for its backward): see
            :func:`hpff.cutting.partition.partition`.
        cascade: k, how many modules a cascade trains; 1 turns the cascade level off. "auto": as
            many at each module as fit into the memory that k = 2 needs at the widest modules (see
            :func:`hpff.engine.reach.within`). Or a list: for each module the length of the
            cascade that ends there, 1 for none.
        cascade_budget: of "auto": how many times that memory may be used.
        cascade_stride: of a number k: how many modules further up the next cascade ends, at most k
            without the independent level. 1, as published, slides by one module; k - 1 lets
            cascades share one module with the next, so that a long reach costs no time, and
            memory only where nothing is recomputed. The last cascade ends at the last module.
        independent: False turns the independent level off.
        patches: n, at most 64; 1 turns PFF off. Where n×n patches do not fit a map, n is the
            largest below that divides its sides. Sequences are cut into n pieces.
        smallest_patch: n falls where the sides of patches would be smaller, in positions of the
            map (pieces of a sequence: shorter, on the example). The default, 2, never lowers the
            n of the published experiments; 1 allows patches of a single position.
        patch_mode: "together" (all patches in one batch), "one-by-one" (the graph of one patch at
            a time), or "auto": one by one only where all patches together would take more memory
            than the step takes without patches.
        patch_norm: whether BatchNorms of auxiliary networks normalize each patch position "apart",
            as the published code does, or all patches "together", which they must be for it.
        independent_weight, cascade_weight: the levels' weights (the update rule's η, as factors of
            the optimizer's rate). By default 1 where only one level is on, otherwise
            ``HILO_WEIGHTS``.
        auxiliary_weight: factor of the optimizer's rate for the auxiliary networks themselves; the
            update rule has η at the modules alone. "level": the weight of their level.
        auxiliary_width: how many channels of features auxiliary networks see at most: a learned
            linear map stands before those that would see more, and they are built for so many.
            None: all, as published. At the end of a ResNet-101's third stage DGL's network has
            41 million weights, and with 128 channels 1.
        auxiliary_pool: by which factor maps, and images that a method compares them with, are
            average-pooled before it reads them, or the largest below that divides a patch's sides.
            1: not at all, as published.
        recompute: instead of keeping modules' graphs, recompute them in the backwards, tensor by
            tensor, bit for bit the same: "once", "blocks" or "repeatedly", from more memory to
            less; see :mod:`hpff.engine.recomputation`. With backprop, which is one module,
            "once" is "never", and "blocks" takes the least. Of what is compiled only backprop, by
            "blocks".
        recompute_budget: of "blocks": about how many times the least memory of a step may be used,
            to recompute less; parameters, gradients and the optimizer's states are left out.
        streams: on a CUDA device, how many streams take the modules' work in turns, so that a
            module's local work runs beside the forward of those after it: the same numbers in less
            time and more memory. It pays where kernels are small, and the step is recorded as a
            CUDA graph; see :mod:`hpff.engine.streams`. 1: one after another, as elsewhere.
        preset: settings found by a study: "light" (the least memory), "balanced" or "accurate"
            (the most memory and time). What is given besides it wins; it is not kept, but
            the settings that it stands for are: see ``hpff.presets``.

    Raises:
        UserError: a value is out of its range; all that are, each with its name.
    """

    method: Component | Method = _DGL
    modules: PositiveInt | tuple[str, ...] | None = None
    balance: Balance = "blocks"
    cascade: PositiveInt | Literal["auto"] | tuple[PositiveInt, ...] = 2
    cascade_budget: FactorFromOne = 1.0
    cascade_stride: PositiveInt = 1
    independent: bool = True
    patches: Patches = 2
    smallest_patch: PositiveInt = 2
    patch_mode: PatchMode = "auto"
    patch_norm: PatchNorm = "apart"
    independent_weight: PositiveFloat | None = None
    cascade_weight: PositiveFloat | None = None
    auxiliary_weight: PositiveFloat | Literal["level"] = 1.0
    auxiliary_width: PositiveInt | None = None
    auxiliary_pool: Patches = 1
    recompute: Recompute = "never"
    recompute_budget: FactorFromOne = 1.0
    streams: Streams = 1
    preset: InitVar[PresetName | None] = None

    def __post_init__(self, preset: PresetName | None) -> None:  # `takes_preset` has taken it
        faults: dict[str, str] = {}
        values = schema.read(LocalSettings, vars(self), faults)
        if not faults:
            faults = dict(faults_between(values))
        if faults:
            raise UserError(*(f"{key}: {text}" for key, text in faults.items()))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_label(cls, label: str, **settings: Any) -> LocalSettings:
        """The settings that a label such as "dgl+hpff" stands for, and others besides it.

        Args:
            label: see :meth:`with_label`.
            settings: as for the class, such as ``modules=16``.
        """
        return cls(**settings).with_label(label)

    def with_label(self, label: str) -> LocalSettings:
        """These settings with a label's method, levels and patches.

        A preset's name is a label, for all that it sets. Others are "bp", which recomputes
        nothing, so that others are compared with what it usually takes; or a method's name
        alone (independent level only) or with "+cl" (cascade level only), "+hilo" (both), "+pff",
        "+cl+pff" or "+hpff" (both, and patches). k and n are these settings', or 2 where they
        have 1; "+hpff4" asks for n = 4. Level weights are kept only where both levels are on: a
        level alone has weight 1.

        Raises:
            UserError: the label is not one of these.
        """
        if label == BASELINE:
            return dataclasses.replace(self, method=Component(BASELINE), recompute="never")
        if label in PRESETS:
            return dataclasses.replace(self, **PRESETS[label])
        name, parts, patches = _parsed(label)
        cascade = max(self.cascade, 2) if isinstance(self.cascade, int) else self.cascade
        both = parts.independent and parts.cascade
        return dataclasses.replace(
            self,
            method=self.method if name == self.method_name else Component(name),
            independent=parts.independent,
            cascade=cascade if parts.cascade else 1,
            patches=(patches or max(self.patches, 2)) if parts.patches else 1,
            independent_weight=self.independent_weight if both else None,
            cascade_weight=self.cascade_weight if both else None,
        )

    def label(self) -> str:
        """The label: the method, and what is on besides its independent level."""
        if self.is_backprop:
            return BASELINE
        parts = _Parts(self.independent, self.has_cascades, self.patches > 1)
        suffix = next(suffix for suffix, known in _SUFFIXES.items() if known == parts)
        patches = str(self.patches) if self.patches > 2 else ""
        return f"{self.method_name}{'+' if suffix else ''}{suffix}{patches}"

    @property
    def method_name(self) -> str:
        """The method's name; of an object that has none, its class's in small letters."""
        if isinstance(self.method, Component):
            return self.method.name
        return methods.name_of(self.method)

    def preset_name(self) -> str | None:
        """The preset that says the same; None where none does.

        Recomputation counts for nothing here: it changes no bit of what is learned.
        """
        for name, values in PRESETS.items():
            wanted = LocalSettings(**values)
            keys = values.keys() - {"recompute"}
            if all(getattr(self, key) == getattr(wanted, key) for key in keys):
                return name
        return None

    @property
    def method_settings(self) -> Mapping[str, Any]:
        """What the method is set to by name; nothing of an object."""
        return self.method.settings if isinstance(self.method, Component) else {}

    @property
    def is_backprop(self) -> bool:
        """Whether the network is trained as a whole."""
        return self.method_name == BASELINE

    @property
    def module_count(self) -> int | None:
        """K; None where it is one for each block of a model."""
        return len(self.modules) + 1 if isinstance(self.modules, tuple) else self.modules

    @property
    def has_cascades(self) -> bool:
        """Whether the cascade level is on."""
        lengths = self.cascade if isinstance(self.cascade, tuple) else (self.cascade,)
        return any(length != 1 for length in lengths)

    def to_plain(self) -> dict[str, Any]:
        """Plain data, every key written out; a method that is an object is its name."""
        plain = dict(vars(self))
        method = self.method
        plain["method"] = method.to_plain() if isinstance(method, Component) else self.method_name
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}

    def create_method(self) -> Method:
        """The method, with its settings."""
        if isinstance(self.method, Component):
            return methods.create(self.method.name, **self.method.settings)
        return self.method

    def level_weights(self, *, cascades: bool) -> LevelWeights:
        """The weights in force: those given, or the defaults.

        Args:
            cascades: whether some cascade trains more than one module.
        """
        first, second = self.independent_weight, self.cascade_weight
        if self.is_backprop:
            return LevelWeights(1.0, 0.0, self.auxiliary_weight)
        defaults = HILO_WEIGHTS if self.independent and cascades else (1.0, 1.0)
        return LevelWeights(
            (defaults[0] if first is None else first) if self.independent else 0.0,
            (defaults[1] if second is None else second) if cascades else 0.0,
            self.auxiliary_weight,
        )


LocalSettings.__init__ = takes_preset(LocalSettings.__init__)  # type: ignore[method-assign]


def _parsed(label: str) -> tuple[str, _Parts, int]:
    """The method's name, what the label switches on, and its n, 0 for none."""
    name, plus, tail = label.partition("+")
    suffix = tail.rstrip("0123456789")
    number = tail.removeprefix(suffix)
    known = suffix in _SUFFIXES and bool(plus) == bool(tail)
    registered = [each for each, _ in methods.names()]
    if known and not plus and name not in registered:
        meant = did_you_mean(name, [*registered, *PRESETS]) or ","
        raise UserError(
            f"{label}: unknown method or preset{meant} expected {', '.join(registered)}, or a "
            f"preset ({', '.join(PRESETS)})"
        )
    bad_number = number != "" and (
        not suffix.endswith("pff") or number.startswith("0") or len(number) > 9
    )
    if not known or name in ("", BASELINE) or bad_number:
        names = ", ".join(f"METHOD+{known}" if known else "METHOD" for known in _SUFFIXES)
        raise UserError(
            f"{label}: unknown label, expected {BASELINE}, {names}, or a preset "
            f"({', '.join(PRESETS)}); n may follow pff and hpff (METHOD+hpff4)"
        )
    return name, _SUFFIXES[suffix], int(number or 0)


def faults_between(values: schema.Values) -> Iterator[tuple[str, str]]:
    """What valid values get wrong together: key and text; KeyError where one is missing."""
    if values["recompute_budget"] > 1 and values["recompute"] != "blocks":
        yield (
            "recompute_budget",
            (
                f"is {values['recompute_budget']:g} with recompute {values['recompute']}, expected "
                "1, or recompute blocks"
            ),
        )
    method = values["method"]
    if isinstance(method, Component):
        try:
            methods.create(method.name, **method.settings)
        except UserError as error:
            yield "method", str(error)
        if method.name == BASELINE:
            return
    if values["patch_norm"] == "together" and values["patch_mode"] == "one-by-one":
        yield "patch_norm", "is together with patch_mode one-by-one, expected patch_mode together"
    if values["streams"] > 1 and values["recompute"] == "repeatedly":
        yield (
            "streams",
            (
                f"is {values['streams']} with recompute repeatedly, which makes a module's output "
                "again; expected 1, or recompute blocks"
            ),
        )
    yield from _faults_of_levels(values)
    yield from _faults_of_lengths(values["modules"], values["cascade"])


def _faults_of_levels(values: schema.Values) -> Iterator[tuple[str, str]]:
    cascade, stride = values["cascade"], values["cascade_stride"]
    if not values["independent"] and cascade == 1:
        yield (
            "independent",
            (
                "is false with cascade 1, so nothing would train, expected independent true or "
                "cascade of at least 2"
            ),
        )
    if stride != 1 and not isinstance(cascade, int):
        yield "cascade_stride", f"is {stride}, expected 1 where cascade is no number k"
    elif isinstance(cascade, int) and 1 < cascade < stride and not values["independent"]:
        yield (
            "cascade_stride",
            f"is {stride}, expected at most cascade ({cascade}) without the independent level",
        )


def _faults_of_lengths(
    modules: int | tuple[str, ...] | None, cascade: int | Literal["auto"] | tuple[int, ...]
) -> Iterator[tuple[str, str]]:
    if modules is None or cascade == "auto":
        return
    count = modules if isinstance(modules, int) else len(modules) + 1
    if isinstance(cascade, tuple):
        if len(cascade) != count:
            yield "cascade", f"has {len(cascade)} lengths, expected one for each module ({count})"
    elif cascade > count:
        yield "cascade", f"is {cascade}, expected at most the number of modules ({count})"
