"""Which token ids an expert serves: the ones beyond their share, and how far it belongs to few.

Counts come from the token-id tables of a run; how repeatable they are comes from two halves of its
sampled documents. It knows arrays only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.vocabulary import MIN_TOKEN_COUNT

_HALF_COUNT = MIN_TOKEN_COUNT // 2


class TokenLists(NamedTuple):
    """For each expert the ids with the largest surplus N_{x,e} − N_x·rate_e, longest list ``rows``.

    Arrays (E, rows), −1 and NaN beyond the end of a list. ``ids``; ``counts`` = N_{x,e};
    ``share`` = N_{x,e}/N_e, of the expert's assignments; ``of_token`` = N_{x,e}/N_x, of the id's
    occurrences; ``lift`` = of_token/rate_e, 1 when the expert treats the id like any other.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int64]
    share: NDArray[np.float64]
    of_token: NDArray[np.float64]
    lift: NDArray[np.float64]


class Vocabulary(NamedTuple):
    """How far each expert belongs to few token ids; arrays (E,).

    ``value``: mean over its assignments of N_{x,e}/N_x, for ids seen at least ``min_count`` times:
    of a token id that it serves, the share that it serves. ``null``: the same when the expert
    serves every token at its overall rate, exactly (binomial). ``excess`` = (value − null)/(1 −
    null): 0 by chance, 1 when it serves all occurrences of its ids. ``top_share``: its commonest
    id's share of its assignments. ``half_types``: how many ids make up half of its assignments;
    ``text_half_types``: of the text itself, the same for all experts.
    """

    value: NDArray[np.float64]
    null: NDArray[np.float64]
    excess: NDArray[np.float64]
    top_share: NDArray[np.float64]
    top_id: NDArray[np.int64]
    half_types: NDArray[np.int64]
    text_half_types: int


def top_tokens(
    ids_X: NDArray[np.int64],
    counts_XE: NDArray[np.int64],
    top_k: int,
    rows: int,
    min_count: int = MIN_TOKEN_COUNT,
) -> TokenLists:
    """The ids that each expert serves most beyond its overall rate.

    Args:
        ids_X: token ids.
        counts_XE: how often id x went to expert e.
        top_k: K.
        rows: longest list.
        min_count: an id enters a list when the expert served it at least so often.

    Returns:
        See `TokenLists`.

    Example:
        >>> made = top_tokens(np.array([7, 8]), np.array([[30, 0], [10, 40]]), 1, rows=2)
        >>> made.ids.tolist(), made.share[0, 0].item(), made.lift[0, 0].item()
        ([[7, -1], [8, -1]], 0.75, 2.0)
    """
    times_X = counts_XE.sum(1) / top_k
    total = max(times_X.sum(), 1.0)
    rate_E = counts_XE.sum(0) / total
    surplus = counts_XE - times_X[:, None] * rate_E
    surplus[(counts_XE < min_count) | (surplus <= 0)] = -np.inf
    size = counts_XE.shape[1]
    best = np.argsort(-surplus, axis=0, kind="stable")[:rows].T
    shape = (size, rows)
    ids, counts = np.full(shape, -1, np.int64), np.zeros(shape, np.int64)
    share, of_token, lift = (np.full(shape, np.nan) for _ in range(3))
    for e in range(size):
        kept = best[e][np.isfinite(surplus[best[e], e])]
        n = kept.size
        ids[e, :n], counts[e, :n] = ids_X[kept], counts_XE[kept, e]
        share[e, :n] = counts_XE[kept, e] / max(counts_XE[:, e].sum(), 1)
        of_token[e, :n] = counts_XE[kept, e] / times_X[kept]
        lift[e, :n] = of_token[e, :n] / rate_E[e]
    return TokenLists(ids, counts, share, of_token, lift)


def vocabulary_of_experts(
    ids_X: NDArray[np.int64],
    counts_XE: NDArray[np.int64],
    top_k: int,
    min_count: int = MIN_TOKEN_COUNT,
) -> Vocabulary:
    """How far each expert belongs to few token ids (OLMoE Eq. 8 turned to one expert).

    By chance each occurrence of x goes to e with probability r, so E[N²_{x,e}/N_x] = r(1 − r) +
    N_x·r², and the value is r + (1 − r)·X/N with X ids and N occurrences above the floor.

    Args:
        ids_X: token ids.
        counts_XE: how often id x went to expert e.
        top_k: K.
        min_count: floor on the occurrences of an id.

    Returns:
        See `Vocabulary`; NaN for an expert that served no id above the floor.
    """
    times_X = counts_XE.sum(1) / top_k
    keep = times_X >= min_count
    counts, times = counts_XE[keep].astype(np.float64), times_X[keep]
    own, occurrences = counts.sum(0), max(times.sum(), 1.0)
    rate = own / occurrences
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (counts**2 / times[:, None]).sum(0) / own
        null = np.where(own > 0, rate + (1 - rate) * keep.sum() / occurrences, np.nan)
        excess = (value - null) / (1 - null)
        top_share = counts_XE.max(0, initial=0) / counts_XE.sum(0)
    top = counts_XE.argmax(0) if len(ids_X) else np.zeros(counts_XE.shape[1], np.int64)
    return Vocabulary(
        value=value,
        null=null,
        excess=np.where(null < 1 - 1e-12, excess, np.nan),
        top_share=top_share,
        top_id=ids_X[top] if len(ids_X) else np.full(counts_XE.shape[1], -1),
        half_types=_half_types(counts_XE),
        text_half_types=int(_half_types(times_X[:, None])[0]) if len(ids_X) else 0,
    )


def _half_types(counts_XM: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.int64]:
    """How many rows, largest first, make up half of each column."""
    descending = -np.sort(-counts_XM, axis=0)
    reached = np.cumsum(descending, axis=0) >= counts_XM.sum(0) / 2
    found: NDArray[np.int64] = np.where(counts_XM.sum(0) > 0, reached.argmax(0) + 1, 0)
    return found


def list_overlap(
    ids_X: NDArray[np.int64], halves_XE: list[NDArray[np.int64]], top_k: int, rows: int
) -> NDArray[np.float64]:
    """Share of an expert's token list that two halves of the documents agree on, (E,).

    Each half makes its own list of up to ``rows`` ids, with half the minimum count;
    |A ∩ B| / min(|A|, |B|). NaN where a half has fewer than 3 ids.
    """
    made = [top_tokens(ids_X, c, top_k, rows, _HALF_COUNT).ids for c in halves_XE]
    out = np.full(halves_XE[0].shape[1], np.nan)
    for e in range(out.size):
        a, b = (set(m[e][m[e] >= 0].tolist()) for m in made)
        if min(len(a), len(b)) >= 3:
            out[e] = len(a & b) / min(len(a), len(b))
    return out
