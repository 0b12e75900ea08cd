"""HPFF: train networks in gradient-isolated local modules."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpff import analysis as analysis
    from hpff import data as data
    from hpff import features as features
    from hpff import memory as memory
    from hpff import methods as methods
    from hpff import models as models
    from hpff import parallel as parallel
    from hpff.engine.step import Losses
    from hpff.learner import LocalLearner
    from hpff.reference import check_gradients, reference_gradients
    from hpff.settings import LocalSettings
    from hpff.torch_support.compiled_blocks import compile_options
    from hpff.torch_support.cuda_graph import Replayed

__version__ = "0.1.0"
__all__ = [
    "LocalLearner",
    "LocalSettings",
    "Losses",
    "Replayed",
    "check_gradients",
    "compile_options",
    "models",
    "reference_gradients",
]

_HOMES = {
    "LocalLearner": "hpff.learner",
    "LocalSettings": "hpff.settings",
    "Losses": "hpff.engine.step",
    "Replayed": "hpff.torch_support.cuda_graph",
    "check_gradients": "hpff.reference",
    "compile_options": "hpff.torch_support.compiled_blocks",
    "reference_gradients": "hpff.reference",
}

if not TYPE_CHECKING:  # A type checker would take every name for one of ours.

    def __getattr__(name: str) -> Any:
        """Import torch only when it is needed, so that the command line answers at once."""
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        if name in ("analysis", "data", "features", "memory", "methods", "models", "parallel"):
            return import_module(f"hpff.{name}")
        raise AttributeError(f"module 'hpff' has no attribute {name!r}")
