"""Tables about tokens and sequences: vocabulary, information, repetition, routes, loss.

See `moescope.metrics.expert_tables` for how these functions are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.agreement import entropy_bits, unseen_entropy
from moescope.metrics.chance import share_any
from moescope.metrics.information import SampledText, layer_information, previous_tokens
from moescope.metrics.rates import rate_interval
from moescope.metrics.view import ALL, Layer, PhaseView, Rows
from moescope.metrics.vocabulary import MIN_TOKEN_COUNT
from moescope.metrics.vocabulary import token_overlap as overlap
from moescope.metrics.vocabulary import vocabulary_specialization as vocabulary
from moescope.run.aggregates import unpack

__all__ = [
    "domain_loss",
    "expert_tokens",
    "information",
    "path_entropy",
    "paths",
    "repetition",
    "token_overlap",
    "vocabulary_specialization",
]

_KINDS = {"input": "input", "predicted": "pred", "next": "next"}


def vocabulary_specialization(view: PhaseView) -> Rows:
    """Do token ids belong to single experts? By input, predicted, and actual next token.

    value: mean over tokens of the largest N_{x,e}/N_x, for token ids seen at least min_count times;
    null: the same when every expert serves each token id at its overall rate;
    excess = (value − null)/(1 − null). types, tokens, covered: what the floor left.
    """
    rows = Rows()
    for layer in view.layers:
        for kind, key in _KINDS.items():
            _, counts_XE = view.token_counts(key, layer)
            if not len(counts_XE):
                continue
            made = vocabulary(counts_XE, layer.top_k, view.seed)
            rows.add(
                layer=layer.layer_idx,
                kind=kind,
                **made._asdict(),
                min_count=MIN_TOKEN_COUNT,
                chance=layer.top_k / layer.num_experts,
            )
    return rows


def expert_tokens(view: PhaseView) -> Rows:
    """The token ids that each expert serves most, against its overall rate.

    Up to 10 per layer, expert and kind, by the surplus N_{x,e} − N_x·rate_e. share = N_{x,e}/N_x;
    rate: how often the expert serves any token; only ids seen at least min_count times.
    """
    rows = Rows()
    for layer in view.layers:
        for kind, key in _KINDS.items():
            ids, counts_XE = view.token_counts(key, layer)
            if not len(ids):
                continue
            times = counts_XE.sum(1) // layer.top_k
            rate = counts_XE.sum(0) / max(int(times.sum()), 1)
            surplus = counts_XE - times[:, None] * rate
            surplus[times < MIN_TOKEN_COUNT] = -np.inf
            for e in range(layer.num_experts):
                best = np.argsort(-surplus[:, e], kind="stable")[:10]
                best = best[surplus[best, e] > 0]
                rows.add(
                    layer=layer.layer_idx,
                    kind=kind,
                    expert=e,
                    rank=list(range(best.size)),
                    token_id=ids[best],
                    token=[view.run.token_text(i) for i in ids[best]],
                    count=counts_XE[best, e],
                    share=counts_XE[best, e] / times[best],
                    rate=float(rate[e]),
                    min_count=MIN_TOKEN_COUNT,
                )
    return rows


def token_overlap(view: PhaseView) -> Rows:
    """Do two experts serve the same input tokens?

    jaccard: |V_i ∩ V_j| / |V_i ∪ V_j| of the sets of token ids that went to each at least min_count
    times, i < j; chance: the same when each expert serves every token id at its overall rate.
    """
    rows = Rows()
    for layer in view.layers:
        _, counts_XE = view.token_counts("input", layer)
        if not len(counts_XE):
            continue
        jaccard, chance = overlap(counts_XE, layer.top_k)
        i, j = np.triu_indices(layer.num_experts, 1)
        rows.add(
            layer=layer.layer_idx,
            expert_i=i,
            expert_j=j,
            jaccard=jaccard[i, j],
            chance=chance[i, j],
            min_count=MIN_TOKEN_COUNT,
        )
    return rows


def information(view: PhaseView) -> Rows:
    """Domain or token? Bits that an expert carries about each, beyond chance.

    i_expert_domain_bits, i_expert_token_bits; i_expert_domain_given_token_bits: about the domain
    once the token id is known; i_expert_domain_given_pair_bits: once the previous token's id is
    known too. Each is (raw − null)/(ceiling − null)·ceiling, with a 95 % interval over documents
    (_low, _high), and beside it _raw as counted, _null the mean of 30 shuffled copies, _most what
    complete knowledge would give on this text, and _p. shared_tokens, shared_pairs: share of the
    tokens whose id, or whose id and previous id, occur in two domains; only they can tell of a
    domain beyond it. max_bits = H(E) − log₂ K bounds all of them. From the token sample, whose
    size is in tokens and documents (tokens of unknown id are left out); absent when the run kept
    aggregates only.
    """
    rows = Rows()
    sample = view.tokens
    named = None if sample is None else sample.token_id >= 0
    if sample is None or named is None or not named.any():
        return rows
    token_id, domain, doc, window, position = (
        a[named] for a in (sample.token_id, sample.domain, sample.doc, sample.window, sample.pos)
    )
    previous = previous_tokens(token_id, doc, window, position)
    text = SampledText(token_id, domain, doc, previous)
    for layer in view.layers:
        made = layer_information(
            sample.ids[layer.layer_idx][named], text, layer.num_experts, view.seed
        )
        values: dict[str, object] = {}
        for name, bits in zip(made._fields[:4], made[:4], strict=True):
            values[f"i_{name}_bits"] = bits.corrected
            for part in ("low", "high", "raw", "null", "most", "p"):
                values[f"i_{name}_{part}"] = getattr(bits, part)
        rows.add(
            layer=layer.layer_idx,
            tokens=int(doc.size),
            documents=int(np.unique(doc).size),
            shared_tokens=text.shared_tokens,
            shared_pairs=text.shared_pairs,
            **values,
            max_bits=made.max_bits,
        )
    return rows


def repetition(view: PhaseView) -> Rows:
    """Do neighbouring tokens go to the same expert? With 95 % intervals over documents.

    first: share of neighbouring pairs with the same first choice, chance 1/E; first_by_load: what
    independent tokens with these loads would give. any: share with any expert in common, chance
    1 − C(E−K, K)/C(E, K). What concerns first choices is NaN where an imported run does not know
    their order.
    """
    rows = Rows()
    pairs_N = view.arrays["cluster_pairs"].astype(np.int64)
    for layer in view.layers:
        same_N2 = _same_neighbours(view, layer)
        for name, mask, _ in view.groups():
            pairs = int(pairs_N[mask].sum())
            if pairs == 0:
                continue
            share = same_N2[mask].sum(0) / pairs
            ends = rate_interval(same_N2[mask], pairs_N[mask], families=[1, 1])
            first = view.by_domain("first_counts", layer, name)
            rows.add(
                layer=layer.layer_idx,
                domain=name,
                pairs=pairs,
                first=float(share[0]),
                first_low=float(ends.low[0]),
                first_high=float(ends.high[0]),
                first_chance=1 / layer.num_experts,
                first_by_load=float(((first / first.sum()) ** 2).sum()),
                any=float(share[1]),
                any_low=float(ends.low[1]),
                any_high=float(ends.high[1]),
                any_chance=share_any(layer.num_experts, layer.top_k),
            )
    return rows


def _same_neighbours(view: PhaseView, layer: Layer) -> NDArray[np.float64]:
    """Pairs with the same first choice (NaN where the order is not known), and with any in common.

    Returns:
        (N, 2), by document cluster.
    """
    if "order" not in view.absent:
        known: NDArray[np.float64] = view.arrays["cluster_repetition"][:, layer.slot].astype(float)
        return known
    shared = view.arrays["cluster_shared"][:, layer.slot].astype(float)
    return np.stack([np.full(shared.shape, np.nan), shared], axis=1)


def paths(view: PhaseView) -> Rows:
    """The route of each document: in every MoE layer the expert with the most gate mass.

    path: expert indices from the first traced layer to the last. Prefill only.
    """
    rows = Rows()
    if view.phase != "prefill":
        return rows
    table = view.run.documents
    routes = ["-".join(map(str, p)) for p in table["path"].to_pylist()]
    rows.add(
        doc=table["doc"].to_pylist(),
        domain=table["domain"].to_pylist(),
        tokens=table["tokens"].to_pylist(),
        loss=[float("nan") if v is None else v for v in table["loss"].to_pylist()],
        path=routes,
    )
    return rows


def path_entropy(view: PhaseView) -> Rows:
    """How varied the first-choice routes of tokens through all layers are, by domain.

    distinct: different routes among tokens; entropy_bits as counted and entropy_corrected_bits
    (Miller–Madow), at most max_bits = log₂ tokens. Where distinct is close to tokens, both say
    little more than that nearly every route is new.
    """
    rows = Rows()
    counter = view.run.aggregates(view.phase).sparse["paths"]
    owner = counter.keys >> 44
    for name, _, _ in view.groups():
        if name == ALL:
            merged = counter.keys & ((1 << 44) - 1)
            index = np.unique(merged, return_inverse=True)[1]
            counts = np.bincount(index.reshape(-1), counter.counts).astype(np.int64)
        else:
            counts = counter.counts[slice(*np.searchsorted(owner, [d := view.places[name], d + 1]))]
        if counts.sum() == 0:
            continue
        plain, corrected = entropy_bits(counts)
        rows.add(
            domain=name,
            tokens=int(counts.sum()),
            distinct=int(counts.size),
            entropy_bits=plain,
            entropy_corrected_bits=corrected,
            max_bits=float(np.log2(counts.sum())),
        )
    return rows


def domain_loss(view: PhaseView) -> Rows:
    """How well the model predicts each domain: mean loss in nats per token.

    unigram: what the best model gives that knows nothing but how often each token occurs in such
    text: the entropy of the tokens within the token budget, by the estimate of Chao and Shen 2003.
    Experts of a domain that the model hardly predicts better than that say little about the domain.
    Absent with --no-predictions.
    """
    rows = Rows()
    nll = view.arrays["nll"].astype(np.float64)
    for name, _, tokens in view.groups():
        total, scored = nll.sum(0) if name == ALL else nll[view.places[name]]
        if scored:
            rows.add(
                domain=name,
                tokens=tokens,
                scored=int(scored),
                loss=float(total / scored),
                unigram=_unigram(view, name),
            )
    return rows


def _unigram(view: PhaseView, group: str) -> float:
    """Entropy of the tokens of a domain or of all, in nats."""
    layer = view.layers[0]
    counter = view.run.aggregates(view.phase).sparse[f"input_{layer.layer_idx}"]
    domain, token, _ = unpack(counter.keys)
    own = np.ones(domain.size, np.bool_) if group == ALL else domain == view.places[group]
    index = np.unique(token[own], return_inverse=True)[1].reshape(-1)
    return unseen_entropy(np.bincount(index, counter.counts[own]) / layer.top_k)
