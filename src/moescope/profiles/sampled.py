"""The sampled tokens of a run, by document: halves and weights for a profile.

A sample holds about as many tokens of every domain, a run its own mix. Where an interval from the
sample stands beside a figure of the whole run, documents are weighted so that each domain has the
share that it has in the run. It knows no model.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.view import Layer, PhaseView
from moescope.profiles.cells import half_of_documents
from moescope.run.reader import TokenRows


class SampledDocuments:
    """Sampled tokens of one phase with their documents.

    Args:
        view: one phase of a run.
        tokens: its sampled tokens; at least one.

    Attributes:
        tokens: as given, T rows.
        doc_T: document of each token, 0 … N − 1.
        domain_N: domain of each document.
        half_N: half (0 or 1) of each document.
        tokens_N: tokens of each document.
        weight_N: weight that gives every domain its share in the run.
    """

    def __init__(self, view: PhaseView, tokens: TokenRows) -> None:
        self.tokens = tokens
        used, first, doc = np.unique(tokens.doc, return_index=True, return_inverse=True)
        self.doc_T: NDArray[np.int64] = doc.reshape(-1)
        self.domain_N: NDArray[np.int64] = tokens.domain[first]
        names = [tokens.doc_names[int(d)] for d in used]
        self.half_N = half_of_documents(names, self.domain_N.tolist())
        self.tokens_N = np.bincount(self.doc_T).astype(np.float64)
        held = np.bincount(self.domain_N, self.tokens_N, len(view.domains))
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(held > 0, view.domain_tokens / held, 0.0)
        self.weight_N = share[self.domain_N]

    @property
    def documents(self) -> int:
        """N."""
        return int(self.domain_N.size)

    def rows_by_expert(self, layer: Layer) -> list[NDArray[np.int64]]:
        """For each expert of a layer the tokens that it served."""
        ids_TK = self.tokens.ids[layer.layer_idx]
        order = np.argsort(ids_TK.reshape(-1), kind="stable")
        ends = np.searchsorted(ids_TK.reshape(-1)[order], np.arange(layer.num_experts + 1))
        return [order[a:b] // ids_TK.shape[1] for a, b in pairwise(ends)]

    def by_document(
        self, rows: NDArray[np.int64], values: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Sum of values (or count) of some token rows, by document: (N,)."""
        return np.bincount(self.doc_T[rows], values, self.documents).astype(np.float64)

    def by_document_and_expert(
        self, layer: Layer, values_TK: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Assignments (or the sum of ``values_TK`` over them) by document and expert, (N, E)."""
        shape = self.documents, layer.num_experts
        keys = (self.doc_T[:, None] * shape[1] + self.tokens.ids[layer.layer_idx]).reshape(-1)
        values = None if values_TK is None else values_TK.reshape(-1)
        return np.bincount(keys, values, shape[0] * shape[1]).astype(np.float64).reshape(shape)
