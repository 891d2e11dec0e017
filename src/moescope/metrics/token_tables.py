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
from moescope.metrics.table import Column, table
from moescope.metrics.view import ALL, Layer, PhaseView, Rows
from moescope.metrics.vocabulary import MIN_TOKEN_COUNT
from moescope.metrics.vocabulary import token_overlap as overlap
from moescope.metrics.vocabulary import vocabulary_specialization as vocabulary
from moescope.run.aggregates import unpack

_KINDS = {"input": "input", "predicted": "pred", "next": "next"}


@table(
    "vocabulary_specialization",
    columns={
        "kind": Column("which token: input, predicted, or the actual next", key=True),
        "value": Column(
            "mean over tokens of the largest N_{x,e}/N_x, for token ids seen at least min_count "
            "times",
            chance="null",
        ),
        "null": Column(
            "value when every expert serves each token id at its overall rate", of="value"
        ),
        "excess": Column("(value − null)/(1 − null)", chance="0"),
        "chance": Column("K/E, the least that value can be", of="value"),
        "covered": "their share of all tokens",
        "types": "token ids that the floor left",
        "tokens": "their occurrences",
        "min_count": "the floor",
    },
    concept="vocabulary",
    needs="tokens",
)
def vocabulary_specialization(view: PhaseView) -> Rows:
    """Do token ids belong to single experts? By input, predicted, and actual next token."""
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


@table(
    "expert_tokens",
    columns={
        "kind": Column("which token: input, predicted, or the actual next", key=True),
        "token": Column("its text", key=True),
        "share": Column("N_{x,e}/N_x", chance="rate"),
        "rate": Column("how often the expert serves any token", of="share"),
        "count": "N_{x,e}: how often it went to the expert",
        "rank": Column("from 0, by the surplus N_{x,e} − N_x·rate", small=True),
        "token_id": "the token",
        "min_count": "token ids seen less often are left out",
    },
    concept="vocabulary",
    needs="tokens",
)
def expert_tokens(view: PhaseView) -> Rows:
    """The token ids that each expert serves most, against its overall rate.

    Up to 10 per layer, expert and kind.
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


@table(
    "token_overlap",
    columns={
        "expert_i": Column("one expert", key=True),
        "expert_j": Column("the other, i < j", key=True),
        "jaccard": Column(
            "|V_i ∩ V_j| / |V_i ∪ V_j| of the sets of token ids that went to each at least "
            "min_count times",
            chance="the column chance",
        ),
        "chance": Column(
            "jaccard when each expert serves every token id at its overall rate", of="jaccard"
        ),
        "min_count": "the floor",
    },
    concept="vocabulary",
    needs="tokens",
)
def token_overlap(view: PhaseView) -> Rows:
    """Do two experts serve the same input tokens?"""
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


_ABOUT = {
    "expert_domain_given_token": "what the expert carries about the domain once the token id is "
    "known",
    "expert_domain_given_pair": "about it once the previous token's id is known too",
    "expert_token": "about the token id",
    "expert_domain": "about the domain",
}
_PARTS = {
    "bits": Column("(raw − null)/(ceiling − null)·ceiling", "bits", chance="0"),
    "low": Column("lower end of its 95 % interval over documents", "bits"),
    "high": Column("upper end of it", "bits"),
    "raw": Column("as counted", "bits", chance="null"),
    "null": Column("mean of 30 shuffled copies", "bits"),
    "most": Column("the ceiling: what complete knowledge would give on this text", "bits"),
    "p": Column("p against the shuffled copies", small=True),
}


def _part(about: str, part: str) -> Column:
    """A column of `information`: a part of what an expert carries about something."""
    column = _PARTS[part]
    of = f"i_{about}_bits" if part in ("low", "high", "p") else ""
    return column._replace(meaning=f"{_ABOUT[about]}: {column.meaning}", of=of)


_HEADLINES, _DETAILS = ("bits", "low", "high", "p"), ("null", "most", "raw")


@table(
    "information",
    columns={
        **{
            f"i_{about}_{part}": _part(about, part)
            for parts in (_HEADLINES, _DETAILS)
            for about in _ABOUT
            for part in parts
        },
        "max_bits": Column("H(E) − log₂ K, which bounds all of them", "bits"),
        "shared_tokens": "share of the tokens whose id occurs in two domains; only they can tell "
        "of a domain beyond it",
        "shared_pairs": "share whose id and previous id occur in two domains",
        "tokens": "tokens of the sample; those of unknown id are left out",
        "documents": "documents of the sample",
    },
    concept="information",
    needs="tokens",
)
def information(view: PhaseView) -> Rows:
    """Domain or token? Bits that an expert carries about each, beyond chance.

    From the token sample; absent when the run kept aggregates only.
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


@table(
    "repetition",
    columns={
        "first": Column(
            "share of pairs with the same first choice; NaN where their order is not known",
            chance="1/E",
            interval=True,
        ),
        "first_chance": Column("1/E", of="first"),
        "first_by_load": Column("what independent tokens with these loads would give", of="first"),
        "any": Column(
            "share of pairs with any expert in common", chance="any_chance", interval=True
        ),
        "any_chance": Column("1 − C(E−K, K)/C(E, K)", of="any"),
        "pairs": "neighbouring pairs of tokens",
    },
    concept="repetition-paths-committee",
    needs="tokens",
)
def repetition(view: PhaseView) -> Rows:
    """Do neighbouring tokens go to the same expert? With 95 % intervals over documents."""
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


@table(
    "paths",
    columns={
        "doc": Column("id of the document", key=True),
        "path": Column(
            "numbers of the experts from the first traced layer to the last", keep=True, words=True
        ),
        "loss": Column("mean loss", "nats per token", small=True),
    },
    concept="repetition-paths-committee",
    needs="weights",
    phases=("prefill",),
)
def paths(view: PhaseView) -> Rows:
    """The route of each document: in every MoE layer the expert with the most gate mass."""
    rows = Rows()
    documents = view.run.documents
    routes = ["-".join(map(str, p)) for p in documents["path"].to_pylist()]
    rows.add(
        doc=documents["doc"].to_pylist(),
        domain=documents["domain"].to_pylist(),
        tokens=documents["tokens"].to_pylist(),
        loss=[float("nan") if v is None else v for v in documents["loss"].to_pylist()],
        path=routes,
    )
    return rows


@table(
    "path_entropy",
    columns={
        "entropy_corrected_bits": Column("by Miller–Madow", "bits"),
        "entropy_bits": Column("as counted", "bits"),
        "max_bits": Column("log₂ tokens, the most that entropy_bits can be", "bits"),
        "distinct": "different routes among tokens; where it is close to tokens, the entropies say "
        "little more than that nearly every route is new",
    },
    concept="repetition-paths-committee",
    needs="order",
)
def path_entropy(view: PhaseView) -> Rows:
    """How varied the first-choice routes of tokens through all layers are, by domain."""
    rows = Rows()
    counter = view.run.aggregates(view.phase).sparse["paths"]
    owner = counter.keys >> 44
    for name, _, _ in view.groups():
        if name == ALL:
            counts = _summed(counter.keys & ((1 << 44) - 1), counter.counts).astype(np.int64)
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


@table(
    "domain_loss",
    columns={
        "loss": Column("mean loss", "nats per token", chance="unigram", small=True),
        "unigram": Column(
            "what the best model gives that knows nothing but how often each token occurs in such "
            "text: the entropy of the tokens within the token budget, by Chao and Shen 2003",
            "nats per token",
            of="loss",
            small=True,
        ),
        "scored": "tokens that were predicted",
    },
    concept="specialization",
)
def domain_loss(view: PhaseView) -> Rows:
    """How well the model predicts each domain: mean loss in nats per token.

    Experts of a domain that the model hardly predicts better than unigram say little about the
    domain. Absent with --no-predictions.
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
    return unseen_entropy(_summed(token[own], counter.counts[own]) / layer.top_k)


def _summed(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The counts of each key that occurs, by ascending key."""
    return np.bincount(np.unique(keys, return_inverse=True)[1], counts).astype(np.float64)
