"""Tiny random models of every Mixture-of-Experts type behind `AutoModelForCausalLM`.

`tiny_model("mixtral")` builds in a fraction of a second what would otherwise be a download:
the real architecture, a few thousand random weights, and routing that behaves: clear margins,
different experts for different tokens, no NaN. Where a type allows it the shape is chosen to
be awkward rather than convenient: dense layers in between (so MoE layer numbers have gaps), a
shared expert, expert groups, selection biases, sliding and linear attention, skip experts.

It is data: one dict of shared defaults, applied to the fields that a configuration class has,
and one dict of departures per type. What it does not know: anything about finding routers in
a loaded model. The few name patterns below serve the random initialisation alone.
"""

import inspect
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NUM_EXPERTS = 8
VOCAB_SIZE = 128

ROUTER_LOGIT_STD = 2.0
"""Spread of the router logits over tokens, for inputs of unit mean square."""

SELECTION_BIAS_STD = 0.1
"""Spread of biases that are added to scores before top-k; sigmoid scores lie in [0, 1]."""

SHARED: dict[str, Any] = {
    # size
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # at 0.02 attention and experts would hardly move the residual stream
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # experts, in every spelling
    "num_experts": NUM_EXPERTS,
    "num_local_experts": NUM_EXPERTS,
    "n_routed_experts": NUM_EXPERTS,
    "moe_num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "shared_experts_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    # which layers have experts: 1 and 3, or all but layer 0
    "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
    "mlp_only_layers": [0, 2],
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    # attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # Sparse attention that sees all of a short text: a random indexer has ties, and to break
    # them in another way for another padding would hide what tests look for.
    "index_topk": 128,
    "index_topk_blocks": 128,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

SLIDING = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]
}
LATENT = {"num_key_value_heads": 4}  # multi-head latent attention has one key head per query head

DEPARTURES: dict[str, dict[str, Any]] = {
    "afmoe": SLIDING | {"num_experts_per_tok": 3, "num_shared_experts": 2, "route_scale": 1.5},
    "aria_text": {"moe_num_shared_experts": 2, "intermediate_size": 16},
    "axk1": LATENT,
    "axk2": LATENT,
    "bailing_hybrid": LATENT | LINEAR,
    "beam": SLIDING,
    "cohere2_moe": SLIDING | {"expert_selection_fn": "sigmoid", "num_shared_experts": 1},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 16,
            "moe_num_experts": NUM_EXPERTS,
            "moe_top_k": 3,
        },
    },
    "deepseek_v2": LATENT | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    "deepseek_v3": LATENT | {"num_experts_per_tok": 3},
    "deepseek_v32": LATENT,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts_per_tok": 3,
        "mlp_layer_types": ["hash_moe", "moe", "hash_moe", "moe"],
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "partial_rotary_factor": 0.5,
        "o_groups": 2,
        "o_lora_rank": 8,
        "sliding_window": 8,
        "hc_mult": 2,
    },
    # sub-key product routing: E is the square of a whole number
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 3},
    "dots1": {"num_experts_per_tok": 3, "norm_topk_prob": True, "num_key_value_heads": 4},
    "dots3_note_text": LATENT
    | {
        "layer_types": [
            "indexed_attention",
            "sliding_attention",
            "indexed_attention",
            "sliding_attention",
        ],
        "sliding_window": 8,
        "head_dim": 16,
        **{
            f"swa_{name}": value
            for name, value in {
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "q_lora_rank": 16,
                "kv_lora_rank": 16,
                "head_dim": 16,
                "qk_nope_head_dim": 8,
                "v_head_dim": 8,
            }.items()
        },
    },
    "ernie4_5_moe": {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 2},
    "exaone_moe": SLIDING,
    "flex_olmo": {"num_experts_per_tok": 3},
    "flint": SLIDING,
    "gemma4_text": SLIDING
    | {
        "enable_moe_block": True,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCAB_SIZE,
        "hidden_size_per_layer_input": 8,
    },
    "glm4_moe": {"use_qk_norm": True},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT | {"indexer_types": ["full", "shared", "full", "shared"]},
    "gpt_oss": SLIDING
    | {
        "num_experts_per_tok": 3,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "granitemoe": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe_swa": SLIDING | {"layer_rope_theta": [10000.0, 10000.0, 10000.0, 10000.0]},
    "granitemoehybrid": LINEAR
    | {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8},
    "granitemoeshared": {},
    "hunyuan_v1_moe": {"head_dim": 8},
    "hy_v3": {},
    "hy_v4": LATENT | {"indexer_types": ["full", "shared", "full", "shared"], "hc_mult": 2},
    "inkling2_loop_text": {
        "num_hidden_layers": 6,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 8,
        "rel_extent": 32,
        "d_rel": 4,
        "unpadded_vocab_size": VOCAB_SIZE,
        "layer_types": ["hybrid_sliding", "hybrid"] * 3,
        "n_layers_per_attn_res_block": 2,
        "loop_layer_index_start": 2,
        "loop_layer_index_end": 4,
        "loop_num_passes": 2,
        "loop_gate_rank": 8,
    },
    "inkling2_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 8,
        "rel_extent": 32,
        "d_rel": 4,
        "unpadded_vocab_size": VOCAB_SIZE,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        "n_layers_per_attn_res_block": 2,
        "moe_intermediate_size": 16,
    },
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 8,
        "rel_extent": 32,
        "d_rel": 4,
        "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        "n_shared_experts": 2,
    },
    "jamba": {
        "num_hidden_layers": 5,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "jetmoe": {"num_key_value_heads": 2, "kv_channels": 16},
    "kimi_linear": LATENT | LINEAR,
    "kolibri1": SLIDING | {"num_experts_per_tok": 3},
    "laguna": SLIDING
    | {"num_attention_heads_per_layer": [4, 2, 4, 2], "moe_routed_scaling_factor": 1.5},
    "lara_mini": {
        "layer_types": [
            "linear_attention",
            "sliding_attention",
            "linear_attention",
            "full_attention",
        ],
        "sliding_window": 8,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "llama4_text": {
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 8,
    },
    "longcat_flash": LATENT
    | {
        "num_layers": 3,
        "num_hidden_layers": None,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "zero_expert_num": 3,
        "moe_topk": 3,
        "routed_scaling_factor": 1.5,
    },
    "mellum": SLIDING,
    "mimo_v2_flash": SLIDING,
    "minimax": {"block_size": 8},
    "minimax_m2": {"num_experts_per_tok": 3},
    "minimax_m3_vl_text": {"dense_intermediate_size": 48, "rotary_dim": 8},
    "mixtral": {},
    "nemotron_h": {
        "num_hidden_layers": None,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "olmoe": {"num_experts_per_tok": 3},
    "phimoe": {},  # K is 2 by construction of its sampler
    "qwen2_moe": {},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_moe": {"num_experts_per_tok": 3},
    "qwen3_next": LINEAR,
    "qwen4_exp_text": {
        "layer_types": [
            "linear_attention",
            "indexed_attention",
            "linear_attention",
            "indexed_attention",
        ],
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 128,
        "indexer_compress_ratio": 4,
    },
    "sarvam_mla": LATENT | {"num_experts_per_tok": 3, "q_lora_rank": None},
    "sarvam_moe": {"use_qk_norm": True},
    "solar_open": {},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},  # K is 1 by decree
}

SINCE = dict.fromkeys(("inkling2_loop_text", "lara_mini", "sarvam_mla", "sarvam_moe"), "5.24")
"""The version of transformers that brought a type, for those that the oldest supported lacks."""

MOE_MODEL_TYPES: tuple[str, ...] = tuple(sorted(DEPARTURES.keys() & CONFIG_MAPPING.keys()))
"""Every MoE type of the causal-LM auto mapping whose configuration is that of the text model."""

COMPOSITE_MODEL_TYPES: dict[str, str] = {
    "dots3_note": "dots3_note_text",
    "gemma4": "gemma4_text",
    "llama4": "llama4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Types of configurations that wrap a text configuration, as published checkpoints carry them.

`AutoModelForCausalLM` takes the text part out and builds the text model, except for gemma4, whose
layers then lie below `model.language_model`.
"""

PER_LAYER = {
    "indexer_types",
    "layer_rope_theta",
    "layer_types",
    "layers_block_type",
    "mlp_layer_types",
    "num_attention_heads_per_layer",
}
"""Fields with one entry per layer."""

_ROUTER_CLASS = re.compile(r"(?:Router|Gating|MoEV1Gate)$")
_ROUTER_LINEAR = re.compile(r"(?:^|\.)router_gate$")
_SELECTION_BIAS = re.compile(r"(?:^|\.)(?:e_score_correction_bias|expert_bias|balancing_biases)$")


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A configuration of a few thousand parameters; `overrides` are fields of its text part."""
    if model_type in COMPOSITE_MODEL_TYPES:
        text_config = tiny_config(COMPOSITE_MODEL_TYPES[model_type], **overrides)
        parts = {"text_config": text_config.to_dict()}
        if model_type == "dots3_note":  # never built, but their widths are checked
            adapter = {"adapter_out_dim": text_config.hidden_size}
            parts |= {"vision_config": adapter, "audio_config": adapter}
        return _config_class(model_type)(**parts)
    if model_type not in DEPARTURES:
        types = ", ".join([*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES])
        raise KeyError(f"no tiny model of type {model_type!r}; there are: {types}")
    config_class = _config_class(model_type)
    known = inspect.signature(config_class.__init__).parameters
    values = {name: value for name, value in SHARED.items() if name in known}
    values |= DEPARTURES[model_type] | overrides
    if num_layers := overrides.get("num_hidden_layers"):  # the patterns go on, or stop earlier
        for name in (PER_LAYER & values.keys()) - overrides.keys():
            values[name] = list(itertools.islice(itertools.cycle(values[name]), num_layers))
    return config_class(**{name: value for name, value in values.items() if value is not None})


def _config_class(model_type: str) -> type[PreTrainedConfig]:
    return type(AutoConfig.for_model(model_type))


def tiny_model(
    model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random model of `model_type` in eval mode, the same one for the same seed."""
    config = tiny_config(model_type, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        randomize_routing(model)
    return model if dtype == torch.float32 else _cast(model, dtype)


@torch.no_grad()
def randomize_routing(model: PreTrainedModel) -> None:
    """Give every router weights with clear margins, and every selection bias a say."""
    for path, module in model.named_modules():
        if _ROUTER_CLASS.search(type(module).__name__) or _ROUTER_LINEAR.search(path):
            _randomize_router(module)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # A zero row gives equal router logits, and top-k of ties is anybody's guess.
            module.weight[module.padding_idx].normal_(std=0.2)
    for path, tensor in _parameters_and_buffers(model):
        if _SELECTION_BIAS.search(path):
            tensor.normal_(std=SELECTION_BIAS_STD)
        if path.endswith("balancing_biases"):
            # zaya's skip expert has bias -1, also after loading: its rivals must come down to it.
            tensor.sub_(1.0)[-1] = -1.0


def _randomize_router(router: nn.Module) -> None:
    gain = ROUTER_LOGIT_STD / getattr(router, "scalar_root_size", 1.0)  # gemma4 shrinks its input
    for name, tensor in _parameters_and_buffers(router):
        if name == "tid2eid":  # hash routing: each token id has its own K experts
            scores = torch.rand(tensor.shape[0], router.num_experts)
            tensor.copy_(scores.topk(tensor.shape[1], dim=-1).indices)
        elif tensor.ndim == 2:
            tensor.normal_(std=gain / math.sqrt(tensor.shape[1]))
            # What all inputs have in common (the mean of an activation) must not choose the expert.
            tensor.sub_(tensor.mean(dim=1, keepdim=True))
        elif name.endswith("bias"):
            tensor.normal_(std=SELECTION_BIAS_STD)
        elif name.endswith("scale"):  # per expert, global, of the previous layer's router state
            tensor.uniform_(0.7, 1.4)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The same numbers rounded to `dtype`, except for what loading in `dtype` keeps in float32."""
    kept = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    names = "|".join(re.escape(name) for name in sorted(kept))
    is_kept = re.compile(rf"(?:^|\.)(?:{names})(?:\.|$)" if names else r"(?!)")
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(model.config, dtype=dtype).state_dict()
    for path, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(
                torch.float32 if is_kept.search(path) else built[path].dtype
            )
    model.config.dtype = dtype
    return model


def _parameters_and_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
