"""Checkpoints with a real model's shapes and random weights, as the hub has them, for benchmarks.

One file for each decoder layer, bfloat16, one tensor for each expert's matrix. A block of normal
numbers is drawn once and cut at another place for every tensor: what the numbers are does not
matter, that they differ between experts does. With the tokenizer of the shipped model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "olmoe": {
        "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64,
        "num_experts_per_tok": 8, "vocab_size": 50304, "max_position_embeddings": 4096,
    },
    "mixtral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "vocab_size": 32000, "max_position_embeddings": 4096,
        "sliding_window": None,
    },
}  # fmt: skip
"""OLMoE-1B-7B's and Mixtral-8x7B's."""

BLOCK = 1 << 26
STEP = 7919


def config_of(name: str, **changes: Any) -> Any:
    """The configuration of a shape."""
    from transformers import MixtralConfig, OlmoeConfig

    made = OlmoeConfig if name == "olmoe" else MixtralConfig
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return made(**(SHAPES[name] | special | changes))


def stored_bytes(name: str, num_layers: int) -> int:
    """Bytes of the checkpoint with so many layers."""
    return sum(2 * _count(shape) for _, shape in _tensors(config_of(name), num_layers))


def write_checkpoint(folder: Path, name: str, num_layers: int) -> int:
    """Write it; returns its bytes. The disk is asked first.

    Raises:
        SystemExit: the disk has no room for it.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from moescope.demo import MODEL

    total, free = stored_bytes(name, num_layers), shutil.disk_usage(folder.parent).free
    if total + 5e9 > free:
        raise SystemExit(
            f"{folder.parent} has {free / 1e9:.1f} GB free, {total / 1e9:.1f} GB and 5 GB to spare "
            "are needed; give another folder with --folder, or fewer layers"
        )
    folder.mkdir(parents=True)
    config = config_of(name, num_hidden_layers=num_layers)
    config.architectures = ["OlmoeForCausalLM" if name == "olmoe" else "MixtralForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    where: dict[str, str] = {}
    place = 0
    names = list(_tensors(config, num_layers))
    for number in range(-1, num_layers):
        held = {}
        for key, shape in names:
            if _layer_of(key) == number:
                place = (place + STEP) % BLOCK
                held[key] = _cut(block, place, shape) if len(shape) > 1 else torch.ones(shape)
        file = f"model-{number + 2:05d}-of-{num_layers + 1:05d}.safetensors"
        save_file({k: t.bfloat16().contiguous() for k, t in held.items()}, folder / file)
        where |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def _cut(block: Any, place: int, shape: tuple[int, ...]) -> Any:
    import torch

    count, parts = _count(shape), []
    while count > 0:
        part = block[place : place + count]
        parts.append(part)
        count, place = count - len(part), 0
    return torch.cat(parts).view(shape)


def _tensors(config: Any, num_layers: int) -> Any:
    """Names and shapes of the tensors of a published checkpoint."""
    olmoe = config.model_type == "olmoe"
    width, inner = config.hidden_size, config.intermediate_size
    head = width // config.num_attention_heads
    keys = head * config.num_key_value_heads
    experts = config.num_experts if olmoe else config.num_local_experts
    yield "model.embed_tokens.weight", (config.vocab_size, width)
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (config.vocab_size, width)
    block = "mlp" if olmoe else "block_sparse_moe"
    parts = ("gate_proj", "up_proj", "down_proj") if olmoe else ("w1", "w3", "w2")
    for n in range(num_layers):
        at = f"model.layers.{n}."
        for one, size in (("q", width), ("k", keys), ("v", keys)):
            yield f"{at}self_attn.{one}_proj.weight", (size, width)
        yield f"{at}self_attn.o_proj.weight", (width, width)
        if olmoe:
            yield f"{at}self_attn.q_norm.weight", (width,)
            yield f"{at}self_attn.k_norm.weight", (keys,)
        yield f"{at}input_layernorm.weight", (width,)
        yield f"{at}post_attention_layernorm.weight", (width,)
        yield f"{at}{block}.gate.weight", (experts, width)
        for e in range(experts):
            for part, shape in zip(
                parts, ((inner, width), (inner, width), (width, inner)), strict=True
            ):
                yield f"{at}{block}.experts.{e}.{part}.weight", shape


def _layer_of(key: str) -> int:
    return int(key.split(".")[2]) if key.startswith("model.layers.") else -1


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count
