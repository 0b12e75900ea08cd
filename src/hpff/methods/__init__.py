"""Methods: what one auxiliary network is, and its loss."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from pathlib import PurePath
from typing import Any

from hpff.errors import UserError
from hpff.methods.auglocal import AugLocal
from hpff.methods.base import AuxiliaryContext, Criterion, Method
from hpff.methods.bp import Backprop
from hpff.methods.dgl import DGL
from hpff.methods.infopro import InfoPro
from hpff.methods.predsim import PredSim

__all__ = [
    "DGL",
    "AugLocal",
    "AuxiliaryContext",
    "Backprop",
    "Criterion",
    "InfoPro",
    "Method",
    "PredSim",
    "create",
    "names",
    "published",
]

_METHODS: dict[str, type[Method]] = {
    "bp": Backprop,
    "dgl": DGL,
    "predsim": PredSim,
    "infopro": InfoPro,
    "auglocal": AugLocal,
}


def create(method: str | Method, **settings: Any) -> Method:
    """A method by name, with its settings.

    Raises:
        UserError: the name, or the name or value of a setting, is not known.
    """
    if isinstance(method, Method):
        return method
    kind = _METHODS.get(method) if isinstance(method, str) else None
    if kind is None:
        near = get_close_matches(str(method), _METHODS, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown method {method!r}; {guess}known: {', '.join(_METHODS)}")
    known = setting_names(method)
    unknown = [name for name in settings if name not in known]
    if unknown:
        expected = f"expected one of: {', '.join(known)}" if known else "it has none"
        raise UserError(f"method {method!r} has no setting {unknown[0]!r}; {expected}")
    return kind(**settings)


def setting_names(method: str) -> list[str]:
    """What a method can be set to by keyword; empty for a name that is not known."""
    return list(inspect.signature(_METHODS[method]).parameters) if method in _METHODS else []


def published(method: str, *, network: str, data: str, modules: int) -> dict[str, Any]:
    """The settings published for a model's name, a data set's and K, by :meth:`Method.published`.

    ``methods.create(name, **methods.published(name, network=..., data=..., modules=...))`` is the
    method with them. A model may be named with its library, data by ``kind:path``.
    """
    folder = PurePath(data.rpartition(":")[2]).name
    kind = _METHODS[method]
    return kind.published(network.rpartition("/")[2], folder, modules)


def name_of(method: Method) -> str:
    """The name of a method's object; of a kind without one, its class's in small letters."""
    known = {kind: name for name, kind in _METHODS.items()}
    return known.get(type(method), type(method).__name__.lower())


def names() -> list[tuple[str, str]]:
    """Name and one line of description of each method."""
    return [(name, (kind.__doc__ or "").splitlines()[0]) for name, kind in _METHODS.items()]
