"""Methods: what one auxiliary network is, and its loss."""

from hpff.methods.auglocal import AugLocal
from hpff.methods.base import AuxiliaryContext, Method
from hpff.methods.bp import Backprop
from hpff.methods.dgl import DGL
from hpff.methods.infopro import InfoPro
from hpff.methods.man import MAN
from hpff.methods.predsim import PredSim
from hpff.methods.registry import create, name_of, names, published, register, setting_names
from hpff.methods.tasks import (
    Criterion,
    PixelCriterion,
    TaskName,
    at_pixels,
    criterion_of,
    wrong_answers,
)

__all__ = [
    "DGL",
    "MAN",
    "AugLocal",
    "AuxiliaryContext",
    "Backprop",
    "Criterion",
    "InfoPro",
    "Method",
    "PixelCriterion",
    "PredSim",
    "TaskName",
    "at_pixels",
    "create",
    "criterion_of",
    "name_of",
    "names",
    "published",
    "register",
    "setting_names",
    "wrong_answers",
]
