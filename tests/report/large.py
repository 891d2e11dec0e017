"""A run of any size made of invented tables, for what only large models show: bounds and speed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from moescope.run.aggregates import AggregateShape
from moescope.run.reader import TokenRows


class InventedRun:
    """Answers what `report_data` asks of a run. Every 50th cell passes q < 0.05."""

    def __init__(self, layers: int, experts: int, top_k: int, domains: int) -> None:
        self.shape = AggregateShape(
            layers=tuple(range(1, layers + 1)),
            num_experts=(experts,) * layers,
            top_k=(top_k,) * layers,
            token_budget=1000,
        )
        self.domains = [f"domain number {d} with a rather long name" for d in range(domains)]
        self.groups = ["all", *self.domains]
        self.phases = ["prefill"]
        self.path = Path("large")
        self.rng = np.random.default_rng(0)
        self.manifest = SimpleNamespace(
            model={
                "name": "lab/large",
                "model_type": "olmoe",
                "total_params": 1,
                "active_params": 1,
                "dtype": "float32",
                "stored_dtype": "float32",
            },
            corpus={"path": "texts.jsonl"},
            options={"predictions": True, "layers": None, "seed": 0},
            progress={"tokens": 1000, "domain_tokens": dict.fromkeys(self.domains, 100)},
            coverage={
                "routers_seen": layers,
                "routers_expected": layers,
                "tokens_per_router": 1000,
            },
            versions={},
            source={},
            created="",
            sample=object(),
        )
        names = [d for d in self.domains for _ in range(40)]
        self.documents = pa.table({"domain": names, "tokens": [100] * len(names)})

    def token_text(self, token_id: int) -> str:
        return f"token{token_id}"

    def table(self, name: str) -> pa.Table:
        columns = getattr(self, f"_{name}", dict)()
        if not columns:
            return pa.table({"phase": pa.array([], pa.string())})
        size = max(len(v) for v in columns.values() if isinstance(v, list | np.ndarray))
        full = {
            k: v if isinstance(v, list | np.ndarray) else [v] * size for k, v in columns.items()
        }
        return pa.table({"phase": ["prefill"] * size, **full})

    def _cells(self, groups: list[str]) -> dict[str, Any]:
        """layer, expert and domain of every row, in the order of the real tables."""
        layers, experts = len(self.shape.layers), self.shape.num_experts[0]
        return {
            "layer": np.repeat(self.shape.layers, experts * len(groups)),
            "expert": np.tile(np.arange(experts), layers * len(groups)),
            "domain": np.tile(np.repeat(groups, experts), layers).tolist(),
        }

    def _load(self) -> dict[str, Any]:
        cells = self._cells(self.groups)
        rate = self.rng.random(len(cells["layer"]))
        return {
            **cells, "tokens": 1000, "count": (rate * 1000).astype(int), "activation_rate": rate,
            "activation_chance": self.shape.top_k[0] / self.shape.num_experts[0],
            "ci_low": rate * 0.9, "ci_high": rate * 1.1,
        }  # fmt: skip

    def _domain_specialization(self) -> dict[str, Any]:
        cells = self._cells(self.domains)
        size = len(cells["layer"])
        value = self.rng.random(size)
        q = np.where(np.arange(size) % 50 == 0, 0.01, 0.5)
        return {
            **cells, "tokens": 100, "value": value, "chance": 0.1, "others": 0.5,
            "lift_over_others": value * 2, "ci_low": value * 0.9, "ci_high": value * 1.1,
            "lift_low": value, "lift_high": value * 3, "p": q, "q": q, "p_max": q, "by_token": 0.5,
            "beyond_token": value - 0.5, "on_shared": value, "shared_tokens": 0.9,
        }  # fmt: skip

    def _coactivation(self) -> dict[str, Any]:
        """Pairs of the first layer only: those of all would take gigabytes."""
        i, j = np.nonzero(~np.eye(self.shape.num_experts[0], dtype=bool))
        return {
            "layer": self.shape.layers[0], "expert_i": i, "expert_j": j, "count": i + j,
            "p_j_given_i": 0.1, "lift": self.rng.random(i.size) * 3, "chance": 0.1,
            "lift_chance": 0.95,
        }  # fmt: skip

    def _expert_tokens(self) -> dict[str, Any]:
        layers, experts = len(self.shape.layers), self.shape.num_experts[0]
        size = 3 * layers * experts * 10
        return {
            "layer": np.tile(np.repeat(self.shape.layers, experts * 10), 3),
            "kind": np.repeat(["input", "predicted", "next"], size // 3).tolist(),
            "expert": np.tile(np.repeat(np.arange(experts), 10), 3 * layers),
            "rank": np.tile(np.arange(10), 3 * layers * experts),
            "token_id": self.rng.integers(0, 50_000, size),
            "count": self.rng.integers(10, 99, size),
            "share": self.rng.random(size), "rate": 0.1, "min_count": 10,
        }  # fmt: skip

    def tokens(self, phase: str = "prefill") -> TokenRows:
        per_domain, top_k = 1000, self.shape.top_k[0]
        size = per_domain * len(self.domains)
        domain = np.repeat(np.arange(len(self.domains)), per_domain)
        none = np.full(size, -1)
        experts = self.shape.num_experts[0]
        return TokenRows(
            doc=domain, domain=domain, window=np.zeros(size, int), pos=np.arange(size),
            token_id=self.rng.integers(0, 50_000, size), next_id=none, pred_id=none,
            nll=np.full(size, np.nan, np.float32),
            ids={n: self.rng.integers(0, experts, (size, top_k)) for n in self.shape.layers},
            weights={n: self.rng.random((size, top_k), np.float32) for n in self.shape.layers},
            entropy={n: self.rng.random(size, np.float32) for n in self.shape.layers},
            doc_names=[f"document {d}" for d in range(len(self.domains))],
        )  # fmt: skip
