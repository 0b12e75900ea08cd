"""Auxiliary networks, and patch feature fusion (PFF) around any of them."""

from hpff.auxiliary.ahead import AheadNetwork, AheadOfPatches, FollowedBlocks, FreshBlocks
from hpff.auxiliary.conv_mlp import ConvMLP
from hpff.auxiliary.decoders import Decoder, DeepDecoder
from hpff.auxiliary.dense_head import dense_head
from hpff.auxiliary.narrowed import narrowed
from hpff.auxiliary.norm import BatchStatisticsNorm, PatchAware
from hpff.auxiliary.patches import PatchFusion, PatchNetwork, cut, patches_in_force
from hpff.auxiliary.pooling import GlobalAverage
from hpff.auxiliary.task_heads import deep_head, task_head
from hpff.auxiliary.upsampling import UpsampledConv2d
from hpff.auxiliary.vector_mlp import VectorMLP

__all__ = [
    "AheadNetwork",
    "AheadOfPatches",
    "BatchStatisticsNorm",
    "ConvMLP",
    "Decoder",
    "DeepDecoder",
    "FollowedBlocks",
    "FreshBlocks",
    "GlobalAverage",
    "PatchAware",
    "PatchFusion",
    "PatchNetwork",
    "UpsampledConv2d",
    "VectorMLP",
    "cut",
    "deep_head",
    "dense_head",
    "narrowed",
    "patches_in_force",
    "task_head",
]
