"""Sums of pairs as similarities: values, what chance gives, intervals over documents.

The unit of every interval is the document: tokens are kept in groups of whole documents, each
value is computed again without one group, and the spread gives the interval (jackknife). A
bootstrap would draw documents twice, and linear CKA rises with every document that is there twice.

It knows arrays only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.metrics.intervals import Interval, delete_group_interval
from moescope.similarity.gram import CosineSums, GramSums

Floats = NDArray[np.float64]

_CELLS = 2_000_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairValues:
    """How alike the E experts of a layer are under one method; arrays (E, E), symmetric.

    Attributes:
        value: the similarity; 1 on the diagonal, NaN where it is undefined.
        low, high: 95 % interval over documents; NaN where there is none.
        chance: what unrelated tokens (cosine, CKA) or shuffled entries (weights, router) give on
            average. chance_sd: the spread of single shuffles, for weights and router.
        tokens: tokens behind each value; 0 where no text is used.
        routed, routed_tokens: cosine over the tokens given to one of the two.
        debiased: CKA without its bias from a finite number of tokens.
        centred: weights and router with the mean over experts taken out first.
        halves: the value in two halves of the documents, (2, E, E).
        mean_low, mean_high: interval of the mean over pairs.
        reference: values of the pairs of experts with shuffled weights.
        undefined: experts without a value, with the reason.
    """

    value: Floats
    chance: Floats
    low: Floats
    high: Floats
    tokens: NDArray[np.int64]
    chance_sd: Floats | None = None
    routed: Floats | None = None
    routed_tokens: NDArray[np.int64] | None = None
    debiased: Floats | None = None
    centred: Floats | None = None
    halves: Floats | None = None
    mean_low: float = float("nan")
    mean_high: float = float("nan")
    reference: Floats = field(default_factory=lambda: np.zeros(0))
    undefined: dict[int, str] = field(default_factory=dict)

    def pairs(self) -> Floats:
        """The value of every pair a < b, NaN included."""
        return upper(self.value)


def upper(matrix: NDArray[Any]) -> NDArray[Any]:
    """What stands above the diagonal, row by row; of (…, E, E) the last two axes."""
    size = matrix.shape[-1]
    return matrix[(..., *np.triu_indices(size, 1))]


def cosine_values(
    sums: CosineSums, sizes: NDArray[np.int64], undefined: dict[int, str], experts: int
) -> PairValues:
    """Mean cosine of outputs on the same token.

    Args:
        sums: of the experts, then of those with shuffled weights.
        sizes: tokens of each group of documents.
        undefined: functions that have no output to compare.
        experts: E, how many of the functions are the layer's own.
    """
    total, tokens = sums.sums.sum(0), sums.tokens.sum(0)
    value = _ratio(total, tokens)
    left_out = _ratio(total - sums.sums, tokens - sums.tokens)
    even = np.arange(len(sizes)) % 2 == 0
    halves = np.stack(
        [_ratio(sums.sums[half].sum(0), sums.tokens[half].sum(0)) for half in (even, ~even)]
    )
    cut = np.s_[..., :experts, :experts]
    return _values(
        value, left_out, halves, sizes, undefined, experts, lowest=-1.0,
        chance=sums.directions[cut].copy(), tokens=tokens[cut].astype(np.int64),
        routed=_ratio(sums.routed_sums, sums.routed_tokens),
        routed_tokens=sums.routed_tokens.astype(np.int64),
    )  # fmt: skip


def cka_values(
    sums: GramSums, sizes: NDArray[np.int64], undefined: dict[int, str], experts: int
) -> PairValues:
    """Linear CKA of outputs on the same tokens: ||YᵀX||²_F / (||XᵀX||_F·||YᵀY||_F), centred.

    ``chance`` is its mean over all permutations of the tokens of one of the two, exactly:
    tr(K_i)·tr(K_j) / ((N − 1)·||K_i||·||K_j||). Arguments as for `cosine_values`.
    """
    all_parts = np.stack([_over_norms(p) for p in sums.products])
    count = len(sizes)
    none = np.zeros((0, *all_parts.shape[1:]))
    several = len(all_parts) > 1
    left_out = all_parts[1 : 1 + count] if several else none
    halves = all_parts[1 + count :] if several else np.full((2, *all_parts.shape[1:]), np.nan)
    size = int(sums.tokens[0])
    norms = np.sqrt(np.diag(sums.products[0]))[:experts]
    traces = sums.traces[:experts]
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.outer(traces / norms, traces / norms) / max(1, size - 1)
    return _values(
        all_parts[0], left_out, halves, sizes, undefined, experts, lowest=0.0,
        chance=chance, tokens=np.full((experts, experts), size, np.int64),
        debiased=debiased_cka(sums)[:experts, :experts],
    )  # fmt: skip


def debiased_cka(sums: GramSums) -> Floats:
    """CKA from unbiased estimates of its three terms, (F, F); expected to be 0 for unrelated text.

    Column-centring makes every row of a Gram matrix sum to 0, so the estimator of Song et al. with
    the diagonal taken out needs Σ_t K_i[t,t]·K_j[t,t] and the traces beside the products. It can
    be negative. NaN with fewer than 4 tokens.

    Reference:
        Song et al. 2012, Feature selection via dependence maximization, Eq. 5; Nguyen et al. 2021,
        Do wide and deep networks learn the same things?
    """
    n = float(sums.tokens[0])
    if n < 4:
        return np.full(sums.squares.shape, np.nan)
    traces = np.outer(sums.traces, sums.traces)
    terms = sums.products[0] - sums.squares + traces / ((n - 1) * (n - 2))
    return _over_norms(terms - 2 * sums.squares / (n - 2))


def flat_cosines(tensors: Iterable[tuple[str, torch.Tensor]], experts: int) -> PairValues:
    """Cosine of all parameters of two experts, each laid out as one long vector.

    ``chance`` and ``chance_sd`` are mean and standard deviation over all permutations of the
    entries within each tensor of one of the two, exactly: the mean of Σ_t a_t·b_π(t) is
    n·mean(a)·mean(b), its variance n²·var(a)·var(b)/(n − 1). ``centred`` compares what is left of
    each expert without the mean of all; unrelated ones then have −1/(E − 1) on average.

    Args:
        tensors: ``(name, (E, …))``, stacked by expert; read in pieces, summed in float64.
        experts: E.
    """
    products, chance, variance = np.zeros((3, experts, experts))
    for _, tensor in tensors:
        flat = tensor.detach().reshape(experts, -1)
        size = flat.shape[1]
        inner, sums = np.zeros((experts, experts)), np.zeros(experts)
        step = max(1, _CELLS // experts)
        for start in range(0, size, step):
            part = flat[:, start : start + step].cpu().double()
            inner += (part @ part.T).numpy()
            sums += part.sum(1).numpy()
        products += inner
        chance += np.outer(sums, sums) / size
        spread = np.maximum(np.diag(inner) - sums**2 / size, 0.0)  # n·var
        variance += np.outer(spread, spread) / max(1, size - 1)
    norms = np.sqrt(np.diag(products))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1.0 / np.outer(norms, norms)
        scale[~np.isfinite(scale)] = np.nan
    undefined = {
        e: "its weights are not finite" if not np.isfinite(n) else "all its weights are zero"
        for e, n in enumerate(norms)
        if not (np.isfinite(n) and n > 0)
    }
    value = _bounded(products * scale, -1.0)
    np.fill_diagonal(value, 1.0)
    _forget(value, undefined)
    centred = _centred_cosines(products, undefined)
    nan = np.full(value.shape, np.nan)
    return PairValues(
        value=value, centred=centred, chance=chance * scale,
        chance_sd=np.sqrt(variance) * scale, low=nan,
        high=nan.copy(), tokens=np.zeros(value.shape, np.int64), undefined=undefined,
    )  # fmt: skip


def _centred_cosines(products_EE: Floats, undefined: dict[int, str]) -> Floats:
    """Cosines of vectors less their mean, from their products alone."""
    kept = [e for e in range(len(products_EE)) if e not in undefined]
    made = np.full(products_EE.shape, np.nan)
    part = products_EE[np.ix_(kept, kept)]
    if len(kept) > 1:
        part = part - part.mean(0) - part.mean(1)[:, None] + part.mean()
        left = np.diag(part) > _ROUNDING * np.diag(products_EE)[kept]  # of equal vectors nothing is
        made[np.ix_(kept, kept)] = np.where(np.outer(left, left), _over_norms(part), np.nan)
    return _bounded(made, -1.0)


def _values(
    value_FF: Floats,
    left_out_GFF: Floats,
    halves_2FF: Floats,
    sizes: NDArray[np.int64],
    undefined: dict[int, str],
    experts: int,
    *,
    lowest: float,
    chance: Floats,
    **more: Any,
) -> PairValues:
    """Intervals, and the layer's own experts apart from those with shuffled weights."""
    matrix = _bounded(value_FF, lowest)
    _forget(matrix, undefined)
    own, halves = matrix[:experts, :experts], halves_2FF[:, :experts, :experts]
    left_out = left_out_GFF[:, :experts, :experts]
    ends = delete_group_interval(own, left_out, sizes)
    known = np.isfinite(own) & np.isfinite(left_out).all(0)
    known &= ~np.eye(experts, dtype=np.bool_)
    mean = Interval.unknown()
    if known.any():
        mean = delete_group_interval(own[known].mean(), left_out[:, known].mean(1), sizes)
    for e in range(experts):
        own[e, e] = 1.0 if np.isfinite(own[e, e]) else np.nan
    lost = {f: why for f, why in undefined.items() if f < experts}
    _forget(chance, lost)
    return PairValues(
        value=own, chance=chance, low=_bounded(ends.low, lowest), high=_bounded(ends.high, lowest),
        halves=halves, mean_low=float(np.maximum(mean.low, lowest)),
        mean_high=float(np.minimum(mean.high, 1.0)),
        reference=upper(matrix[experts:, experts:]),
        undefined=lost, **more,
    )  # fmt: skip


def _over_norms(products: Floats) -> Floats:
    own = np.diag(products).copy()
    own[own <= 0] = np.nan
    return products / np.sqrt(np.outer(own, own))


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def _bounded(values: Floats, lowest: float) -> Floats:
    """Rounding, and an interval, may pass the ends of the range; NaN stays."""
    return np.clip(values, lowest, 1.0)


def _forget(matrix: Floats, undefined: dict[int, str]) -> None:
    lost = list(undefined)
    matrix[lost, :] = matrix[:, lost] = np.nan
