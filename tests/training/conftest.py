"""A tiny recipe and tiny text, small enough to train in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.saved import tiny_tokenizer, write_corpus

BASE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "data": {"context": 16, "heldout_share": 0.3, "heldout_tokens": 64},
    "model": {
        "architecture": "olmoe",
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_experts": 8,
        "top_k": 2,
        "initializer_range": 0.1,
    },
    "balance": {"load_balancing": 0.01, "router_z": 0.001},
    "train": {
        "steps": 6, "sequences": 2, "micro_batches": 3, "precision": "float32", "warmup": 0.2,
    },
    "run": {"log_every": 2, "evaluate_every": 3, "workers": 2},
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class RecipeWriter:
    """Writes a variation of the tiny recipe; ``writer(router={"kind": "switch"}, …)``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text = write_corpus(folder / "texts.jsonl", documents_per_domain=30)
        tiny_tokenizer().save_pretrained(folder / "tokenizer")
        self.count = 0

    def __call__(self, **changes: Any) -> Path:
        here = {"data": {"train": "texts.jsonl"}, "tokenizer": {"path": "tokenizer"}}
        self.count += 1
        path = self.folder / f"recipe-{self.count}.yaml"
        path.write_text(yaml.safe_dump(merged(merged(BASE, here), changes)), encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def write_recipe(tmp_path_factory: pytest.TempPathFactory) -> RecipeWriter:
    return RecipeWriter(tmp_path_factory.mktemp("lab"))
