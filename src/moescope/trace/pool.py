"""From one pool of tokenized documents to updated sums, sampled tokens, and rows for the files.

`PoolRecorder` joins what the engine yields with what is known of each row (document, domain,
position) and hands it to the aggregates. It knows no files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.corpus import Batch, TokenizedDocument, iter_batches
from moescope.errors import ModelError
from moescope.models.anatomy import MoELayer
from moescope.models.capture import Routing
from moescope.run.commit import PoolResult, add_block
from moescope.run.facts import LayerFacts, TokenBlock
from moescope.run.options import TraceOptions
from moescope.run.state import RunState
from moescope.trace.engine import BatchResult, Engine
from moescope.trace.facts import layer_facts

_GENERATE_ROWS = 16


class _Docs:
    """The documents of a pool, by local ordinal."""

    def __init__(self, pool: Sequence[TokenizedDocument], state: RunState) -> None:
        self.pool = pool
        self.local = {doc.doc_index: i for i, doc in enumerate(pool)}
        self.ids = [doc.doc_id for doc in pool]
        places = [state.place(doc.domain) for doc in pool]
        self.domain = np.asarray([p[0] for p in places], np.int64)
        self.cluster = np.asarray([p[1] for p in places], np.int64)
        self.last_window = [doc.sequences[-1].window if doc.sequences else -1 for doc in pool]
        shape = (len(pool), len(state.shape.layers), state.shape.max_experts)
        self.mass = np.zeros(shape, np.float64)
        self.nll = np.zeros((len(pool), 2))
        self.control = np.zeros(len(pool), np.int64)


class PoolRecorder:
    """Runs pools through an engine and records them.

    Args:
        engine: what runs the model.
        layers: the traced layers, ascending.
        options: what to keep.
        pad_id: id to pad with.
        stop: token ids that end a generated text; steps fed with them are not counted.
        control: token ids that are not counted where the model writes them.
        on_batch: called with the number of counted tokens after each batch.
    """

    def __init__(
        self,
        engine: Engine,
        layers: Sequence[MoELayer],
        options: TraceOptions,
        pad_id: int,
        on_batch: Callable[[int], None],
        *,
        stop: frozenset[int] = frozenset(),
        control: frozenset[int] = frozenset(),
    ) -> None:
        self._engine = engine
        self._layers = layers
        self._options = options
        self._pad_id = pad_id
        self._on_batch = on_batch
        self._stop, self._control = sorted(stop), sorted(control)
        self._numbers = tuple(layer.layer_idx for layer in layers)

    def record(self, pool: Sequence[TokenizedDocument], state: RunState) -> PoolResult:
        """Run one pool and add it to the state."""
        docs = _Docs(pool, state)
        rows: list[dict[str, Any]] = []
        batches = iter_batches(pool, self._engine.batch_tokens, pad_id=self._pad_id)
        tokens = 0
        for result in self._engine.run(batches):
            block, flat = _block_of(result, docs)
            facts = self._facts(result.routing, flat)
            if result.nll is not None:
                _refuse_not_finite("the loss", block.nll[block.next_id >= 0])
            rows += add_block(state, self._options.keep, "prefill", block, facts, docs.ids)
            _add_documents(block, facts, docs)
            state.make_room()
            tokens += block.num_tokens
            self._on_batch(block.num_tokens)
        if self._options.generate:
            self._record_decoding(state, docs, rows)
        return PoolResult(self._document_rows(docs), rows, tokens, int(docs.control.sum()))

    def _facts(self, routing: dict[int, Routing], flat: NDArray[np.int64]) -> list[LayerFacts]:
        facts = []
        for layer in self._layers:
            r = routing[layer.layer_idx]
            rows = torch.as_tensor(flat, device=r.topk_ids.device)
            logits, ids, weights = (t.index_select(0, rows) for t in r)
            found = layer_facts(logits, ids.long(), weights, layer.scoring)
            numbers = found.margin_first + found.topk_weights.sum(1)
            _refuse_not_finite(f"the routing of layer {layer.layer_idx}", numbers)
            facts.append(found)
        return facts

    def _record_decoding(self, state: RunState, docs: _Docs, rows: list[dict[str, Any]]) -> None:
        """Continue the first window of each document; prompts of one length share a batch."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, doc in enumerate(docs.pool):
            if doc.sequences:
                by_length[len(doc.sequences[0].token_ids)].append(i)
        for length in sorted(by_length):
            members = by_length[length]
            for start in range(0, len(members), _GENERATE_ROWS):
                chosen = members[start : start + _GENERATE_ROWS]
                prompts = np.stack([docs.pool[i].sequences[0].token_ids for i in chosen])
                result = self._engine.generate(prompts.astype(np.int64), self._options.generate + 1)
                alive = _before(result.tokens[:, :-1], self._stop)
                counted = alive & ~np.isin(result.tokens[:, :-1], self._control)
                docs.control[chosen] += (alive & ~counted).sum(1)
                if not counted.any():
                    continue
                block, flat = _decode_block(result.tokens, counted, chosen, docs, length)
                steps = {
                    n: Routing(
                        *(
                            torch.cat(parts)
                            for parts in zip(*(s[n] for s in result.steps), strict=True)
                        )
                    )
                    for n in self._numbers
                }
                facts = self._facts(steps, flat)
                rows += add_block(state, self._options.keep, "decode", block, facts, docs.ids)
                self._on_batch(0)

    def _document_rows(self, docs: _Docs) -> list[dict[str, Any]]:
        out = []
        for i, doc in enumerate(docs.pool):
            mean_nll = docs.nll[i, 0] / docs.nll[i, 1] if docs.nll[i, 1] else None
            path = docs.mass[i].argmax(-1).tolist() if doc.num_tokens else []
            out.append(
                {
                    "doc": doc.doc_id,
                    "domain": doc.domain,
                    "tokens": doc.num_tokens,
                    "left_out": doc.num_uncounted + int(docs.control[i]),
                    "loss": mean_nll,
                    "path": path,
                }
            )
        return out


def _refuse_not_finite(what: str, numbers: NDArray[np.float32]) -> None:
    """A NaN still chooses K experts, always the same: counted, it would look like a result."""
    bad = numbers.size - int(np.isfinite(numbers).sum())
    if bad:
        raise ModelError(
            f"{what} is not a finite number for {bad} of {numbers.size} tokens of a batch; float16 "
            "overflows like this (take `dtype=bfloat16` or float32), or the weights are damaged"
        )


def _block_of(result: BatchResult, docs: _Docs) -> tuple[TokenBlock, NDArray[np.int64]]:
    """The counted tokens of a batch and the flat rows they stand in."""
    batch: Batch = result.batch
    width = batch.token_ids.shape[1]
    flat = np.flatnonzero(batch.counted)
    row, column = flat // width, flat % width
    local = np.asarray([docs.local[s.doc_index] for s in batch.sequences], np.int64)
    window = np.asarray([s.window for s in batch.sequences], np.int64)
    start = np.asarray([s.start for s in batch.sequences], np.int64)
    ends = np.asarray([docs.last_window[i] for i in local]) == window
    next_counted = np.zeros_like(batch.counted)
    next_counted[:, :-1] = batch.counted[:, 1:]
    next_ids = np.where(next_counted, np.roll(batch.token_ids, -1, axis=1), -1)
    final = np.asarray([np.flatnonzero(c)[-1] if c.any() else -1 for c in batch.counted])
    follows = np.zeros(flat.size, np.bool_)
    follows[1:] = (row[1:] == row[:-1]) & (column[1:] == column[:-1] + 1)
    nll = np.full(flat.size, np.nan, np.float32)
    pred = np.full(flat.size, -1, np.int64)
    if result.pred_id is not None and result.nll is not None:
        pred = result.pred_id[flat]
        nll = np.where(next_ids.reshape(-1)[flat] >= 0, result.nll[flat], np.nan)
    doc = local[row]
    block = TokenBlock(
        doc=doc,
        cluster=docs.cluster[doc],
        domain=docs.domain[doc],
        window=window[row],
        pos=start[row] + column,
        token_id=batch.token_ids.reshape(-1)[flat],
        next_id=next_ids.reshape(-1)[flat],
        pred_id=pred,
        nll=nll.astype(np.float32),
        follows=follows,
        last=ends[row] & (column == final[row]),
    )
    return block, flat


def _before(fed: NDArray[np.int64], stop: list[int]) -> NDArray[np.bool_]:
    """Steps (B, N) of which none up to here was fed a token that ends a text."""
    return np.cumprod(~np.isin(fed, stop), axis=1).astype(bool)


def _decode_block(
    tokens: NDArray[np.int64],
    counted: NDArray[np.bool_],
    chosen: list[int],
    docs: _Docs,
    length: int,
) -> tuple[TokenBlock, NDArray[np.int64]]:
    """Rows of the decoding steps that count: step t is fed generated token t and routes it.

    The last generated token is never fed (it is only a target), so N new tokens give N − 1 rows.
    """
    fed, target = tokens[:, :-1], tokens[:, 1:]
    row, step = np.nonzero(counted)
    doc = np.asarray(chosen, np.int64)[row]
    before = np.zeros_like(counted)
    before[:, 1:] = counted[:, :-1]
    final = counted.shape[1] - 1 - counted[:, ::-1].argmax(1)
    block = TokenBlock(
        doc=doc,
        cluster=docs.cluster[doc],
        domain=docs.domain[doc],
        window=np.zeros(row.size, np.int64),
        pos=length + step,
        token_id=fed[row, step],
        next_id=target[row, step],
        pred_id=target[row, step],
        nll=np.full(row.size, np.nan, np.float32),
        follows=before[row, step],
        last=step == final[row],
    )
    return block, step * tokens.shape[0] + row


def _add_documents(block: TokenBlock, facts: list[LayerFacts], docs: _Docs) -> None:
    scored = np.isfinite(block.nll)
    np.add.at(docs.nll[:, 0], block.doc[scored], block.nll[scored])
    np.add.at(docs.nll[:, 1], block.doc[scored], 1.0)
    num_docs, _, width = docs.mass.shape
    for i, layer in enumerate(facts):
        keys = (block.doc[:, None] * width + layer.topk_ids).reshape(-1)
        sums = np.bincount(keys, layer.topk_weights.reshape(-1), num_docs * width)
        docs.mass[:, i] += sums.reshape(num_docs, width)
