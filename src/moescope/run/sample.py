"""A bounded sample of tokens with everything that was recorded about them.

Nulls that permute tokens, the comparison of two runs and the examples in the report need single
tokens, not sums. The sample keeps, for every domain, spans of consecutive tokens up to a budget.
Which spans stay is decided by a hash of (document id, window, seed): it does not depend on the
order of reading, on batch sizes or on the model, so two runs over the same text keep the same
tokens. It knows nothing of files.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.run.facts import LayerFacts, TokenBlock

SpanArrays = dict[str, NDArray[np.generic]]
"""Column name → array with one row per token; ``ids_L`` and ``weights_L`` are (T, K)."""


class SampledSpan(NamedTuple):
    """Consecutive tokens of one window of one document, in one phase."""

    priority: int
    key: str
    domain: int
    num_tokens: int
    columns: SpanArrays


def span_priority(doc_id: str, window: int, seed: int) -> int:
    """A number in [0, 2⁶³) that depends on nothing but its arguments; small ones are kept."""
    digest = hashlib.blake2b(f"{seed}\0{window}\0{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


@dataclass
class Sample:
    """Keeps the spans of lowest priority, per domain, within a token budget.

    Args:
        tokens_per_domain: budget of counted tokens for each domain and phase.
        span_tokens: longest span; a longer window gives its first ``span_tokens`` tokens.
        seed: changes which spans are kept.
    """

    tokens_per_domain: int = 8192
    span_tokens: int = 512
    seed: int = 0
    spans: dict[int, list[tuple[int, str, SampledSpan]]] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)

    def add(
        self,
        block: TokenBlock,
        layers: list[LayerFacts],
        numbers: tuple[int, ...],
        doc_ids: list[str],
    ) -> None:
        """Offer the tokens of one batch.

        Args:
            block: the tokens.
            layers: their routing, one entry per traced layer.
            numbers: the model's own numbers of those layers.
            doc_ids: id of every document of the pool, indexed by ``block.doc``.
        """
        if block.num_tokens == 0:
            return
        change = np.flatnonzero((np.diff(block.doc) != 0) | (np.diff(block.window) != 0)) + 1
        for start, stop in zip([0, *change], [*change, block.num_tokens], strict=True):
            doc, window = int(block.doc[start]), int(block.window[start])
            domain = int(block.domain[start])
            priority = span_priority(doc_ids[doc], window, self.seed)
            stop = min(int(stop), int(start) + self.span_tokens)
            if self._wants(domain, priority):
                rows = slice(int(start), stop)
                columns = _columns(block, layers, numbers, rows)
                key = f"{doc_ids[doc]}\0{window:09d}"
                self._keep(SampledSpan(priority, key, domain, stop - int(start), columns))

    def _wants(self, domain: int, priority: int) -> bool:
        if self.kept.get(domain, 0) < self.tokens_per_domain:
            return True
        return priority < -self.spans[domain][0][0]

    def _keep(self, span: SampledSpan) -> None:
        heap = self.spans.setdefault(span.domain, [])
        heapq.heappush(heap, (-span.priority, span.key, span))
        self.kept[span.domain] = self.kept.get(span.domain, 0) + span.num_tokens
        while self.kept[span.domain] - heap[0][2].num_tokens >= self.tokens_per_domain:
            dropped = heapq.heappop(heap)[2]
            self.kept[span.domain] -= dropped.num_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        some = next((heap[0][2] for heap in self.spans.values() if heap), None)
        if some is None:
            return 0
        row = sum(column.nbytes for column in some.columns.values()) // some.num_tokens
        return sum(self.kept.values()) * row

    def merge(self, other: Sample) -> None:
        """Offer every span of another sample to this one."""
        for heap in other.spans.values():
            for _, _, span in heap:
                if self._wants(span.domain, span.priority):
                    self._keep(span)

    def ordered(self) -> list[SampledSpan]:
        """All spans, by domain, document id and window."""
        spans = [entry[2] for heap in self.spans.values() for entry in heap]
        return sorted(spans, key=lambda span: (span.domain, span.key))

    @classmethod
    def restore(
        cls, spans: list[SampledSpan], tokens_per_domain: int, span_tokens: int, seed: int
    ) -> Sample:
        """Rebuild a sample from spans that were stored."""
        sample = cls(tokens_per_domain, span_tokens, seed)
        for span in spans:
            heap = sample.spans.setdefault(span.domain, [])
            heapq.heappush(heap, (-span.priority, span.key, span))
            sample.kept[span.domain] = sample.kept.get(span.domain, 0) + span.num_tokens
        return sample


def _columns(
    block: TokenBlock, layers: list[LayerFacts], numbers: tuple[int, ...], rows: slice
) -> SpanArrays:
    columns: SpanArrays = {
        name: getattr(block, name)[rows].copy()
        for name in ("domain", "window", "pos", "token_id", "next_id", "pred_id", "nll")
    }
    for number, facts in zip(numbers, layers, strict=True):
        columns[f"ids_{number}"] = facts.topk_ids[rows].astype(np.uint16)
        columns[f"weights_{number}"] = facts.topk_weights[rows].astype(np.float16)
        columns[f"entropy_{number}"] = facts.router_entropy[rows].copy()
        columns[f"margin_{number}"] = facts.margin_kth[rows].copy()
    return columns
