"""A run of invented counts: no model, no files, and a truth that the test decides."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.metrics.runs import AnalyzedRun
from moescope.run.aggregates import AggregateShape

LAYERS, EXPERTS = (1, 3, 4), 12


class InventedRun(AnalyzedRun):
    """Answers what a selection asks of a run.

    Args:
        counts: tokens of each document that chose each expert, (N, L, E); one choice a token.
        domain: of each document.
        name: of the folder, and the fingerprint of the text.
        absent: what the source did not know, with the reason.
        tokens: what `Run.tokens` gives.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        domain: list[str],
        name: str = "run",
        absent: dict[str, str] | None = None,
        tokens: Any = None,
    ) -> None:
        self.path = Path(name)
        layers, experts = counts.shape[1:]
        self.names = list(dict.fromkeys(domain))
        model = {
            "name": "invented", "config_sha256": "c" * 64, "weights_sha256": "w" * 64,
            "layers": list(LAYERS[:layers]), "moe_layers": list(LAYERS[:layers]),
            "num_experts": [experts] * layers, "top_k": [1] * layers,
            "total_params": 10_000, "active_params": 10_000 - 100 * layers * (experts - 1),
        }  # fmt: skip
        self.manifest: Any = SimpleNamespace(
            model=model, domains=self.names, options={"seed": 0}, source={"absent": absent or {}},
            progress={"fingerprint": name, "tokens": int(counts[:, 0].sum())},
        )  # fmt: skip
        sizes = tuple(LAYERS[:layers]), (experts,) * layers, (1,) * layers
        self.shape = AggregateShape(*sizes)
        self.cluster_domain = np.asarray([self.names.index(d) for d in domain])
        arrays = {"cluster_counts": counts, "cluster_tokens": counts[:, 0].sum(1)}
        self._sums = SimpleNamespace(arrays=arrays)
        ids = [f"{name}-{i}" for i in range(len(domain))]
        self.documents = pa.table({"doc": ids, "domain": domain})
        self._kept = tokens

    @property
    def phases(self) -> list[str]:
        return ["prefill"]

    def aggregates(self, phase: str = "prefill") -> Any:
        return self._sums

    def tokens(self, phase: str = "prefill") -> Any:
        return self._kept


def drawn(
    rng: np.random.Generator, domain: list[str], planted: dict[str, list[tuple[int, int]]]
) -> NDArray[np.int64]:
    """Counts of documents of unlike length that differ from each other as real ones do.

    ``planted``: (layer, expert) that a domain uses three times as often.
    """
    base = rng.dirichlet(np.full(EXPERTS, 2.0), len(LAYERS))
    out = np.zeros((len(domain), len(LAYERS), EXPERTS), np.int64)
    for i, name in enumerate(domain):
        odds = base.copy()
        for layer, expert in planted.get(name, []):
            odds[layer, expert] *= 3
        tokens = int(rng.integers(20, 200))
        for layer in range(len(LAYERS)):
            own = rng.dirichlet(40 * odds[layer] / odds[layer].sum())
            out[i, layer] = rng.multinomial(tokens, own)
    return out
