"""Which experts an expert works with: in its own layer, and in the layers beside it.

Both are the same measure, the lift N_ij·T/(N_i·N_j) of two experts on one token. It knows arrays
and the sample of a run, no model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.intervals import lift_interval
from moescope.metrics.view import Layer
from moescope.profiles.sampled import SampledDocuments

MIN_PAIR_COUNT = 20
"""A pair that met on fewer tokens is not listed."""


class Partners(NamedTuple):
    """For each expert of a layer its strongest partners; arrays (E, rows), −1 and NaN at the end.

    ``expert``: number in the partner's layer; ``times`` = N_ij; ``given`` = N_ij/N_i; ``lift``;
    ``low``, ``high``: its 95 % interval over sampled documents, NaN without a sample.
    """

    expert: NDArray[np.int64]
    times: NDArray[np.int64]
    given: NDArray[np.float64]
    lift: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def strongest_partners(
    pairs_EE: NDArray[np.int64],
    own_E: NDArray[np.int64],
    other_E: NDArray[np.int64],
    tokens: int,
    rows: int,
) -> Partners:
    """Rank partners by a cautious lift, lift·exp(−1.96/√N_ij), among pairs that met often enough.

    The caution keeps a large lift of few tokens from leading; it is for ranking only.

    ``pairs_EE``: tokens that chose both; the diagonal of a layer with itself must be 0.

    Returns:
        Partners with a lift above 1, without intervals.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = pairs_EE * float(tokens) / (own_E[:, None] * other_E[None, :].astype(np.float64))
        key = lift * np.exp(-1.96 / np.sqrt(pairs_EE))
        given = pairs_EE / own_E[:, None]
    key[~(lift > 1) | (pairs_EE < MIN_PAIR_COUNT)] = -np.inf
    best = np.argsort(-key, axis=1, kind="stable")[:, :rows]
    found = np.isfinite(np.take_along_axis(key, best, 1))

    def column(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(found, np.take_along_axis(values, best, 1), np.nan)

    nan = np.full(best.shape, np.nan)
    return Partners(
        expert=np.where(found, best, -1),
        times=np.where(found, np.take_along_axis(pairs_EE, best, 1), 0),
        given=column(given),
        lift=column(lift),
        low=nan,
        high=nan.copy(),
    )


def partner_intervals(
    made: Partners, sampled: SampledDocuments, layer: Layer, beside: Layer
) -> Partners:
    """Add to each lift its 95 % interval over sampled documents."""
    partner_ids, weight_N1 = sampled.tokens.ids[beside.layer_idx], sampled.weight_N[:, None]
    own_NE, other_NE = (sampled.by_document_and_expert(n) * weight_N1 for n in (layer, beside))
    tokens_N = sampled.tokens_N * sampled.weight_N
    low, high = made.low.copy(), made.high.copy()
    for e, rows in enumerate(sampled.rows_by_expert(layer)):
        partners = made.expert[e][made.expert[e] >= 0]
        if not partners.size:
            continue
        met = (partner_ids[rows][:, None, :] == partners[None, :, None]).any(2)
        both = np.stack([sampled.by_document(rows[met[:, j]]) for j in range(partners.size)], 1)
        ends = lift_interval(
            both * weight_N1, own_NE[:, [e]], other_NE[:, partners], tokens_N, sampled.domain_N
        )
        low[e, : partners.size], high[e, : partners.size] = ends
    return made._replace(low=low, high=high)
