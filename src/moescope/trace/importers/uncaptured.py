"""Rows that look like routing but are what an engine leaves where it kept none.

Two kinds pass every check of a single row: zeros, which name expert 0 where K is 1, and one row
repeated. Both are told from routing by how unlikely they are: see `zero_filled` and
`refuse_repeated`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moescope.models.anatomy import MoELayer
from moescope.trace.importers.common import Request, refuse

_CERTAIN = 1e-6
_TOKENS = 4


def zero_filled(
    rows: NDArray[np.int64], layers: Sequence[MoELayer], captured: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which rows an engine filled with zeros because it kept no routing for them, (R,).

    With K = 1 such a row names expert 0 in every layer, which routing may do too. Neighbouring
    rows of zeros are taken for a fill where their chance is below one in a million, each layer
    choosing expert 0 as often as in the request's other rows, and no less than evenly. With K > 1
    zeros name one expert twice, which is refused elsewhere.

    Args:
        rows: (R, L, K), all MoE layers that the capture holds.
        layers: those layers.
        captured: (R,), rows that are not marked as missing.
    """
    filled = np.zeros(len(rows), np.bool_)
    if rows.shape[2] != 1:
        return filled
    zero = captured & (rows == 0).all((1, 2))
    others = rows[captured & ~zero, :, 0]
    experts = np.asarray([m.num_experts for m in layers])
    often = ((others == 0).sum(0) + 1) / (len(others) + experts)
    chance = float(np.prod(np.maximum(often, 1 / experts)))
    for begin, end in _runs(zero):
        filled[begin:end] = chance ** (end - begin) < _CERTAIN
    return filled


def refuse_repeated(
    request: Request,
    rows: NDArray[np.int64],
    layers: Sequence[MoELayer],
    captured: NDArray[np.bool_],
) -> None:
    """Refuse a request, or the prompt or the output of one, whose tokens all have one row.

    Tokens may share their experts in one layer; four different ones or more that do so in every
    layer are a row that was written once and copied. Nothing is said where even choices would do
    so more often than once in a million.

    Raises:
        RefusedError: so it is.
    """
    tokens = np.concatenate([request.prompt_ids, request.output_ids])
    read, first = request.prompt_ids.size - request.start, request.start
    row = math.prod(1 / math.comb(m.num_experts, m.top_k) for m in layers)
    for name, begin, end in (
        ("request", 0, len(rows)),
        ("prompt", 0, max(0, read)),
        ("output", max(0, read), len(rows)),
    ):
        mine = begin + np.flatnonzero(captured[begin:end])
        ids = tokens[first + mine]
        different = np.unique(ids).size if (ids >= 0).all() else ids.size
        if different < _TOKENS or row ** (different - 1) >= _CERTAIN:
            continue
        ranked = np.sort(rows[mine], axis=2)
        if (ranked == ranked[:1]).all():
            refuse("one row of routing repeated", request.where,
                   f"the {mine.size} captured tokens of the {name} all have the same experts in "
                   f"every layer: {ranked[0, 0].tolist()} in layer {layers[0].layer_idx}",
                   "the engine did not capture them; capture it again")  # fmt: skip


def _runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
