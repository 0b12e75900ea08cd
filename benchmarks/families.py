"""Families of architectures, each by its smallest model, made smaller where it allows that.

For timm a family is one of its modules (``timm.list_modules()``), for transformers one model type.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hpff import models
from hpff.torch_support import torchvision_import

CLASSES = 5
BATCH = 3


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        model: the name for ``models.create``, or the prefix of transformers' classes.
        side: of the images; 0 for text.
        leaks: whether it has no chain of blocks, so that three modules are too many.
        big: whether it cannot be made small; tests leave it out.
        single: whether it does not run in float64, or gives nan there.
    """

    library: str
    name: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    side: int = 32
    leaks: bool = False
    big: bool = False
    single: bool = False

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        if self.library != "transformers":
            name = f"{self.library}/{self.model}"
            return models.create(name, num_classes=CLASSES, **self.settings)
        library = _transformers()
        task = "Image" if self.side else "Sequence"
        config = getattr(library, f"{self.model}Config")(num_labels=CLASSES, **self.settings)
        model: nn.Module = getattr(library, f"{self.model}For{task}Classification")(config)
        return model

    def inputs(self, dtype: torch.dtype = torch.float32) -> Any:
        """A batch, the same every time: images, or padded sequences of token numbers."""
        random = torch.Generator().manual_seed(0)
        if not self.side:
            return _text(random)
        images = torch.randn(BATCH, 3, self.side, self.side, dtype=dtype, generator=random)
        return {"pixel_values": images} if self.library == "transformers" else images

    def targets(self) -> Tensor:
        return torch.arange(BATCH)


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    torchvision_import.torchvision()  # transformers imports it
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def _text(random: torch.Generator) -> dict[str, Tensor]:
    """Token numbers, padding (0) after an end (2), and the mask of what is none."""
    tokens = torch.randint(3, 64, (BATCH, 12), generator=random)
    lengths = torch.tensor([12, 8, 10])[:, None]
    places = torch.arange(12)
    tokens[places == lengths - 1] = 2
    tokens[places >= lengths] = 0
    return {"input_ids": tokens, "attention_mask": (places < lengths).long()}


def _torchvision() -> list[Family]:
    def of(name: str, model: str, side: int = 32, big: bool = False, **settings: Any) -> Family:
        return Family("torchvision", name, model, settings, side, big=big)

    return [
        of("AlexNet", "alexnet", 64, big=True),
        of("ConvNeXt", "convnext_tiny", big=True),
        of("DenseNet", "densenet121"),
        of("EfficientNet", "efficientnet_b0"),
        of("EfficientNetV2", "efficientnet_v2_s", big=True),
        of("GoogLeNet", "googlenet", init_weights=False),
        of("Inception v3", "inception_v3", 80, big=True, init_weights=False),
        of("MaxViT", "maxvit_t", 224, big=True),
        of("MNASNet", "mnasnet0_5"),
        of("MobileNetV2", "mobilenet_v2", width_mult=0.25),
        of("MobileNetV3", "mobilenet_v3_small"),
        of("RegNet", "regnet_x_400mf"),
        of("ResNet", "resnet18"),
        of("ResNeXt", "resnext50_32x4d", big=True),
        of("ShuffleNetV2", "shufflenet_v2_x0_5"),
        of("SqueezeNet", "squeezenet1_1"),
        of("Swin", "swin_t", 64, big=True),
        of("Swin v2", "swin_v2_t", 64, big=True),
        of("VGG", "vgg11_bn", big=True),
        of("ViT", "vit_b_16", big=True, image_size=32),
        of("Wide ResNet", "wide_resnet50_2", big=True),
    ]


_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
_STAGES = {"embed_dim": 16, "depths": (1, 1, 2), "num_heads": (1, 1, 2)}


def _timm() -> list[Family]:
    def of(
        name: str,
        model: str,
        side: int = 32,
        *,
        leaks: bool = False,
        big: bool = False,
        **settings: Any,
    ) -> Family:
        return Family("timm", name, model, settings, side, leaks, big)

    return [
        of("beit", "beit_base_patch16_224", img_size=32, patch_size=8, **_VIT),
        of("byoanet", "gcresnext26ts"),
        of("byobnet", "test_byobnet"),
        of("cait", "cait_xxs24_224", img_size=32, patch_size=8, **_VIT),
        of("coat", "coat_lite_tiny", img_size=32, serial_depths=(1, 1, 1, 1)),
        of("convit", "convit_tiny", img_size=32, patch_size=8, local_up_to_layer=2, **_VIT),
        of("convmixer", "convmixer_768_32", big=True),
        of("convnext", "test_convnext"),
        of("cpubone", "cpubone_nano"),
        of("crossvit", "crossvit_tiny_240", 240, leaks=True),
        of("csatv2", "csatv2", 64),
        of("cspnet", "cs3darknet_focus_s"),
        of("cspnext", "cspnext_tiny"),
        of(
            "davit",
            "davit_tiny",
            depths=(1, 1, 1, 1),
            embed_dims=(16, 16, 32, 32),
            num_heads=(1, 1, 2, 2),
            window_size=2,
        ),
        of("deepseek_vit", "deepseek_vit_412m", 56, **_VIT),
        of("deit", "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, **_VIT),
        of("densenet", "densenet121", growth_rate=4, block_config=(2, 2, 2, 2)),
        of("dla", "dla46x_c"),
        of("dpn", "dpn48b"),
        of("edgenext", "edgenext_xx_small", 64),
        of("efficientformer", "efficientformer_l1", 224, big=True),
        of("efficientformer_v2", "efficientformerv2_s0", img_size=32),
        of("efficientnet", "test_efficientnet"),
        of("efficientvim", "efficientvim_m1", 64),
        of("efficientvit_mit", "efficientvit_b0", 64),
        of("efficientvit_msra", "efficientvit_m0", 64, img_size=64),
        of("eva", "eva02_tiny_patch14_224", 28, img_size=28, **_VIT),
        of("fasternet", "fasternet_t0"),
        of("fastvit", "fastvit_t8"),
        of("focalnet", "focalnet_tiny_srf", 64, big=True),
        of("gcvit", "gcvit_xxtiny", 64, img_size=64),
        of("gemma4_vit", "gemma4_vit_167m", 64, **_VIT),
        of("ghostnet", "ghostnet_050"),
        of("hardcorenas", "hardcorenas_b"),
        of("hgnet", "hgnetv2_b0"),
        of("hiera", "hiera_tiny_224", 64, img_size=(64, 64), embed_dim=16, stages=(1, 1, 1, 1)),
        of("hieradet_sam2", "sam2_hiera_tiny", 64, embed_dim=16, stages=(1, 1, 1, 1)),
        of("hrnet", "hrnet_w18_small"),
        of("iformer", "iformer_t", 64),
        of("inception_next", "inception_next_atto"),
        of("inception_resnet_v2", "inception_resnet_v2", 80, big=True),
        of("inception_v3", "inception_v3", 80, big=True),
        of("inception_v4", "inception_v4", 80, big=True),
        of("lcnetv2", "lcnetv2_small"),
        of("levit", "levit_128s", 64, img_size=64),
        of("lowformer", "lowformer_b0"),
        of("mambaout", "test_mambaout"),
        of("maxxvit", "test_coatnet", 64, img_size=64),
        of("metaformer", "poolformerv2_s12"),
        of("mlp_mixer", "gmlp_ti16_224", img_size=32),
        of("mobilenetv3", "mobilenetv3_small_050"),
        of("mobilenetv5", "mobilenetv5_base", 64, big=True),
        of("mobilevit", "mobilevit_xxs", 64),
        of("mvitv2", "mvitv2_tiny", 64, big=True, img_size=64),
        of("naflexvit", "naflexvit_base_patch16_parfac_gap", **_VIT),
        of("nasnet", "nasnetalarge", 96, leaks=True, big=True),
        of("nest", "nest_tiny", 224, big=True),
        of("nextvit", "nextvit_small", 64, big=True),
        of("nfnet", "test_nfnet"),
        of("pit", "pit_ti_224", 64, img_size=64),
        of("pnasnet", "pnasnet5large", 96, leaks=True, big=True),
        of("pvt_v2", "pvt_v2_b0", depths=(1, 1, 1, 1)),
        of("qwen3_vit", "qwen3_vit_88m", 64, **_VIT),
        of("rdnet", "rdnet_tiny", big=True),
        of("regnet", "regnetx_002"),
        of("repghost", "repghostnet_050"),
        of("repvit", "repvit_m1"),
        of("res2net", "res2next50", layers=(1, 1, 1, 1)),
        of("resnest", "resnest14d"),
        of("resnet", "test_resnet"),
        of("resnetv2", "resnetv2_18", layers=(1, 1, 1, 1)),
        of("rexnet", "rexnet_100"),
        of("selecsls", "selecsls42", big=True),
        of("senet", "legacy_seresnet18"),
        of("sequencer", "sequencer2d_s", img_size=32, layers=(1, 1, 1, 1)),
        of("shvit", "shvit_s1"),
        of("sknet", "skresnet18", layers=(1, 1, 1, 1)),
        of("starnet", "starnet_s050"),
        of("swiftformer", "swiftformer_xs", 64),
        of(
            "swin_transformer",
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            **_STAGES,
        ),
        of(
            "swin_transformer_v2",
            "swinv2_tiny_window8_256",
            img_size=32,
            window_size=4,
            **_STAGES,
        ),
        of("swin_transformer_v2_cr", "swinv2_cr_tiny_224", img_size=32, window_size=4, **_STAGES),
        of("tiny_vit", "tiny_vit_5m_224"),
        of(
            "tnt",
            "tnt_s_patch16_224",
            leaks=True,
            img_size=32,
            embed_dim=32,
            inner_dim=16,
            depth=3,
            num_heads_inner=2,
            num_heads_outer=2,
        ),
        of("tresnet", "tresnet_m", big=True),
        of(
            "twins",
            "twins_svt_small",
            64,
            img_size=64,
            depths=(1, 1, 1, 1),
            embed_dims=(16, 16, 32, 32),
            num_heads=(1, 1, 2, 2),
            wss=(2, 2, 2, 2),
        ),
        of("vgg", "vgg11", big=True),
        of("visformer", "visformer_tiny", 64, img_size=64),
        of("vision_transformer", "test_vit", img_size=32),
        of("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", img_size=32, **_VIT),
        of("vision_transformer_relpos", "test_vit_relpos", img_size=32),
        of(
            "vision_transformer_sam",
            "samvit_base_patch16_224",
            64,
            img_size=64,
            global_attn_indexes=(2,),
            window_size=2,
            **_VIT,
        ),
        of("vitamin", "vitamin_small_224", img_size=32, depth=3),
        of("volo", "volo_d1_224", 64, big=True, img_size=64),
        of("vovnet", "ese_vovnet19b_slim_dw"),
        of("xception", "legacy_xception", 64, big=True),
        of("xception_aligned", "xception41p", 64, big=True),
        of("xcit", "xcit_nano_12_p16_224", img_size=32, embed_dim=32, depth=3),
    ]


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_IMAGES = {**_SMALL, "image_size": 32, "patch_size": 8}
_ENCODER = {**_SMALL, "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 32}
_ENDS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_SMALL, **_ENDS, "max_position_embeddings": 32, "num_key_value_heads": 2}
_GPT = {**_ENDS, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 32}
_WINDOWS = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1, 2],
    "num_heads": [1, 1, 2],
    "window_size": 2,
}
_TWOS = {"hidden_sizes": [8, 16, 16, 32], "depths": [2, 2, 2, 2]}
_HEADS = {"num_attention_heads": [1, 1, 2, 2]}


def _hugging_face_images() -> list[Family]:
    settings: dict[str, dict[str, Any]] = {
        "Beit": _IMAGES,
        "Bit": {"embedding_size": 8, "hidden_sizes": [32, 32, 64, 64], "num_groups": 8},
        "CLIP": {"vision_config": _IMAGES},
        "ConvNext": _TWOS,
        "ConvNextV2": _TWOS,
        "Data2VecVision": _IMAGES,
        "DeiT": _IMAGES,
        "Dinov2": _IMAGES,
        "Dinov2WithRegisters": _IMAGES,
        "DonutSwin": _WINDOWS,
        "FocalNet": {"image_size": 32, "embed_dim": 16, "depths": [2, 2, 2, 2]},
        "Hiera": {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 1, 2, 2],
            "masked_unit_size": [8, 8],
        },
        "IJepa": _IMAGES,
        "Levit": {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [1, 2, 3],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
        "MobileNetV1": {"depth_multiplier": 0.25},
        "MobileNetV2": {"depth_multiplier": 0.25},
        "MobileViT": {
            "image_size": 64,
            "hidden_sizes": [16, 16, 16],
            "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        },
        "MobileViTV2": {"image_size": 64, "width_multiplier": 0.25},
        "PoolFormer": _TWOS,
        "Pvt": {"image_size": 64, **_TWOS, **_HEADS},
        "PvtV2": {"image_size": 64, **_TWOS, **_HEADS},
        "RegNet": {"embedding_size": 8, "groups_width": 8, **_TWOS},
        "ResNet": {"embedding_size": 8, **_TWOS},
        "Segformer": {**_TWOS, **_HEADS},
        "Siglip": {"vision_config": _IMAGES},
        "SwiftFormer": {"image_size": 64, "depths": [1, 1, 2, 1], "embed_dims": [16, 16, 32, 32]},
        "Swin": _WINDOWS,
        "Swinv2": _WINDOWS,
        "ViT": _IMAGES,
        "ViTMSN": _IMAGES,
    }
    return [
        Family("transformers", f"{name} (images)", name, given, _side(given))
        for name, given in settings.items()
    ]


def _side(settings: dict[str, Any]) -> int:
    size = settings.get("image_size", 32)
    return int(size[0] if isinstance(size, list) else size)


def _hugging_face_text() -> list[Family]:
    attention = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
    encoder_decoder = {
        f"{part}_{what}": n
        for part in ("encoder", "decoder")
        for what, n in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 48))
    }
    settings: dict[str, dict[str, Any]] = {
        "Albert": {"embedding_size": 16, **_ENCODER},
        "Bart": {"d_model": 32, "max_position_embeddings": 32, **encoder_decoder, **_ENDS},
        "Bert": _ENCODER,
        "BigBird": {"attention_type": "original_full", **_ENCODER},
        "Bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 2, **_ENDS},
        "Canine": {**_SMALL, "downsampling_rate": 2, "local_transformer_stride": 4},
        "ConvBert": {"embedding_size": 32, **_ENCODER},
        "CTRL": {"dff": 48, **_GPT},
        "Deberta": {**attention, **_ENCODER},
        "DebertaV2": {**attention, **_ENCODER},
        "DistilBert": {"vocab_size": 64, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
        "Electra": {"embedding_size": 16, **_ENCODER},
        "Falcon": _DECODER,
        "FNet": _ENCODER,
        "Funnel": {
            "vocab_size": 64,
            "block_sizes": [1, 1, 1],
            "d_model": 32,
            "n_head": 2,
            "d_head": 16,
            "d_inner": 48,
        },
        "Gemma": {"head_dim": 16, **_DECODER},
        "GPT2": _GPT,
        "GPTJ": {"rotary_dim": 8, **_GPT},
        "GPTNeo": {
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 2]],
            **_ENDS,
        },
        "GPTNeoX": _DECODER,
        "Llama": _DECODER,
        "Longformer": {"attention_window": 4, **_ENCODER},
        "Mistral": _DECODER,
        "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1, **_DECODER},
        "MobileBert": {
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            **_ENCODER,
        },
        "ModernBert": _ENCODER,
        "MPNet": _ENCODER,
        "Mpt": {"d_model": 32, "n_heads": 2, "n_layers": 3, "max_seq_len": 32, **_ENDS},
        "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, **_DECODER},
        "Perceiver": {
            "d_model": 32,
            "d_latents": 32,
            "num_latents": 4,
            "num_self_attends_per_block": 3,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
            "vocab_size": 64,
        },
        "Phi3": _DECODER,
        "Qwen3": {"head_dim": 16, **_DECODER},
        "Roberta": _ENCODER,
        "RoFormer": _ENCODER,
        "SqueezeBert": {"embedding_size": 32, **_ENCODER},
        "T5": {
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 64,
            "decoder_start_token_id": 0,
            "eos_token_id": 2,
        },
        "XLM": {"emb_dim": 32, "n_layers": 3, "n_heads": 2, "vocab_size": 64, "pad_index": 0},
        "XLNet": {"vocab_size": 64, "d_model": 32, "n_layer": 3, "n_head": 2, "d_inner": 48},
    }
    return [
        Family(
            "transformers",
            f"{name} (text)",
            name,
            given,
            side=0,
            leaks=name == "XLNet",
            single=name in ("Canine", "Mixtral"),
        )
        for name, given in settings.items()
    ]


FAMILIES = [*_torchvision(), *_timm(), *_hugging_face_images(), *_hugging_face_text()]
