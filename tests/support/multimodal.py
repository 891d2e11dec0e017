"""Tiny random models of the Mixture-of-Experts types that also see or hear.

As `tests.support.tiny`, whose defaults hold for the text part. What makes images or sounds into
tokens is shrunk by the names of its settings, and is never run: moescope gives text alone.
"""

import inspect
from typing import Any

import torch
from tests.support.tiny import (
    COMPOSITE_MODEL_TYPES,
    DEPARTURES,
    LATENT,
    MOE_MODEL_TYPES,
    SHARED,
    SLIDING,
    VOCAB_SIZE,
    randomize_routing,
    tiny_config,
    tiny_model,
)
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

MULTIMODAL: dict[str, dict[str, Any]] = {
    "aria": {},
    "deepseek_ocr2": LATENT | {"n_group": 1},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [16, 8],
        "rope_parameters": {"mrope_section": [1, 1, 2]},
    },
    "glm4v_moe": {"rope_parameters": {"mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "glm5_next": LATENT
    | {
        "qk_rope_head_dim": 0,
        "head_dim": 0,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_types": ["full"] * 4,
        "hc_mult": 2,
    },
    "hy_v4_vl": DEPARTURES["hy_v4"] | {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "inkling2": {},
    "inkling2_loop": {},
    "inkling_mm_model": {},
    "internvl": {},
    "minimax_m3_vl": {},
    "mistral3": LATENT,
    "mistral4": LATENT,
    "mistral_large4": LATENT,
    "muse_spark": SLIDING | {"moe_hidden_size": 16, "layer_rope_theta": [10000.0, 0] * 2},
    "qwen3_omni_moe_thinker": {},
    "qwen3_vl_moe": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "step3p7": SLIDING | {"share_expert_dim": 16},
    "unlimited_ocr": LATENT,
}
"""Departures of the text part, where its own type has none in `DEPARTURES`."""

WRAPPED = {"internvl": "qwen3_moe", "mistral3": "mistral4"}
"""Types that wrap whatever text model they name, with one that is a Mixture of Experts."""

MULTIMODAL_TYPES = tuple(sorted(MULTIMODAL.keys() & CONFIG_MAPPING.keys()))

OUTSIDE: dict[str, dict[str, Any]] = {
    "glm5_next": {"vision_config": {"projection_intermediate_size": 16}},
    "minimax_m3_vl": {"projector_hidden_size": 16},
    "muse_spark": {
        "audio_config": {
            "num_hidden_layers": 2, "patch_sizes": [4, 4], "hidden_sizes": [8, 8], "depths": [1, 1],
        },
        "out_hidden_size": 16,
        "projector_hidden_size": 16,
    },
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 125},
}  # fmt: skip
"""What a type wants outside of its text part."""

_SENSES: dict[str, Any] = {
    "depth": 2,
    "num_hidden_layers": 2,
    "n_layers": 2,
    "encoder_layers": 2,
    "hidden_size": 16,
    "d_model": 16,
    "intermediate_size": 16,
    "encoder_ffn_dim": 16,
    "mlp_dim": 16,
    "num_heads": 2,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "out_hidden_size": 32,
    "output_dim": 32,
    "text_hidden_size": 32,
    "projection_dim": 32,
    "downsample_hidden_size": 8,
    "num_mel_bins": 16,
    "output_channels": 8,
    "downsample_channels": [8, 16],
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "global_attn_indexes": [1],
    "vocab_size": VOCAB_SIZE,
    "layer_types": None,
}


def any_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """The tiny configuration of a type of either sort."""
    plain = model_type in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES)
    return (tiny_config if plain else multimodal_config)(model_type, **overrides)


def any_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The tiny model of a type of either sort."""
    plain = model_type in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES)
    return (tiny_model if plain else multimodal_model)(model_type, seed, **overrides)


def multimodal_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A configuration of a few thousand parameters; `overrides` are fields of its text part."""
    whole = AutoConfig.for_model(model_type)
    text = whole.get_text_config()
    if model_type in WRAPPED:
        text = AutoConfig.for_model(WRAPPED[model_type])
    made = _text_part(type(text), text.model_type, MULTIMODAL[model_type] | overrides)
    if model_type == text.model_type:
        return made
    parts: dict[str, Any] = {"text_config": made.to_dict()}
    more = OUTSIDE.get(model_type, {})
    for name in whole.sub_configs.keys() - parts.keys():
        if isinstance(part := getattr(whole, name, None), PreTrainedConfig):
            parts[name] = _shrunk(part) | more.get(name, {})
    return type(whole)(**more | parts)


def multimodal_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model of `model_type` in eval mode, the same one for the same seed."""
    config = multimodal_config(model_type, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForMultimodalLM.from_config(config).eval()
        randomize_routing(model)
    return model


def _text_part(kind: type[PreTrainedConfig], name: str, more: dict[str, Any]) -> PreTrainedConfig:
    known = inspect.signature(kind.__init__).parameters
    values = {key: value for key, value in SHARED.items() if key in known}
    values |= DEPARTURES.get(name, {}) | more
    return kind(**{key: value for key, value in values.items() if value is not None})


def _shrunk(part: PreTrainedConfig) -> dict[str, Any]:
    values = part.to_dict()
    for name, value in values.items():
        if isinstance(getattr(part, name, None), PreTrainedConfig):
            values[name] = _shrunk(getattr(part, name))
        elif name in _SENSES and value is not None:
            values[name] = _SENSES[name]
    return values
