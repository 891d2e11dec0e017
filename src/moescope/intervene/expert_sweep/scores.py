"""What can be observed of an expert without taking it away: the scores that claim to rank experts.

All are computed from the same plain pass over the same text that importance is measured on, over
its counted tokens. T tokens, of which N_e choose expert e (K experts each); w the weight that was
really multiplied; E_e(x) the expert's output before it. It knows nothing of edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.errors import ModelError
from moescope.measure.expert_sums import ExpertSums, measure_choices
from moescope.measure.head import PlainPass
from moescope.models.anatomy import MoELayer
from moescope.models.expert_calls import ExpertLayer
from moescope.models.loading import LoadedModel

SCORES: dict[str, str] = {
    "load": "share of the layer's choices: N_e / (T·K)",
    "gate_mass": "mean weight over all tokens: Σ w / T",
    "ean_mean": "mean output norm where chosen: Σ ‖E(x)‖ / N_e",
    "ean_sum": "summed output norm: Σ ‖E(x)‖",
    "reap": "mean weighted output norm where chosen: Σ w·‖E(x)‖ / N_e",
    "contribution": "weighted output norm per token: Σ w·‖E(x)‖ / T",
    "lift": "largest rate in one domain over the rate in all others (½ added to every count)",
    "domain_bits": "bits that being chosen tells about the domain: Σ p(d|e)·log₂(p(d|e) / p(d))",
    "router_norm": "norm of the expert's row in the router",
    "weight_norm": "norm of all the expert's weights",
}
"""Column → formula."""

SCORE_NAMES = {name: name.replace("_", " ") for name in SCORES} | {
    "ean_mean": "mean output norm (EAN)",
    "ean_sum": "summed output norm (EAN)",
    "reap": "REAP",
}
"""Column → name in sentences."""

ROUTING_SCORES = ("load", "gate_mass", "lift", "domain_bits")
"""Those that routing alone gives."""


class ScoreKeeper:
    """Adds up what scores need, batch by batch.

    ``domain_of_window`` (W,): index of the domain of each window, of ``num_domains``.

    Attributes:
        notes: scores that this architecture does not have, in words.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[MoELayer],
        domain_of_window: NDArray[np.int64],
        num_domains: int,
    ) -> None:
        self._loaded, self._layers = loaded, layers
        self._domain_of, self._num_domains = domain_of_window, num_domains
        self.notes: list[str] = []

    def observe(self, plain: PlainPass) -> dict[str, Any]:
        """Sums over one batch, as JSON: tokens by domain, and of each layer four sums by expert."""
        row, column = np.nonzero(plain.batch.counted)
        domain = self._domain_of[plain.batch.rows[row]]
        flat = torch.as_tensor(row * plain.shape[1] + column, device=plain.rows.device)
        sums = {m.layer_idx: self._layer_sums(plain, m, flat, domain) for m in self._layers}
        tokens = np.bincount(domain, minlength=self._num_domains)
        return {"tokens": tokens.tolist(), "layers": sums}

    def _layer_sums(
        self, plain: PlainPass, layer: MoELayer, flat: torch.Tensor, domain: NDArray[np.int64]
    ) -> dict[str, Any]:
        hidden, routing = plain.seen[layer.layer_idx]
        call = ExpertLayer(self._loaded.model, layer)
        sums = ExpertSums.zeros(self._num_domains, layer.num_experts)
        chosen = (routing.topk_ids[flat], routing.topk_weights[flat])
        sums.add(domain, measure_choices(call, hidden[flat], *chosen))
        total = sums.total()
        return {
            "counts": sums.chosen.tolist(),
            "mass": total.weight.tolist(),
            "norm": total.output.tolist(),
            "weighted": total.added.tolist(),
        }

    def scores(self, observed: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """All scores of every layer, each (E,), and the choices behind them as ``chosen``.

        NaN: an expert that was never chosen has no mean; one domain alone gives no lift and no
        bits; a family without router rows or stacked weights has no norms (see ``notes``).
        """
        tokens_C = np.sum([o["tokens"] for o in observed], axis=0)
        out = {}
        for layer in self._layers:
            parts = [o["layers"][str(layer.layer_idx)] for o in observed]
            counts_CE, *others = (
                np.sum([p[name] for p in parts], axis=0)
                for name in ("counts", "mass", "norm", "weighted")
            )
            sums, tokens = ExpertSums(counts_CE.sum(0), *others), int(tokens_C.sum())
            _, ean, reap = sums.means()
            out[layer.layer_idx] = {
                "chosen": sums.chosen,
                "load": sums.chosen / max(1, sums.chosen.sum()),
                "gate_mass": sums.weight / tokens,
                "ean_mean": ean,
                "ean_sum": sums.output,
                "reap": reap,
                "contribution": sums.added / tokens,
                "lift": largest_lift(counts_CE, tokens_C),
                "domain_bits": domain_bits(counts_CE, tokens_C),
                **self._norms(layer),
            }
        return out

    def _norms(self, layer: MoELayer) -> dict[str, NDArray[np.float64]]:
        call = ExpertLayer(self._loaded.model, layer)
        made = {}
        for name, norms in (("router_norm", _router_norms), ("weight_norm", _weight_norms)):
            try:
                made[name] = norms(call)
            except ModelError as error:
                made[name] = np.full(layer.num_experts, np.nan)
                self.notes.append(f"No {name} in layer {layer.layer_idx}: {error}.")
        return made


def _router_norms(call: ExpertLayer) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = call.router_rows().float().norm(dim=-1).cpu().double().numpy()
    return norms


def _weight_norms(call: ExpertLayer) -> NDArray[np.float64]:
    squares = sum(t.float().flatten(1).square().sum(1).cpu().double() for _, t in call.weights())
    return np.sqrt(np.asarray(squares, np.float64))


def largest_lift(counts_CE: NDArray[np.int64], tokens_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest, over domains, of the rate inside over the rate in all other domains, (E,).

    ((c_d + ½) / (T_d + 1)) / ((c − c_d + ½) / (T − T_d + 1)); the halves keep rare experts finite.
    1 without specialization. NaN with one domain.
    """
    if tokens_C.size < 2:
        return np.full(counts_CE.shape[1], np.nan)
    inside = (counts_CE + 0.5) / (tokens_C + 1)[:, None]
    outside = (counts_CE.sum(0) - counts_CE + 0.5) / (tokens_C.sum() - tokens_C + 1)[:, None]
    best: NDArray[np.float64] = (inside / outside).max(0)
    return best


def domain_bits(counts_CE: NDArray[np.int64], tokens_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Kullback–Leibler divergence of the expert's mix of domains from that of the text, (E,) bits.

    0: chosen by all domains alike; at most log₂ of one over the share of the smallest domain. NaN
    for an expert that was never chosen, and with one domain. Not corrected for few choices.
    """
    if tokens_C.size < 2:
        return np.full(counts_CE.shape[1], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        mix = counts_CE / counts_CE.sum(0)
        terms = mix * np.log2(mix / (tokens_C / tokens_C.sum())[:, None])
    bits: NDArray[np.float64] = np.where(mix == 0, 0.0, terms).sum(0)
    return bits
