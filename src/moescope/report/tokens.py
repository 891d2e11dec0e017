"""Single tokens on the page: which ids each expert serves most, and example texts.

Routing of the examples is packed into bytes (base64): experts as whole numbers, weights and
entropies in 255 steps, so that forty spans of a 16-layer, top-8 model take about a megabyte.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.report.frames import Frame, tidy
from moescope.run.reader import Run, TokenRows

MAX_SPANS = 40
SPAN_TOKENS = 80
MAX_EXPERT_TOKEN_ROWS = 40_000
_EXAMPLE_BYTES = 1_000_000
_STEPS = 255
_ROUTES = 12


def expert_tokens(frame: Frame, offsets: dict[int, int], cells: int) -> dict[str, Any]:
    """Rows by kind of token (input, predicted, next); fewer per expert where experts are many."""
    if not len(frame):
        return {}
    kinds = list(dict.fromkeys(frame["kind"].tolist()))
    if cells * 10 * len(kinds) > MAX_EXPERT_TOKEN_ROWS:
        kinds = kinds[:1]
    ranks = max(1, min(10, MAX_EXPERT_TOKEN_ROWS // max(1, cells * len(kinds))))
    out: dict[str, Any] = {
        "kinds": kinds,
        "ranks": ranks,
        "min_count": int(frame["min_count"][0]),
        "rows": {},
    }
    for kind in kinds:
        rows = frame.where(kind=kind)
        rows = rows.take(np.flatnonzero(rows["rank"] < ranks)[:MAX_EXPERT_TOKEN_ROWS])
        start = np.asarray([offsets[int(n)] for n in rows["layer"]], np.int64)
        out["rows"][kind] = {
            "cell": (start + rows["expert"]).tolist(),
            "id": rows["token_id"].tolist(),
            "count": rows["count"].tolist(),
            "share": np.rint(rows["share"] * 1000).astype(int).tolist(),
        }
    return out


def routes(tokens: TokenRows) -> dict[str, Any]:
    """The routes of first choices that most sampled tokens take, each with its commonest token.

    ``expected``: tokens that would take it if the layers chose independently, each as often as
    here.
    """
    first_TL = np.stack([ids[:, 0] for ids in tokens.ids.values()], axis=1)
    found, which, counts = np.unique(first_TL, axis=0, return_inverse=True, return_counts=True)
    best = np.argsort(-counts, kind="stable")[:_ROUTES]
    best = best[counts[best] > 1]
    size = len(first_TL)
    rates = [np.bincount(column) / size for column in first_TL.T]
    commonest, times = [], []
    for route in best:
        ids, uses = np.unique(tokens.token_id[which.reshape(-1) == route], return_counts=True)
        commonest.append(int(ids[np.argmax(uses)]))
        times.append(int(uses.max()))
    chance = np.prod([rate[found[best, n]] for n, rate in enumerate(rates)], axis=0)
    return {
        "tokens": size,
        "distinct": len(found),
        "experts": found[best].tolist(),
        "count": counts[best].tolist(),
        "expected": tidy(chance * size),
        "id": commonest,
        "of_id": times,
    }


class _Span(NamedTuple):
    start: int
    stop: int


def examples(
    run: Run, tokens: TokenRows, domains: list[str], max_spans: int = MAX_SPANS
) -> dict[str, Any]:
    """Spans of consecutive sampled tokens, as many of every domain, spread over its documents.

    Returns:
        ``spans`` (document, domain, first position, token ids) and the packed routing; ``weights``
        and ``entropy`` are None where an imported run does not know them.
    """
    layers = list(tokens.ids)
    width = sum(tokens.ids[n].shape[1] for n in layers)
    wide = any(int(tokens.ids[n].max(initial=0)) > _STEPS for n in layers)
    room = _EXAMPLE_BYTES // max(1, width * (3 if wide else 2) + len(layers))
    length = int(np.clip(room // max_spans, 16, SPAN_TOKENS))
    picked = _pick(tokens, [run.domains.index(n) for n in domains], min(max_spans, room // length))
    cut = [_Span(s.start, min(s.stop, s.start + length)) for s in picked]
    index = np.concatenate([np.arange(*s) for s in cut]) if cut else np.zeros(0, np.int64)
    return {
        "spans": [
            {
                "doc": tokens.doc_names[int(tokens.doc[s.start])],
                "domain": run.domains[int(tokens.domain[s.start])],
                "start": int(tokens.pos[s.start]),
                "ids": tokens.token_id[s.start : s.stop].tolist(),
            }
            for s in cut
        ],
        **_packed(tokens, index, wide, "weights" not in run.shape.absent),
    }


def _packed(
    tokens: TokenRows, index: NDArray[np.int64], wide: bool, weighted: bool
) -> dict[str, Any]:
    layers = list(tokens.ids)
    ids = np.concatenate([tokens.ids[n][index] for n in layers], axis=1)
    packed = {
        "top_k": [int(tokens.ids[n].shape[1]) for n in layers],
        "bytes": 2 if wide else 1,
        "experts": _text(ids.astype("<u2" if wide else "<u1")),
    }
    if not weighted:
        return packed | {"weight_max": None, "weights": None, "entropy": None}
    weights = np.concatenate([tokens.weights[n][index] for n in layers], axis=1)
    entropy = np.stack([tokens.entropy[n][index] for n in layers], axis=1)
    weights = np.nan_to_num(weights.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(weights.max(initial=0.0)) or 1.0
    return packed | {
        "weight_max": tidy(largest, 6),
        "weights": _text(np.rint(np.clip(weights / largest, 0, 1) * _STEPS).astype("<u1")),
        "entropy": _text(np.rint(np.clip(np.nan_to_num(entropy), 0, 1) * _STEPS).astype("<u1")),
    }


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _pick(tokens: TokenRows, domains: list[int], wanted: int) -> list[_Span]:
    """Evenly spaced spans of each domain, the same for the same run."""
    change = (np.diff(tokens.doc) != 0) | (np.diff(tokens.window) != 0) | (np.diff(tokens.pos) != 1)
    edges = [0, *(np.flatnonzero(change) + 1).tolist(), tokens.doc.size]
    spans = [_Span(a, b) for a, b in pairwise(edges) if b - a >= 2]
    by_domain = {d: [s for s in spans if int(tokens.domain[s.start]) == d] for d in domains}
    present = [d for d in domains if by_domain[d]]
    out: list[_Span] = []
    for rank, d in enumerate(present[:wanted]):
        share = wanted // min(wanted, len(present)) + (rank < wanted % min(wanted, len(present)))
        pool = by_domain[d]
        take = min(share, len(pool))
        out += [pool[i * len(pool) // take] for i in range(take)]
    return out
