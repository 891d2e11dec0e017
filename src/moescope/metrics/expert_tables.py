"""Tables about experts: load, balance, decisiveness, pairs, specialization, committee.

Every function takes a `PhaseView` and gives columns; its docstring says what they mean, and is
what ``moescope table RUN --about`` and the reference show. Definitions live in the modules
beside this one; here they only meet the axes of a run.
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
from moescope.metrics.view import ALL, PhaseView, Rows
from moescope.run.aggregates import (
    DECISIVENESS,
    HISTOGRAMS,
    LOGIT_EDGES,
    PROB_EDGES,
    WEIGHT_EDGES,
)

__all__ = [
    "balance_table",
    "coactivation",
    "committee_table",
    "decisiveness",
    "domain_distance",
    "domain_specialization",
    "flow",
    "histograms",
    "load",
]


MAX_PAIR_ROWS = 3_000_000
"""Rows of the table of pairs of domains."""


def load(view: PhaseView) -> Rows:
    """How often each expert is used, by domain.

    tokens: counted tokens of the domain. count: tokens that chose the expert. load = count/(T·K),
    sums to 1 over a layer; chance = 1/E. activation_rate = count/T, chance activation_chance = K/E,
    with a 95 % interval (ci_low, ci_high) over documents. gate_mass: mean weight over
    all T tokens, 0 where not chosen. first_share: share of tokens whose first choice it is,
    chance 1/E. Both are NaN where an imported run does not know weights, or their order.
    """
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


def balance_table(view: PhaseView) -> Rows:
    """How evenly a layer spreads its tokens over experts, by domain.

    cv: standard deviation over mean of the counts, experts with no token included; cv_chance: what
    even random routing of as many tokens gives. gini, max_over_mean, entropy = H(load)/log E.
    dead_share, cold_share: experts below 0.1 % and 0.5 % of the assignments; read them with the
    token count beside them.
    """
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


def decisiveness(view: PhaseView) -> Rows:
    """How sure the router is, by domain; each figure with a 95 % interval over documents.

    router_entropy = H(p)/log E over all experts, 1 when undecided. topk_entropy = H(chosen weights,
    renormalised)/log K. topk_mass: probability of the chosen, chance K/E. margin_first: first minus
    second probability. margin_kth: least chosen minus best not chosen; negative where a selection
    bias or group limit overruled the probabilities.
    """
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


def histograms(view: PhaseView) -> Rows:
    """Histograms of router logits, probabilities, and renormalised top-k weights.

    count of values with low ≤ value < high; the outermost bins are open (low −inf or high inf).
    Logits and probabilities count every expert of every token, weights the K chosen ones.
    """
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


def coactivation(view: PhaseView) -> Rows:
    """Pairs of experts in one token's top-K, all ordered pairs.

    count = N_ij. p_j_given_i = N_ij/N_i, chance (K−1)/(E−1). lift = N_ij·T/(N_i·N_j); even random
    routing gives lift_chance, just below 1, because a token's experts differ.
    """
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


def flow(view: PhaseView) -> Rows:
    """How the experts of one MoE layer predict those of the next.

    p = P(next_expert among the K of next_layer | expert among the K of layer); sums to K over
    next_expert. chance: the activation rate of next_expert, which p equals when the layers route
    independently.
    """
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


def domain_specialization(view: PhaseView) -> Rows:
    """Which experts serve a domain more than the other domains.

    value = N_{e,d}/N_d, chance K/E, with a 95 % interval over documents. lift_over_others: value
    over the rate in all other domains, with its interval. p: domain labels permuted over documents,
    two-sided; q: Benjamini–Hochberg over all layers × experts × domains of this table. NaN where a
    domain has fewer than 5 documents. p_max: for a cell chosen because it is the largest of them
    all. by_token: the rate that the domain's token ids alone predict from the other domains;
    on_shared: the rate measured over the same tokens, the shared_tokens share of the domain's (ids
    that other domains have too) within the token budget; beyond_token = on_shared − by_token.
    """
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
            rows.add(
                layer=layer.layer_idx,
                expert=list(range(layer.num_experts)),
                domain=name,
                tokens=int(view.domain_tokens[d]),
                value=made.value[d, cut],
                chance=layer.top_k / layer.num_experts,
                others=made.others[d, cut],
                lift_over_others=made.lift[d, cut],
                ci_low=made.ci_low[d, cut],
                ci_high=made.ci_high[d, cut],
                lift_low=made.lift_low[d, cut],
                lift_high=made.lift_high[d, cut],
                p=made.p[d, cut],
                q=made.q[d, cut],
                p_max=made.p_max[d, cut],
                by_token=baseline.by_token[d],
                beyond_token=baseline.beyond_token[d],
                on_shared=baseline.by_token[d] + baseline.beyond_token[d],
                shared_tokens=float(baseline.shared[d]),
            )
    return rows


def domain_distance(view: PhaseView) -> Rows:
    """How differently two domains use a layer's experts.

    jsd: Jensen–Shannon divergence of the two load distributions over the largest that their
    entropies allow, in [0, 1]. split_half: the same between two random halves of the documents of
    one domain, the mean of both domains and 20 halvings: what two texts of one domain give. A half
    holds half the text, so it errs on the high side; NaN below 5 documents. Of very many domains
    those with most tokens are compared: as many as give 3,000,000 rows over all layers, which are
    1,000 domains at 6 layers, 433 at 32. A note then says how many of how many.
    """
    rows = Rows()
    names = np.asarray(view.domains, dtype=object)
    tokens_C = np.where(names == ALL, 0, view.domain_tokens)
    kept, known = _most_tokens(tokens_C, len(view.layers)), np.count_nonzero(tokens_C)
    if kept.size < known:
        rows.note = f"{kept.size:,} of {known:,} domains are compared, those with most tokens"
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


def committee_table(view: PhaseView) -> Rows:
    """Experts that every domain relies on.

    eci: mean router probability over domains, each weighted the same; domain_share: share of
    domains that have the expert among their K best by it; member: domain_share > 0.8.
    jaccard: mean overlap of the domains' K best, chance jaccard_chance. tokens_used: all counted
    tokens, or the last token of each document.
    """
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
