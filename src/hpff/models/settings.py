"""The settings that a model may be given by name: its shape and its dropout, nothing else.

Libraries take more, such as files of weights to load; a recipe must not reach those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpff.errors import UserError, did_you_mean, shown

_LAYERS = ("block_config", "depth", "depths", "layers", "serial_depths", "stages")
_ALLOWED = {
    "hpff": ("width",),
    "torchvision": (
        *(
            "attention_dropout",
            "aux_loss",
            "bn_size",
            "drop_rate",
            "dropout",
            "groups",
            "growth_rate",
        ),
        *("image_size", "init_weights", "layer_scale", "stochastic_depth_prob", "transform_input"),
        *("width_mult", "width_per_group", "zero_init_residual"),
    ),
    "timm": (
        *_LAYERS,
        *("attn_drop_rate", "base_width", "cardinality", "channels", "class_token", "dims"),
        *("drop_path_rate", "drop_rate", "embed_dim", "embed_dims", "global_attn_indexes"),
        *("global_pool", "growth_rate", "img_size", "init_values", "inner_dim"),
        *("local_up_to_layer", "mlp_ratio", "num_heads", "num_heads_inner", "num_heads_outer"),
        *("output_stride", "patch_drop_rate", "patch_size", "pos_drop_rate", "proj_drop_rate"),
        *("qk_norm", "qkv_bias", "reg_tokens", "window_size", "wss", "zero_init_last"),
    ),
}
_TEXT = ("global_pool",)
_LARGEST = 65536
_MOST_LAYERS = 1000


def check_settings(library: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that is none of a model's shape, or beyond any model.

    Args:
        library: "hpff", "torchvision" or "timm".
        settings: of the model, besides its name, its classes and its images' channels.
    """
    allowed = _ALLOWED[library]
    for name, value in settings.items():
        if name not in allowed:
            hint = did_you_mean(name, allowed)
            raise UserError(
                f"{shown(name)} is no setting of a model by name{hint}; expected one of "
                f"{', '.join(allowed)}"
            )
        _check_value(name, value)


def _check_value(name: str, value: object) -> None:
    if name in _TEXT and isinstance(value, str):
        return
    most = _MOST_LAYERS if name in _LAYERS else _LARGEST
    for number in _leaves(value):
        if isinstance(number, int | float) and number > most:
            raise UserError(f"{name} is {shown(value)}, expected at most {most}")


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value
