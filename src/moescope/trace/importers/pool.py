"""Requests gathered until they are worth a step, then added to the sums of a run as one block.

The counterpart of `moescope.run.commit` for routing that is known already. It knows no files.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moescope.run.commit import PoolResult, add_block
from moescope.run.facts import LayerFacts, TokenBlock, ids_only
from moescope.run.options import TraceOptions
from moescope.run.state import PHASES, RunState
from moescope.trace.importers.rows import CountedRequest, PhaseRows


class RequestPool:
    """Requests that are waiting."""

    def __init__(self, options: TraceOptions) -> None:
        self._options = options
        self._waiting: list[CountedRequest] = []
        self.tokens = 0

    def add(self, request: CountedRequest) -> None:
        """Take one more request."""
        self._waiting.append(request)
        self.tokens += request.num_tokens

    def record(self, state: RunState) -> PoolResult:
        """Add what is waiting to the state, and wait for more."""
        waiting, tokens = self._waiting, self.tokens
        self._waiting, self.tokens = [], 0
        places = [state.place(r.domain) for r in waiting]
        rows: list[dict[str, Any]] = []
        names = [r.doc_id for r in waiting]
        for phase in PHASES:
            parts = [(i, r.phases[phase]) for i, r in enumerate(waiting) if phase in r.phases]
            if not parts:
                continue
            block, facts = _joined(parts, places)
            rows += add_block(state, self._options.keep, phase, block, facts, names)
        return PoolResult([_document(r) for r in waiting], rows, tokens)


def _joined(
    parts: list[tuple[int, PhaseRows]], places: list[tuple[int, int]]
) -> tuple[TokenBlock, list[LayerFacts]]:
    """One block of all requests of a phase, in the order in which they came."""
    sizes = [p.pos.size for _, p in parts]
    doc = np.repeat(np.asarray([i for i, _ in parts], np.int64), sizes)
    place = np.asarray(places, np.int64)[doc]
    total, known = doc.size, ("pos", "token_id", "next_id", "follows", "last")
    block = TokenBlock(
        doc=doc,
        cluster=place[:, 1],
        domain=place[:, 0],
        window=np.zeros(total, np.int64),
        pred_id=np.full(total, -1, np.int64),
        nll=np.full(total, np.nan, np.float32),
        **{name: np.concatenate([getattr(p, name) for _, p in parts]) for name in known},
    )
    layers = range(len(parts[0][1].ids))
    return block, [ids_only(np.concatenate([p.ids[i] for _, p in parts])) for i in layers]


def _document(request: CountedRequest) -> dict[str, Any]:
    """Its row in the table of documents; a path needs weights, a loss predictions."""
    return {
        "doc": request.doc_id,
        "domain": request.domain,
        "tokens": request.num_tokens,
        "left_out": sum(request.left_out.values()),
        "loss": None,
        "path": None,
    }
