"""Domain or token? How many bits the expert carries about each, beyond chance.

Four quantities per layer, with E one of the K experts of a token drawn evenly, D the domain, X the
token id and P that of the token before it in the same document:

- I(E;D): what the expert says about the domain;
- I(E;X): what it says about the token id;
- I(E;D|X): what it says about the domain once the token id is known. A router of single tokens has
  0 here, however large I(E;D) looks, since domains use different tokens;
- I(E;D|X,P): the same once the previous token is known too. A router of two neighbouring tokens has
  0 here, but not in I(E;D|X).

Counting from a finite sample makes every one of them too large. Each is computed again on shuffled
data that keeps everything except the link in question. Where nothing is linked that mean, the null,
is all there is; where the link is complete, counting errs by nothing. In between the error shrinks
in proportion: with the most that there could be (the ceiling), counted so too,

    bits = (raw − null) / (ceiling − null) · ceiling.

How far that is from the truth on known routers is measured by benchmarks/calibration_information.py
and stands in docs/concepts/statistics.md. Tests: `moescope.metrics.likeness`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from moescope.metrics.intervals import mean_interval
from moescope.metrics.likeness import document_pairs, domain_p, joined_documents, pairs_p
from moescope.metrics.statistics import permutation_p

SHUFFLES = 30
"""Shuffled copies behind each null."""

_LEAN = 0.2
"""Error of the correction that the interval allows for, as a share of bits · (1 − bits/ceiling).

With it the interval held the truth of every noisy router of benchmarks/calibration_information.py.
"""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Bits(NamedTuple):
    """One quantity in bits.

    ``corrected``: the estimate, with the 95 % interval ``low`` to ``high``; ``raw`` as counted,
    ``null`` the mean of the shuffles, ``most`` what complete knowledge would give on this text.
    """

    corrected: float
    low: float
    high: float
    raw: float
    null: float
    most: float
    p: float


class Information(NamedTuple):
    """The four quantities of one layer, and the largest value that any could take."""

    expert_domain: Bits
    expert_token: Bits
    expert_domain_given_token: Bits
    expert_domain_given_pair: Bits
    max_bits: float


class _Part(NamedTuple):
    """Tokens whose label occurs in several domains, the only ones that can tell of a domain."""

    rows: Ints
    label: Ints
    domain: Ints
    doc: Ints


class SampledText:
    """What is the same for all layers: labels of T sampled tokens.

    Args:
        token_T: token ids.
        domain_T: domains.
        doc_T: documents; every document has one domain.
        previous_T: token id before each in its document, −1 where it is not known; None: of none.
    """

    def __init__(
        self,
        token_T: Int64[np.ndarray, " T"],
        domain_T: Int64[np.ndarray, " T"],
        doc_T: Int64[np.ndarray, " T"],
        previous_T: Int64[np.ndarray, " T"] | None = None,
    ) -> None:
        self.token, self.domain = _dense(token_T), _dense(domain_T)
        self.doc = joined_documents(doc_T, self.domain)
        self.previous = np.full(token_T.size, -1) if previous_T is None else previous_T
        self.tokens = int(token_T.size)
        self.domain_N = np.zeros(int(self.doc.max(initial=0)) + 1, np.int64)
        self.domain_N[self.doc] = self.domain

    @cached_property
    def by_domain(self) -> _Part:
        """All tokens, as one label."""
        everything = np.arange(self.tokens)
        return _Part(everything, np.zeros(self.tokens, np.int64), self.domain, self.doc)

    @cached_property
    def by_token(self) -> _Part:
        """Tokens whose id occurs in several domains."""
        return self._several(np.arange(self.tokens), self.token)

    @cached_property
    def by_pair(self) -> _Part:
        """Tokens that follow another, where the two together occur in several domains."""
        rows = np.flatnonzero(self.previous >= 0)
        before = _dense(self.previous[rows])
        return self._several(rows, self.token[rows] * (int(before.max(initial=0)) + 1) + before)

    @property
    def shared_tokens(self) -> float:
        """Share of the tokens that `by_token` keeps."""
        return self.by_token.rows.size / max(self.tokens, 1)

    @property
    def shared_pairs(self) -> float:
        """Share of the tokens that `by_pair` keeps."""
        return self.by_pair.rows.size / max(self.tokens, 1)

    def _several(self, rows: Ints, label: Ints) -> _Part:
        label, domains = _dense(label), int(self.domain.max(initial=0)) + 1
        met = np.unique(label * domains + self.domain[rows]) // domains
        kept = np.bincount(met, minlength=1)[label] > 1
        rows = rows[kept]
        return _Part(rows, _dense(label[kept]), self.domain[rows], self.doc[rows])


def previous_tokens(
    token_T: Int64[np.ndarray, " T"],
    doc_T: Int64[np.ndarray, " T"],
    window_T: Int64[np.ndarray, " T"],
    position_T: Int64[np.ndarray, " T"],
) -> Int64[np.ndarray, " T"]:
    """The token id before each sampled token, −1 where none is known.

    Known are neighbours in the sample: the same document and window, the position before. The first
    token of a document or of a sampled span has none.
    """
    made = np.full(token_T.size, -1, np.int64)
    follows = (np.diff(doc_T) == 0) & (np.diff(window_T) == 0) & (np.diff(position_T) == 1)
    made[1:][follows] = token_T[:-1][follows]
    return made


def layer_information(
    ids_TK: Int64[np.ndarray, "T K"],
    text: SampledText,
    num_experts: int,
    seed: int = 0,
    shuffles: int = SHUFFLES,
) -> Information:
    """Information between expert, domain and token id in one layer.

    What is shuffled, the ceiling, and the test:

    - I(E;D): the domains of whole documents; I(E;document); `domain_p`.
    - I(E;X): which document's tokens lie beside which document's experts; H(E) − log₂ K; the
      shuffles.
    - I(E;D|X), I(E;D|X,P): domains among the occurrences of one label, those of one document
      together; Σ n_x/T · min(H(D|x), H(E|x) − log₂ K); `pairs_p`.

    A token has K different experts, so even complete knowledge leaves log₂ K bits open. The
    interval is Student's with the jackknife variance over documents of the information of single
    tokens, widened by what the correction errs on known routers.

    Args:
        ids_TK: the experts of T sampled tokens.
        text: those tokens.
        num_experts: E.
        seed: of shuffles and permutations.
        shuffles: copies for each null.

    Returns:
        See `Information`. Negative bits: less than shuffled data, which is noise around 0. I(E;D|X)
        and I(E;D|X,P) are lower bounds: what occurs in one domain only cannot show a difference and
        counts as none. With one domain the three quantities about domains are 0. NaN: bits without
        any label that two domains share; the interval below five documents; p with fewer than two
        domains of five documents.

    Reference:
        Shuffle correction: Panzeri et al. 2007, Correcting for the sampling bias problem in spike
        train information measures. Rescaling between chance and maximum: Vinh et al. 2010,
        Information theoretic measures for clusterings comparison (adjusted mutual information).
    """
    rng = np.random.default_rng(seed)
    layer = _Layer(ids_TK, text, num_experts)
    return Information(
        expert_domain=layer.domain(rng, shuffles),
        expert_token=layer.token(rng, shuffles),
        expert_domain_given_token=layer.given(text.by_token, rng, shuffles),
        expert_domain_given_pair=layer.given(text.by_pair, rng, shuffles),
        max_bits=layer.max_bits,
    )


class _Layer:
    """One layer's experts beside the text."""

    def __init__(self, ids_TK: Ints, text: SampledText, num_experts: int) -> None:
        self._ids, self._text, self._experts = ids_TK, text, num_experts
        self._docs, nothing = text.domain_N.size, text.by_domain.label
        self._open = float(np.log2(ids_TK.shape[1]))
        self._entropy = float(-_log_share(nothing, ids_TK, num_experts).mean())
        self.max_bits = max(0.0, self._entropy - self._open)

    def domain(self, rng: np.random.Generator, shuffles: int) -> Bits:
        text, part = self._text, self._text.by_domain
        counts_NE = np.zeros((self._docs, self._experts), np.int64)
        np.add.at(counts_NE, (text.doc[:, None], self._ids), 1)
        local = _local(part.label, text.domain, self._ids, self._experts)
        null = self._null(
            part.label, self._ids, lambda: rng.permutation(text.domain_N)[text.doc], shuffles
        )
        ceiling = float(_local(part.label, text.doc, self._ids, self._experts).mean())
        most = min(float(_label_entropies(part).sum()) / text.tokens, self.max_bits)
        p = domain_p(counts_NE, text.domain_N, rng)
        return self._bits(local, part.rows, null, ceiling, most, p, lean=0.0)

    def token(self, rng: np.random.Generator, shuffles: int) -> Bits:
        text, nothing = self._text, self._text.by_domain.label
        local = _local(nothing, text.token, self._ids, self._experts)
        open_bits = _open_bits(nothing, self._ids, self._experts)
        drawn = [
            open_bits - _open_bits(_other_beside(text, rng), self._ids, self._experts)
            for _ in range(shuffles)
        ]
        null, most = float(np.mean(drawn)) / text.tokens, self.max_bits
        p = float(permutation_p(local.sum(), [np.asarray(drawn)]))
        return self._bits(local, np.arange(text.tokens), null, most, most, p)

    def given(self, part: _Part, rng: np.random.Generator, shuffles: int) -> Bits:
        """I(E;D|label) from the tokens that can tell."""
        if not part.rows.size:
            nan = float("nan")
            bits = 0.0 if self._text.domain.max(initial=0) == 0 else nan
            return Bits(bits, nan, nan, bits, bits, bits, nan)
        ids, blocks = self._ids[part.rows], _Blocks(part)
        local = _local(part.label, part.domain, ids, self._experts)
        null = self._null(part.label, ids, lambda: blocks.shuffled(rng), shuffles)
        open_T = -_log_share(part.label, ids, self._experts).mean(1) - self._open
        open_X = np.bincount(part.label, open_T)
        ceiling_X = np.minimum(np.maximum(open_X, 0.0), _label_entropies(part))
        most = float(ceiling_X.sum()) / self._text.tokens
        pairs_NN = document_pairs(ids, part.label, part.doc, self._experts, self._docs)
        concerned = np.unique(part.doc)
        p = pairs_p(pairs_NN[np.ix_(concerned, concerned)], self._text.domain_N[concerned], rng)
        return self._bits(local, part.rows, null, most, most, p)

    def _null(
        self, base_T: Ints, ids_TK: Ints, shuffled: Callable[[], Ints], shuffles: int
    ) -> float:
        """Mean of I(E;D|base) over shuffled domains."""
        drawn = [
            _open_bits(_joined(base_T, shuffled()), ids_TK, self._experts) for _ in range(shuffles)
        ]
        open_bits = _open_bits(base_T, ids_TK, self._experts)
        return (open_bits - float(np.mean(drawn))) / self._text.tokens

    def _bits(
        self,
        local: Floats,
        rows: Ints,
        null: float,
        ceiling: float,
        most: float,
        p: float,
        lean: float = _LEAN,
    ) -> Bits:
        """Correct, and add the interval; ``local`` are the bits of the tokens ``rows``."""
        text, raw = self._text, float(local.sum() / self._text.tokens)
        room = ceiling - null
        factor = ceiling / room if room > 1e-9 else 1.0
        made = (raw - null) * factor if most > 0 else 0.0
        sums_N = np.bincount(text.doc[rows], local, minlength=self._docs)
        ends = mean_interval(sums_N[:, None], np.bincount(text.doc))
        inside = min(max(made / most, 0.0), 1.0) if most > 0 else 0.0
        wide = factor * float(ends.high[0] - ends.low[0]) / 2 + lean * inside * (1 - inside) * most
        return Bits(made, made - wide, made + wide, raw, null, most, p)


class _Blocks:
    """All occurrences of one label in one document, as the unit that is shuffled."""

    def __init__(self, part: _Part) -> None:
        keys = part.label * (int(part.doc.max(initial=0)) + 1) + part.doc
        _, first, block = np.unique(keys, return_index=True, return_inverse=True)
        self._block = block.reshape(-1)
        self._label, self._domain = part.label[first], part.domain[first]  # ascending labels

    def shuffled(self, rng: np.random.Generator) -> Ints:
        """The domain of every token after permuting blocks among those of the same label."""
        order = np.lexsort((rng.random(self._label.size), self._label))
        moved: Ints = self._domain[order][self._block]
        return moved


def _other_beside(text: SampledText, rng: np.random.Generator) -> Ints:
    """Token ids as they follow each other, but beside the experts of other documents.

    Both sides keep what their documents have of their own (words that come in bursts, experts that
    one text prefers), so that this does not pass for a link between the two.
    """
    mine, theirs = (
        np.argsort(rng.permutation(text.domain_N.size)[text.doc], kind="stable") for _ in range(2)
    )
    moved = np.empty_like(text.token)
    moved[mine] = np.roll(text.token[theirs], int(rng.integers(text.tokens)))
    return moved


def _local(base_T: Ints, label_T: Ints, ids_TK: Ints, num_experts: int) -> Floats:
    """log₂ p(e | base, label)/p(e | base) of every token, mean over its experts: (T,).

    Its mean is I(expert; label | base) as counted.
    """
    both = _joined(base_T, label_T)
    known = _log_share(both, ids_TK, num_experts) - _log_share(base_T, ids_TK, num_experts)
    made: Floats = known.mean(1)
    return made


def _log_share(label_T: Ints, ids_TK: Ints, num_experts: int) -> Floats:
    """log₂ of the share of each of a token's experts among all with its label, (T, K)."""
    times = _occurrences(label_T[:, None] * num_experts + ids_TK)
    made: Floats = np.log2(times / (_occurrences(label_T) * ids_TK.shape[1])[:, None])
    return made


def _open_bits(label_T: Ints, ids_TK: Ints, num_experts: int) -> float:
    """T · H(expert | label) as counted."""
    experts = _counts((label_T[:, None] * num_experts + ids_TK).reshape(-1))
    tokens = _counts(label_T) * ids_TK.shape[1]
    summed = float((tokens * np.log2(tokens)).sum() - (experts * np.log2(experts)).sum())
    return summed / int(ids_TK.shape[1])


def _label_entropies(part: _Part) -> Floats:
    """n_x · H(D | x) in bits, by label."""
    share = _occurrences(_joined(part.label, part.domain)) / _occurrences(part.label)
    made: Floats = np.bincount(part.label, -np.log2(share)).astype(np.float64)
    return made


def _joined(base_T: Ints, label_T: Ints) -> Ints:
    return base_T * (int(label_T.max(initial=0)) + 1) + label_T


def _occurrences(keys: Ints) -> Ints:
    """How often each entry occurs among all, in the shape of ``keys``."""
    flat = keys.reshape(-1)
    if _few(flat):
        table: Ints = np.bincount(flat)
        return table[keys]
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    made: Ints = counts[inverse.reshape(keys.shape)]
    return made


def _counts(keys: Ints) -> Floats:
    """How often each key that occurs does."""
    counts = np.bincount(keys) if _few(keys) else np.unique(keys, return_counts=True)[1]
    return counts[counts > 0].astype(np.float64)


def _few(keys: Ints) -> bool:
    """Is a table of all keys cheaper than sorting them?"""
    return int(keys.max(initial=0)) < 16 * keys.size + 1024


def _dense(values: Ints) -> Ints:
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
