"""Differences of activation rates between two sets of texts: interval, test, and the tokens' part.

The document (or the pair of documents) is the unit of the interval and of the test, as everywhere
(see `moescope.metrics.statistics`). Arrays only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import comb, ldexp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.intervals import MIN_CLUSTERS, Interval, quantile
from moescope.metrics.rates import difference_interval, rate_interval
from moescope.metrics.statistics import permutation_p, permutation_test, permutations_for

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CELLS = 2_000_000


class DocumentCounts(NamedTuple):
    """One set of texts.

    ``counts`` (N, M): tokens of each document that chose each of M experts. ``tokens`` (N,):
    counted tokens of each document.
    """

    counts: Ints
    tokens: Ints

    def take(self, rows: NDArray[np.bool_]) -> DocumentCounts:
        """Some of the documents."""
        return DocumentCounts(self.counts[rows], self.tokens[rows])


class RateDifferences(NamedTuple):
    """Of M experts, each (M,).

    ``rate_with``, ``rate_without``: share of the tokens of each set that chose the expert.
    ``delta``: their difference, −1 to 1; 0 by chance. ``low``, ``high``: its 95 % interval over
    documents. ``p``: two-sided, labels permuted over documents, or swapped within pairs.
    Interval and p are NaN below `MIN_CLUSTERS` documents of either set, p also for an expert that
    no token chose.
    """

    rate_with: Floats
    rate_without: Floats
    delta: Floats
    low: Floats
    high: Floats
    p: Floats


def rate_difference(a: DocumentCounts, b: DocumentCounts) -> Floats:
    """Δ = A₁/N₁ − A₂/N₂ pooled over tokens, (M,); NaN when a set has no token.

    Example: 3 of 4 tokens against 1 of 4.
        >>> one = DocumentCounts(np.array([[1], [2]]), np.array([2, 2]))
        >>> other = DocumentCounts(np.array([[1]]), np.array([4]))
        >>> rate_difference(one, other).tolist()
        [0.5]
    """
    return _rate(a) - _rate(b)


def _rate(side: DocumentCounts) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        rate: Floats = side.counts.sum(0) / np.float64(side.tokens.sum())
    return rate


def compare_rates(
    a: DocumentCounts,
    b: DocumentCounts,
    *,
    paired: bool,
    seed: int = 0,
    families: Sequence[int] | None = None,
) -> RateDifferences:
    """Differences of rates with intervals and tests.

    Args:
        a: the texts with the property.
        b: the texts without it; document n of both belong together when ``paired``.
        paired: compare within pairs and swap within pairs, instead of taking each set on its own
            and permuting labels over all documents.
        seed: of the permutations.
        families: how many of the M experts are in each layer, in order; None: all in one.
    """
    rng = np.random.default_rng(seed)
    ends = _interval(a, b, paired, families)
    rounds = permutations_for(a.counts.shape[1], len(a.tokens) + len(b.tokens))
    p = swap_p(a, b, rng, rounds) if paired else _label_p(a, b, rng, rounds, families)
    p[(a.counts.sum(0) + b.counts.sum(0)) == 0] = np.nan
    return RateDifferences(_rate(a), _rate(b), rate_difference(a, b), ends.low, ends.high, p)


def _usable(a: DocumentCounts, b: DocumentCounts) -> bool:
    return min(int((side.tokens > 0).sum()) for side in (a, b)) >= MIN_CLUSTERS


def _interval(
    a: DocumentCounts, b: DocumentCounts, paired: bool, families: Sequence[int] | None
) -> Interval:
    """Of the difference: from the interval of each rate, or over pairs."""
    if not _usable(a, b):
        return Interval.unknown(a.counts.shape[1])
    apart = difference_interval(
        _rate(a),
        rate_interval(a.counts, a.tokens, families),
        _rate(b),
        rate_interval(b.counts, b.tokens, families),
    )
    if not paired:
        return apart
    found = _paired_interval(a, b)
    # all pairs differ by the same, such as nothing: no proof that others would
    same = found.high - found.low < 1e-12
    return Interval(*(np.where(same, x, y) for x, y in zip(apart, found, strict=True)))


def _paired_interval(a: DocumentCounts, b: DocumentCounts) -> Interval:
    """Student's t over pairs; unlike lengths leave fewer degrees of freedom."""
    left = _scores(a, b, _rate(a), _rate(b))
    weight = a.tokens / a.tokens.sum() + b.tokens / b.tokens.sum()
    count, df = int((weight > 0).sum()), float(weight.sum() ** 2 / (weight**2).sum() - 1)
    step = quantile(df) * np.sqrt(count / (count - 1) * (left**2).sum(0))
    delta = rate_difference(a, b)
    return Interval(np.clip(delta - step, -1, 1), np.clip(delta + step, -1, 1))


def _scores(a: DocumentCounts, b: DocumentCounts, rate_a: Floats, rate_b: Floats) -> Floats:
    """What each pair adds to the difference of rates beyond what its tokens would at given rates.

    (A₁ − r₁·n₁)/N₁ − (A₂ − r₂·n₂)/N₂, (N, M).
    """
    parts = [
        (side.counts - side.tokens[:, None] * rate) / side.tokens.sum()
        for side, rate in ((a, rate_a), (b, rate_b))
    ]
    scores: Floats = parts[0] - parts[1]
    return scores


def _label_p(
    a: DocumentCounts,
    b: DocumentCounts,
    rng: np.random.Generator,
    rounds: int,
    families: Sequence[int] | None,
) -> Floats:
    counts, tokens = np.concatenate([a.counts, b.counts]), np.concatenate([a.tokens, b.tokens])
    side = np.repeat([0, 1], [len(a.tokens), len(b.tokens)])
    p: Floats = permutation_test(counts, tokens, side, 2, rng, rounds, families).p[0]
    return p


def swap_p(a: DocumentCounts, b: DocumentCounts, rng: np.random.Generator, rounds: int) -> Floats:
    """Two-sided p of `rate_difference` when members of each pair may swap places, (M,).

    Each pair adds to the difference of rates its own part: (A₁ − r·n₁)/N₁ − (A₂ − r·n₂)/N₂, with r
    the rate over both sets. Under the null its sign is a coin's; flipping the sign is swapping the
    members, and the lengths stay where they are, so that a side whose texts are longer does not
    look like a difference. All 2ⁿ flips are tried where there are no more than ``rounds``, and then
    p = share of them at least as extreme (the pairs as they are among them); else random ones,
    p = (1 + #) / (1 + rounds). With n pairs p is at least 2/2ⁿ.

    Args:
        a: one member of each pair.
        b: the other.
        rng: random numbers.
        rounds: random flips.

    Returns:
        NaN below `MIN_CLUSTERS` pairs.

    Reference:
        Hemerik, Goeman and Finos 2020, Robust testing in generalized linear models by sign flipping
        score contributions.
    """
    width = a.counts.shape[1]
    if not _usable(a, b):
        return np.full(width, np.nan)
    used = (a.tokens > 0) | (b.tokens > 0)
    a, b = a.take(used), b.take(used)
    n = len(a.tokens)
    exact = n < 62 and 2**n <= rounds
    total = 2**n if exact else rounds
    pooled = (a.counts.sum(0) + b.counts.sum(0)) / (a.tokens.sum() + b.tokens.sum())
    scores = _scores(a, b, pooled, pooled)
    step = int(max(1, min(total, _CELLS // max(width, n))))

    def drawn() -> Iterator[Floats]:
        for start in range(0, total, step):
            size = min(step, total - start)
            if exact:
                flips = (np.arange(start, start + size)[:, None] >> np.arange(n)) & 1
            else:
                flips = rng.integers(0, 2, size=(size, n))
            yield np.abs((1.0 - 2.0 * flips) @ scores)

    return permutation_p(np.abs(scores.sum(0)), drawn(), exact=exact)


def smallest_p(num_with: int, num_without: int, paired: bool, num_tests: int) -> float:
    """The smallest p that so many documents (or pairs) can give, however clear the case."""
    rounds = permutations_for(num_tests, num_with + num_without)
    if paired:
        return max(ldexp(1.0, 1 - num_with), 1 / (1 + rounds))
    ways = comb(num_with + num_without, num_with)
    return max((2 if num_with == num_without else 1) / ways, 1 / (1 + rounds))


class TokenPart(NamedTuple):
    """How much of a difference the token ids explain, over tokens whose id occurs in both sets.

    ``delta_shared`` (E,): the measured difference over these tokens. ``by_token`` (E,): what it
    would be if each expert's activation depended on the token id alone, with the rate of the id
    pooled over both sets. Their difference is what is left beside the mix of tokens. ``shared``:
    share of the tokens of each set that these are.
    """

    delta_shared: Floats
    by_token: Floats
    shared: tuple[float, float]


def token_part(
    tokens: tuple[Ints, Ints], chosen: tuple[NDArray[np.integer], NDArray[np.integer]], width: int
) -> TokenPart:
    """Split the difference of rates in one layer by what token ids predict.

    Σ_x r_x·(P(x | with) − P(x | without)) with r_x the rate of the expert on token id x over both
    sets, x over ids that both have. NaN when no id is shared.

    Args:
        tokens: token ids of both sets, (T₁,) and (T₂,).
        chosen: experts of each token, (T₁, K) and (T₂, K).
        width: E.

    Example: expert 0 follows token 7 and nothing else; the sets only use 7 differently.
        >>> ids = np.array([7, 7, 7, 8]), np.array([7, 8, 8, 8])
        >>> part = token_part(ids, tuple((i == 8).astype(int)[:, None] for i in ids), 2)
        >>> part.delta_shared.tolist(), part.by_token.tolist()
        ([0.5, -0.5], [0.5, -0.5])
    """
    common = np.intersect1d(*tokens)
    if common.size == 0:
        nan = np.full(width, np.nan)
        return TokenPart(nan, nan.copy(), (0.0, 0.0))
    counts, sizes = [], []
    for ids, experts in zip(tokens, chosen, strict=True):
        kept = np.isin(ids, common)
        place = np.searchsorted(common, ids[kept])
        sizes.append(np.bincount(place, minlength=common.size))
        cells = (place[:, None] * width + experts[kept]).reshape(-1)
        counts.append(np.bincount(cells, minlength=common.size * width).reshape(-1, width))
    mix = sizes[0] / sizes[0].sum() - sizes[1] / sizes[1].sum()
    pooled = (counts[0] + counts[1]) / (sizes[0] + sizes[1])[:, None]
    measured = counts[0].sum(0) / sizes[0].sum() - counts[1].sum(0) / sizes[1].sum()
    shared = (float(sizes[0].sum() / tokens[0].size), float(sizes[1].sum() / tokens[1].size))
    return TokenPart(measured, mix @ pooled, shared)
