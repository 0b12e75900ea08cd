"""Methods by name: ours, those of installed packages, and those that a user registers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath
from typing import Any, TypeVar

from hpff.errors import UserError, did_you_mean
from hpff.methods.auglocal import AugLocal
from hpff.methods.base import Method
from hpff.methods.bp import Backprop
from hpff.methods.dgl import DGL
from hpff.methods.infopro import InfoPro
from hpff.methods.predsim import PredSim

GROUP = "hpff.methods"  # of entry points

_OURS: dict[str, type[Method]] = {
    "bp": Backprop,
    "dgl": DGL,
    "predsim": PredSim,
    "infopro": InfoPro,
    "auglocal": AugLocal,
}
_registered: dict[str, type[Method]] = {}

M = TypeVar("M", bound=Method)


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Give a method a name, by which recipes and the command line know it.

    ``@register("mine")`` on a :class:`Method`. A package makes its methods known wherever it is
    installed by an entry point of the group ``hpff.methods`` that names the class or its module;
    a file of one's own is named on the command line: ``--import my_method.py``.

    Args:
        name: a word of letters, digits, "-" and "_", that begins with a letter.

    Raises:
        UserError: the name is no such word, or another method has it.
    """
    if not name.replace("-", "_").isidentifier() or not name.isascii():
        raise UserError(f"method's name {name!r}, expected letters, digits, '-' and '_'")

    def add(kind: type[M]) -> type[M]:
        if not (isinstance(kind, type) and issubclass(kind, Method)):
            raise UserError(f"method {name!r} is {kind!r}, expected a subclass of Method")
        other = _OURS.get(name) or _registered.get(name)
        if other is not None and _home(other) != _home(kind):
            raise UserError(f"method {name!r} is {_home(other)} already, expected another name")
        _registered[name] = kind
        return kind

    return add


def create(method: str | Method, /, **settings: Any) -> Method:
    """A method by name, with its settings.

    Raises:
        UserError: the name, or the name or value of a setting, is not known.
    """
    if isinstance(method, Method):
        return method
    known = _known()
    if not isinstance(method, str) or method not in known:
        raise UserError(
            f"unknown method {method!r}{did_you_mean(str(method), known)}; known: "
            f"{', '.join(known)} (--import FILE adds those of a file)"
        )
    accepted = setting_names(method)
    unknown = [name for name in settings if name not in accepted]
    if unknown:
        expected = f"expected one of: {', '.join(accepted)}" if accepted else "it has none"
        raise UserError(f"method {method!r} has no setting {unknown[0]!r}; {expected}")
    return known[method](**settings)


def setting_names(method: str) -> list[str]:
    """What a method can be set to by keyword; empty for a name that is not known."""
    kind = _known().get(method)
    return [] if kind is None else list(inspect.signature(kind).parameters)


def published(method: str, *, network: str, data: str, modules: int) -> dict[str, Any]:
    """The settings published for a model's name, a data set's and K, by :meth:`Method.published`.

    ``methods.create(name, **methods.published(name, network=..., data=..., modules=...))`` is the
    method with them. A model may be named with its library, data by ``kind:path``.
    """
    folder = PurePath(data.rpartition(":")[2]).name
    return _known()[method].published(network.rpartition("/")[2], folder, modules)


def name_of(method: Method) -> str:
    """The name of a method's object; of a kind without one, its class's in small letters."""
    named = {kind: name for name, kind in _known().items()}
    return named.get(type(method), type(method).__name__.lower())


def names() -> list[tuple[str, str]]:
    """Name and one line of description of each method."""
    return [(name, _first_line(kind)) for name, kind in _known().items()]


def _known() -> dict[str, type[Method]]:
    _load_entry_points()
    return {**_OURS, **_registered}


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    """Register what installed packages offer; one that fails is named when it is asked for."""
    for point in entry_points(group=GROUP):
        _load(point)


def _load(point: EntryPoint) -> None:
    try:
        found = point.load()
    except Exception as error:
        raise UserError(
            f"the method {point.name!r} of an installed package ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}; mend or uninstall the package"
        ) from error
    if isinstance(found, type) and found not in _registered.values():
        register(point.name)(found)


def _first_line(kind: type[Method]) -> str:
    return next(iter((inspect.getdoc(kind) or "").splitlines()), "")


def _home(kind: type[Method]) -> str:
    """Where a class is from; a file that is run again makes the same class anew."""
    return f"{kind.__module__}.{kind.__qualname__}"
