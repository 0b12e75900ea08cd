"""Auxiliary networks, and patch feature fusion (PFF) around any of them."""

from hpff.auxiliary.heads import ConvMLP, VectorMLP
from hpff.auxiliary.norm import BatchStatisticsNorm, PatchAware
from hpff.auxiliary.patches import PatchFusion, cut, patches_in_force

__all__ = [
    "BatchStatisticsNorm",
    "ConvMLP",
    "PatchAware",
    "PatchFusion",
    "VectorMLP",
    "cut",
    "patches_in_force",
]
