"""Auxiliary networks, and patch feature fusion (PFF) around any of them."""

from hpff.auxiliary.heads import ConvMLP, VectorMLP
from hpff.auxiliary.norm import BatchStatisticsNorm, PatchAware
from hpff.auxiliary.patches import PatchFusion, cut, patches_in_force
from hpff.auxiliary.pooling import GlobalAverage
from hpff.auxiliary.upsampling import UpsampledConv2d

__all__ = [
    "BatchStatisticsNorm",
    "ConvMLP",
    "GlobalAverage",
    "PatchAware",
    "PatchFusion",
    "UpsampledConv2d",
    "VectorMLP",
    "cut",
    "patches_in_force",
]
