"""Tables about experts: load, balance, decisiveness, pairs, specialization, committee.

A function takes a `PhaseView` and gives columns; `table` above it says what they mean, which
``moescope table RUN NAME --about`` and the reference show. Definitions live in the modules beside
this one; here they only meet the axes of a run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.agreement import committee, mean_jaccard
from moescope.metrics.balance import balance, cv_by_chance
from moescope.metrics.chance import expected_jaccard
from moescope.metrics.coactivation import coactivation as pair_coactivation
from moescope.metrics.coactivation import flow as layer_flow
from moescope.metrics.intervals import mean_interval
from moescope.metrics.rates import rate_interval
from moescope.metrics.specialization import domain_specialization as specialization
from moescope.metrics.specialization import jensen_shannon_pairs, split_halves, token_baselines
from moescope.metrics.table import Column, table
from moescope.metrics.view import ALL, PhaseView, Rows
from moescope.run.aggregates import (
    DECISIVENESS,
    HISTOGRAMS,
    LOGIT_EDGES,
    PROB_EDGES,
    WEIGHT_EDGES,
)
from moescope.words import counted

MAX_PAIR_ROWS = 3_000_000
"""Rows of the table of pairs of domains."""


@table(
    "load",
    columns={
        "activation_rate": Column("count/tokens", chance="K/E"),
        "ci_low": Column(
            "lower end of activation_rate's 95 % interval over documents", of="activation_rate"
        ),
        "ci_high": Column("upper end of it", of="activation_rate"),
        "activation_chance": Column("K/E", of="activation_rate"),
        "load": Column("count/(tokens·K); sums to 1 over a layer", chance="1/E"),
        "chance": Column("1/E", of="load"),
        "gate_mass": "mean weight over all tokens, 0 where not chosen; NaN where not known",
        "first_share": Column(
            "share of tokens whose first choice it is; NaN where not known", chance="1/E"
        ),
        "count": "tokens that chose the expert",
    },
    concept="load-and-balance",
)
def load(view: PhaseView) -> Rows:
    """How often each expert is used, by domain."""
    rows = Rows()
    for layer in view.layers:
        counts_NE = view.counts(layer)
        for name, mask, tokens in view.groups():
            count = counts_NE[mask].sum(0)
            ends = rate_interval(counts_NE[mask], view.cluster_tokens[mask])
            rows.add(
                layer=layer.layer_idx,
                expert=list(range(layer.num_experts)),
                domain=name,
                tokens=tokens,
                count=count,
                load=count / (tokens * layer.top_k),
                activation_rate=count / tokens,
                gate_mass=view.by_domain("gate_mass", layer, name) / tokens,
                chance=1 / layer.num_experts,
                activation_chance=layer.top_k / layer.num_experts,
                ci_low=ends.low,
                ci_high=ends.high,
                first_share=view.by_domain("first_counts", layer, name) / tokens,
            )
    return rows


@table(
    "balance",
    columns={
        "cv": Column(
            "standard deviation over mean of the counts, experts with no token included",
            chance="cv_chance",
        ),
        "gini": "0 when even, at most 1 − K/E",
        "max_over_mean": "1 when even, at most E/K",
        "entropy": "H(load)/log E, 1 when even",
        "dead_share": "share of experts below 0.1 % of the assignments; read it with tokens",
        "cold_share": "share of experts below 0.5 % of the assignments; read it with tokens",
        "cv_chance": Column("what even random routing of as many tokens gives", of="cv"),
    },
    concept="load-and-balance",
)
def balance_table(view: PhaseView) -> Rows:
    """How evenly a layer spreads its tokens over experts, by domain."""
    rows = Rows()
    for layer in view.layers:
        counts_NE = view.counts(layer)
        for name, mask, tokens in view.groups():
            measured = balance(counts_NE[mask].sum(0))
            rows.add(
                layer=layer.layer_idx,
                domain=name,
                tokens=tokens,
                **measured._asdict(),
                cv_chance=cv_by_chance(tokens, layer.num_experts, layer.top_k),
            )
    return rows


@table(
    "decisiveness",
    columns={
        "router_entropy": Column("H(p)/log E over all experts, 1 when undecided", interval=True),
        "topk_entropy": Column("H(chosen weights, renormalised)/log K", interval=True),
        "topk_mass": Column("probability of the chosen", chance="K/E", interval=True),
        "margin_first": Column("first minus second probability", interval=True),
        "margin_kth": Column(
            "least chosen minus best not chosen; negative where a selection bias or group limit "
            "overruled the probabilities",
            interval=True,
        ),
        "topk_mass_chance": Column("K/E", of="topk_mass"),
    },
    concept="decisiveness",
    needs="weights",
)
def decisiveness(view: PhaseView) -> Rows:
    """How sure the router is, by domain; each figure with a 95 % interval over documents."""
    rows = Rows()
    for layer in view.layers:
        sums_NS = view.arrays["cluster_decisive"][:, layer.slot].astype(np.float64)
        for name, mask, tokens in view.groups():
            mean = sums_NS[mask].sum(0) / tokens
            ends = mean_interval(sums_NS[mask], view.cluster_tokens[mask])
            values: dict[str, object] = {}
            for j, field in enumerate(DECISIVENESS):
                values[field] = float(mean[j])
                values[f"{field}_low"] = float(ends.low[j])
                values[f"{field}_high"] = float(ends.high[j])
            rows.add(
                layer=layer.layer_idx,
                domain=name,
                tokens=tokens,
                **values,
                topk_mass_chance=layer.top_k / layer.num_experts,
            )
    return rows


@table(
    "histograms",
    columns={
        "quantity": Column(
            "logit and probability count every expert of every token, topk_weight the K chosen "
            "ones",
            key=True,
        ),
        "bin": Column("number of the bin", key=True),
        "low": "where the bin begins; −inf for the first",
        "high": "where it ends; inf for the last",
        "count": Column("values with low ≤ value < high", keep=True),
    },
    concept="decisiveness",
    needs="weights",
)
def histograms(view: PhaseView) -> Rows:
    """Histograms of router logits, probabilities, and renormalised top-k weights."""
    rows = Rows()
    edges = {"logit": LOGIT_EDGES, "probability": PROB_EDGES, "topk_weight": WEIGHT_EDGES}
    for layer in view.layers:
        for name, _, tokens in view.groups():
            for j, quantity in enumerate(HISTOGRAMS):
                table = view.arrays["histograms"][:, j, layer.slot]
                counts = table.sum(0) if name == ALL else table[view.places[name]]
                rows.add(
                    layer=layer.layer_idx,
                    domain=name,
                    tokens=tokens,
                    quantity=quantity,
                    bin=list(range(counts.size)),
                    low=np.concatenate([[-np.inf], edges[quantity]]),
                    high=np.concatenate([edges[quantity], [np.inf]]),
                    count=counts,
                )
    return rows


@table(
    "coactivation",
    columns={
        "expert_i": Column("one expert", key=True),
        "expert_j": Column("the other", key=True),
        "lift": Column("N_ij·T/(N_i·N_j)", chance="lift_chance"),
        "lift_chance": Column(
            "lift under even random routing: just below 1, because a token's experts differ",
            of="lift",
        ),
        "p_j_given_i": Column("N_ij/N_i", chance="(K−1)/(E−1)"),
        "chance": Column("(K−1)/(E−1)", of="p_j_given_i"),
        "count": "N_ij: tokens that chose both",
    },
    concept="coactivation",
    needs="tokens",
)
def coactivation(view: PhaseView) -> Rows:
    """Pairs of experts in one token's top-K, all ordered pairs."""
    rows = Rows()
    for layer in view.layers:
        size = layer.num_experts
        counts = view.arrays["coactivation"][layer.slot, :size, :size].astype(np.int64)
        made = pair_coactivation(counts, int(view.domain_tokens.sum()), layer.top_k)
        i, j = np.nonzero(~np.eye(size, dtype=bool))
        rows.add(
            layer=layer.layer_idx,
            expert_i=i,
            expert_j=j,
            count=counts[i, j],
            p_j_given_i=made.p_j_given_i[i, j],
            lift=made.lift[i, j],
            chance=made.chance,
            lift_chance=made.lift_chance,
        )
    return rows


@table(
    "flow",
    columns={
        "next_layer": Column("the next MoE layer", key=True),
        "next_expert": Column("an expert of it", key=True),
        "p": Column(
            "P(next_expert among the K of next_layer | expert among the K of layer); sums to K "
            "over next_expert",
            chance="the activation rate of next_expert",
        ),
        "chance": Column("that rate, which p equals when layers route independently", of="p"),
        "count": "tokens that chose expert here and next_expert there",
    },
    concept="coactivation",
    needs="tokens",
)
def flow(view: PhaseView) -> Rows:
    """How the experts of one MoE layer predict those of the next."""
    rows = Rows()
    for a, b in zip(view.layers[:-1], view.layers[1:], strict=True):
        pairs = view.arrays["flow"][a.slot, : a.num_experts, : b.num_experts].astype(np.int64)
        made = layer_flow(
            pairs, view.counts(a).sum(0), view.counts(b).sum(0), int(view.domain_tokens.sum())
        )
        i, j = np.indices(pairs.shape).reshape(2, -1)
        rows.add(
            layer=a.layer_idx,
            next_layer=b.layer_idx,
            expert=i,
            next_expert=j,
            count=pairs[i, j],
            p=made.p[i, j],
            chance=made.chance[j],
        )
    return rows


@table(
    "domain_specialization",
    columns={
        "value": Column("N_{e,d}/N_d, the rate in the domain", chance="K/E"),
        "chance": Column("K/E", of="value"),
        "ci_low": Column("lower end of value's 95 % interval over documents", of="value"),
        "ci_high": Column("upper end of it", of="value"),
        "q": Column(
            "Benjamini–Hochberg over all layers × experts × domains of this table",
            keep=True,
            small=True,
        ),
        "lift_over_others": Column("value/others", chance="1"),
        "lift_low": Column(
            "lower end of lift_over_others' 95 % interval over documents", of="lift_over_others"
        ),
        "lift_high": Column("upper end of it", of="lift_over_others"),
        "others": "the rate in all other domains",
        "p": Column(
            "domain labels permuted over documents, two-sided; NaN where a domain has fewer than "
            "5 documents",
            small=True,
        ),
        "p_max": Column("for a cell chosen because it is the largest of them all", small=True),
        "by_token": "the rate that the domain's token ids alone predict from the other domains",
        "beyond_token": Column("on_shared − by_token", chance="0"),
        "on_shared": "the rate measured over the tokens that by_token is of",
        "shared_tokens": "share of the domain's tokens whose ids other domains have too, within "
        "the token budget",
    },
    concept="specialization",
)
def domain_specialization(view: PhaseView) -> Rows:
    """Which experts serve a domain more than the other domains."""
    rows = Rows()
    counts = np.concatenate([view.counts(layer) for layer in view.layers], axis=1)
    made = specialization(
        counts,
        view.cluster_tokens,
        view.cluster_domain,
        len(view.domains),
        view.seed,
        families=[layer.num_experts for layer in view.layers],
    )
    start = 0
    for layer in view.layers:
        cut = slice(start, start + layer.num_experts)
        start += layer.num_experts
        baseline = token_baselines(*view.token_counts_by_domain(layer), layer.top_k)
        for d, name in enumerate(view.domains):
            own = {column: values[d, cut] for column, values in made._asdict().items()}
            rows.add(
                layer=layer.layer_idx,
                expert=list(range(layer.num_experts)),
                domain=name,
                tokens=int(view.domain_tokens[d]),
                value=own.pop("value"),
                chance=layer.top_k / layer.num_experts,
                **own,
                by_token=baseline.by_token[d],
                beyond_token=baseline.beyond_token[d],
                on_shared=baseline.by_token[d] + baseline.beyond_token[d],
                shared_tokens=float(baseline.shared[d]),
            )
    return rows


@table(
    "domain_distance",
    columns={
        "domain_a": Column("one domain", key=True),
        "domain_b": Column("the other", key=True),
        "jsd": Column(
            "Jensen–Shannon divergence of the two load distributions over the largest that their "
            "entropies allow, in [0, 1]",
            chance="split_half",
        ),
        "split_half": Column(
            "the same between two random halves of the documents of one domain, the mean of both "
            "domains and 20 halvings; a half holds half the text, so it errs on the high side; NaN "
            "below 5 documents",
            of="jsd",
        ),
    },
    concept="specialization",
)
def domain_distance(view: PhaseView) -> Rows:
    """How differently two domains use a layer's experts.

    Of very many domains those with most tokens are compared: as many as give 3,000,000 rows over
    all layers, which are 1,000 domains at 6 layers, 433 at 32. A note then says how many of how
    many.
    """
    rows = Rows()
    names = np.asarray(view.domains, dtype=object)
    tokens_C = np.where(names == ALL, 0, view.domain_tokens)
    kept, known = _most_tokens(tokens_C, len(view.layers)), np.count_nonzero(tokens_C)
    if kept.size < known:
        rows.note = (
            f"{kept.size:,} of {counted(int(known), 'domain')} are compared, those with most tokens"
        )
    names = names[kept]
    for layer in view.layers:
        counts_NE = view.counts(layer)
        counts_CE = view.sums_by_domain(counts_NE)[kept]
        halves = split_halves(counts_NE, view.cluster_domain, kept, view.rng(4, layer.layer_idx))
        for i, j, jsd in jensen_shannon_pairs(counts_CE / counts_CE.sum(1, keepdims=True)):
            rows.add(
                layer=layer.layer_idx,
                domain_a=names[i],
                domain_b=names[j],
                jsd=jsd,
                split_half=(halves[i] + halves[j]) / 2,
            )
    return rows


def _most_tokens(tokens_C: NDArray[np.int64], num_layers: int) -> NDArray[np.int64]:
    """The domains whose pairs fit into a table: those with most tokens, in their own order."""
    most = int((1 + np.sqrt(1 + 8 * MAX_PAIR_ROWS / num_layers)) / 2)
    known = np.flatnonzero(tokens_C)
    return np.sort(known[np.argsort(-tokens_C[known], kind="stable")[:most]])


@table(
    "committee",
    columns={
        "tokens_used": Column("all counted tokens, or the last token of each document", key=True),
        "eci": "mean router probability over domains, each weighted the same",
        "domain_share": Column(
            "share of domains that have the expert among their K best by eci", chance="K/E"
        ),
        "member": "domain_share > 0.8",
        "jaccard": Column("mean overlap of the domains' K best", chance="jaccard_chance"),
        "jaccard_chance": Column("overlap of random sets of K", of="jaccard"),
        "domains": "number of domains with such tokens",
    },
    concept="repetition-paths-committee",
    needs="weights",
)
def committee_table(view: PhaseView) -> Rows:
    """Experts that every domain relies on."""
    rows = Rows()
    last = view.arrays["last_tokens"].astype(np.float64)
    used = {
        "all": ("prob_sum", view.domain_tokens.astype(np.float64)),
        "last": ("last_prob_sum", last),
    }
    for layer in view.layers:
        for kind, (name, tokens_C) in used.items():
            known = tokens_C > 0
            if not known.any():
                continue
            sums = view.arrays[name][known, layer.slot, : layer.num_experts]
            scores_CE = sums / tokens_C[known, None]
            member = committee(scores_CE, layer.top_k)
            share = member.mean(0)
            rows.add(
                layer=layer.layer_idx,
                tokens_used=kind,
                domains=int(known.sum()),
                expert=list(range(layer.num_experts)),
                eci=scores_CE.mean(0),
                domain_share=share,
                member=(share > 0.8),
                jaccard=mean_jaccard(member),
                jaccard_chance=expected_jaccard(layer.num_experts, layer.top_k),
            )
    return rows
