"""Methods: what one auxiliary network is, and its loss."""

from hpff.methods.auglocal import AugLocal
from hpff.methods.base import AuxiliaryContext, Criterion, Method
from hpff.methods.bp import Backprop
from hpff.methods.dgl import DGL
from hpff.methods.infopro import InfoPro
from hpff.methods.predsim import PredSim
from hpff.methods.registry import create, name_of, names, published, register, setting_names

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
    "name_of",
    "names",
    "published",
    "register",
    "setting_names",
]
