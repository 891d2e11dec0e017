"""Domain or token? How many bits the expert carries about each, beyond chance.

Three quantities per layer, with E one of the K experts of a token drawn evenly, D the domain and
X the token id:

- I(E;D): what the expert says about the domain;
- I(E;X): what it says about the token id;
- I(E;D|X): what it says about the domain once the token id is known. If experts only learn
  tokens, this is zero, however large I(E;D) looks, since domains use different words.

Counting from a finite sample makes every one of them too large. Each is therefore computed again
on shuffled data that keeps everything except the link in question; the mean of those is taken
off, and the share of shuffles at least as large is the p-value.

A token has K different experts, so even complete knowledge leaves log₂ K bits open: no quantity
can exceed H(E) − log₂ K (``max_bits``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

__all__ = ["Bits", "Information", "layer_information"]

SHUFFLES = 50
"""Shuffled copies behind each null."""


class Bits(NamedTuple):
    """One quantity in bits: ``corrected`` = ``raw`` − ``null``, with the 95th percentile and p."""

    corrected: float
    raw: float
    null: float
    null_high: float
    p: float


class Information(NamedTuple):
    """The three quantities of one layer, and the largest value that any could take."""

    expert_domain: Bits
    expert_token: Bits
    expert_domain_given_token: Bits
    max_bits: float


def layer_information(
    ids_TK: Int64[np.ndarray, "T K"],
    token_T: Int64[np.ndarray, " T"],
    domain_T: Int64[np.ndarray, " T"],
    doc_T: Int64[np.ndarray, " T"],
    num_experts: int,
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> Information:
    """Information between expert, domain and token id in one layer.

    Nulls: for I(E;D) the domains of whole documents are permuted; for I(E;X) the expert sets of
    the tokens are permuted over tokens; for I(E;D|X) domains are permuted among the occurrences
    of the same token id, where all occurrences in one document move together, so that the words
    of every domain and the experts of every word stay as they are.

    Args:
        ids_TK: the experts of T sampled tokens.
        token_T: their token ids.
        domain_T: their domains.
        doc_T: their documents; every document has one domain.
        num_experts: E.
        seed: of the shuffles.
        shuffles: copies for each null.

    Returns:
        See `Information`. With one domain, the two quantities about domains are 0 with p = 1.

    Reference:
        Shuffle correction: Panzeri et al. 2007, Correcting for the sampling bias problem in spike
        train information measures.
    """
    rng = np.random.default_rng(seed)
    token = _dense(token_T)
    tables = _Tables(ids_TK, num_experts)
    h_expert = tables.entropy(np.zeros(len(token), np.int64))
    domain = _dense(domain_T)

    def about(labels: NDArray[np.int64]) -> float:
        return h_expert - tables.conditional(labels)

    given_token = tables.conditional(token)

    def beyond_token(labels: NDArray[np.int64]) -> float:
        return given_token - tables.conditional(_dense(token * (domain.max() + 1) + labels))

    documents, doc = np.unique(doc_T, return_inverse=True)
    doc_domain = np.zeros(documents.size, np.int64)
    doc_domain[doc] = domain
    blocks = _TokenBlocks(doc, token, domain)
    return Information(
        expert_domain=_against(
            about(domain), [about(rng.permutation(doc_domain)[doc]) for _ in range(shuffles)]
        ),
        expert_token=_against(
            about(token), [about(rng.permutation(token)) for _ in range(shuffles)]
        ),
        expert_domain_given_token=_against(
            beyond_token(domain), [beyond_token(blocks.shuffled(rng)) for _ in range(shuffles)]
        ),
        max_bits=max(0.0, h_expert - float(np.log2(ids_TK.shape[1]))),
    )


def _against(raw: float, nulls: list[float]) -> Bits:
    drawn = np.asarray(nulls)
    hits = int((drawn >= raw - 1e-12).sum())
    return Bits(
        corrected=raw - float(drawn.mean()),
        raw=raw,
        null=float(drawn.mean()),
        null_high=float(np.quantile(drawn, 0.95)),
        p=(1 + hits) / (1 + drawn.size),
    )


class _Tables:
    """Joint counts of (label, expert) over all K slots, for any labels of the tokens."""

    def __init__(self, ids_TK: NDArray[np.int64], num_experts: int) -> None:
        self._ids = ids_TK
        self._experts = num_experts
        self._total = ids_TK.size

    def _counts(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        size = int(labels.max(initial=0)) + 1
        keys = (labels[:, None] * self._experts + self._ids).reshape(-1)
        counts = np.bincount(keys, minlength=size * self._experts)
        return counts.reshape(size, self._experts).astype(np.float64)

    def entropy(self, labels: NDArray[np.int64]) -> float:
        """H(label, expert) in bits."""
        return _entropy_bits(self._counts(labels), self._total)

    def conditional(self, labels: NDArray[np.int64]) -> float:
        """H(expert | label) in bits."""
        counts = self._counts(labels)
        joint = _entropy_bits(counts, self._total)
        return joint - _entropy_bits(counts.sum(1), self._total)


def _entropy_bits(counts: NDArray[np.float64], total: int) -> float:
    positive = counts[counts > 0]
    return float(np.log2(total) - (positive * np.log2(positive)).sum() / total)


def _dense(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


class _TokenBlocks:
    """All occurrences of one token id in one document, as the unit that is shuffled."""

    def __init__(
        self, doc: NDArray[np.int64], token: NDArray[np.int64], domain: NDArray[np.int64]
    ) -> None:
        keys = token * (int(doc.max(initial=0)) + 1) + doc
        _, first, self._block = np.unique(keys, return_index=True, return_inverse=True)
        self._token = token[first]  # ascending, since keys are ordered by token
        self._domain = domain[first]

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The domain of every token after permuting blocks among those of the same token id."""
        order = np.lexsort((rng.random(self._token.size), self._token))
        moved: NDArray[np.int64] = self._domain[order][self._block.reshape(-1)]
        return moved
