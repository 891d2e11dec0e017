"""Do the documents of one domain route alike, beyond what their tokens are? Two tests of that.

Both permute the domains of whole documents, so that what tokens of one document have in common is
never taken for the domain. Permuting is exact where documents are exchangeable, which they are not
where domains differ in the length or the homogeneity of their documents; both statistics are
therefore divided by their own standard error before permuting. Sizes measured over such designs
stand in docs/concepts/statistics.md. It knows arrays only.

Shapes: T tokens, K experts per token, N documents, C domains, X labels (such as token ids).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy import sparse

from moescope.metrics.intervals import MIN_CLUSTERS
from moescope.metrics.statistics import permutation_p

PERMUTATIONS = 499
"""The smallest p is 1/500."""

MOST_DOCUMENTS = 600
"""Where there are more, documents of one domain are joined before pairs are made."""

_BATCH_CELLS = 4_000_000
_LEVELLING = 10
"""Rounds of `_levelled`; the sizes of rows differ by less than 1 % after them."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def domain_p(
    counts_NE: Int64[np.ndarray, "N E"], domain_N: Int64[np.ndarray, " N"], rng: np.random.Generator
) -> float:
    """Do domains use the experts of a layer at different rates?

    The rates of each domain are compared with their mean, both weighted by the inverse of the
    domain's own variance between documents (Welch), summed over experts in units of their overall
    rate. Labels are permuted over documents.

    Returns:
        p, at least 1/(1 + `PERMUTATIONS`). NaN with fewer than two domains of at least
        `MIN_CLUSTERS` documents; documents of smaller domains are left out.

    Reference:
        Janssen 1997, Studentized permutation tests for non-i.i.d. hypotheses.
    """
    kept, domain_N = _large_domains(domain_N, counts_NE.sum(1) > 0)
    if kept is None:
        return float("nan")
    counts = counts_NE[kept].astype(np.float64)
    totals_E = counts.sum(0)
    counts = counts[:, totals_E > 0] / np.sqrt(totals_E[totals_E > 0] / totals_E.sum())
    size_N1, width = counts_NE[kept].sum(1, keepdims=True).astype(np.float64), counts.shape[1]
    parts = np.hstack([counts, counts**2, counts * size_N1, size_N1, size_N1**2])

    def statistic(member_RNC: Floats) -> Floats:
        sums = np.einsum("rnc,np->rcp", member_RNC, parts, optimize=True)
        many = member_RNC.sum(1)[..., None]
        size, size2 = sums[..., -2:-1], sums[..., -1:]
        rate = sums[..., :width] / size
        square, cross = sums[..., width : 2 * width], sums[..., 2 * width : 3 * width]
        between = (square - 2 * rate * cross + rate**2 * size2).sum(2, keepdims=True)
        weight = 1 / np.maximum(between / size**2 * many / (many - 1), 1e-15)
        middle = (weight * rate).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
        made: Floats = (weight * (rate - middle) ** 2).sum((1, 2))
        return made

    return _permuted(domain_N, statistic, rng)


def pairs_p(
    pairs_NN: Float[np.ndarray, "N N"], domain_N: Int64[np.ndarray, " N"], rng: np.random.Generator
) -> float:
    """Are two documents of one domain more alike, label by label, than two of any domain?

    The statistic is the sum of `document_pairs` over pairs of one domain, divided by the root of
    the sum of their squares. It is taken as it is, and with every document brought to the same
    strength, so that a few long or odd documents cannot decide; the larger p counts.

    Args:
        pairs_NN: from `document_pairs`.
        domain_N: domain of each document; all of them should share labels with others.
        rng: random numbers.

    Returns:
        p, at least 1/(1 + `PERMUTATIONS`), and 1 where every W_ij is 0. NaN with fewer than two
        domains of at least `MIN_CLUSTERS` documents; documents of smaller domains are left out.
    """
    kept, domain_N = _large_domains(domain_N, np.ones(domain_N.size, np.bool_))
    if kept is None:
        return float("nan")
    plain = pairs_NN[np.ix_(kept, kept)]
    return max(_same_domain_p(made, domain_N, rng) for made in (plain, _levelled(plain)))


def _same_domain_p(pairs: Floats, domain_N: Ints, rng: np.random.Generator) -> float:
    both = np.stack([pairs, pairs**2])

    def statistic(member_RNC: Floats) -> Floats:
        flat = member_RNC.transpose(1, 0, 2).reshape(len(pairs), -1)
        inside = ((both @ flat) * flat).sum(1).reshape(2, len(member_RNC), -1).sum(2)
        made: Floats = inside[0] / np.sqrt(np.maximum(inside[1], 1e-30))
        return made

    return _permuted(domain_N, statistic, rng)


def _levelled(pairs: Floats) -> Floats:
    """Rows and columns divided alike until every document has the same mean square."""
    made = pairs.copy()
    for _ in range(_LEVELLING):
        size = np.sqrt(np.sqrt((made**2).mean(1)))
        size[size == 0] = 1.0
        made /= size[:, None] * size
    return made


def document_pairs(
    ids_TK: Int64[np.ndarray, "T K"],
    label_T: Int64[np.ndarray, " T"],
    doc_T: Int64[np.ndarray, " T"],
    num_experts: int,
    num_docs: int,
) -> Float[np.ndarray, "N N"]:
    """How much more alike two documents route the labels that they share than documents do.

    W_ij = Σ_x n_xi·n_xj/n_x · ã_xij: n_xi tokens of label x in document i, of n_x in all;
    ã_xij is a_xij = Σ_e p_xi(e)·p_xj(e)/p(e) less what i, j and x have of their own, where p_xi are
    the shares of the experts among those tokens and p those of the layer. With the sums r_xi of
    a_xij over the other documents and R_x over all pairs, of d documents that have x,
    ã_xij = a_xij − (r_xi + r_xj)/(d − 2) + R_x/((d − 1)(d − 2)). A document's tokens are compared
    with those of other documents only. Where documents differ by chance alone, every W_ij has mean
    0 and no two are correlated, whatever the words and lengths of the documents.

    Args:
        ids_TK: the experts of each token.
        label_T: what is held constant, 0 … X − 1: the token id, for example.
        doc_T: its document, 0 … N − 1.
        num_experts: E.
        num_docs: N.

    Returns:
        W, symmetric, its diagonal 0; so are the rows of documents that share no label with at least
        three others.

    Reference:
        U-centring: Székely and Rizzo 2014, Partial distance correlation.
    """
    labels = int(label_T.max(initial=0)) + 1
    cells, cell_T = np.unique(doc_T * labels + label_T, return_inverse=True)
    cell_T, doc_B, label_B = cell_T.reshape(-1), cells // labels, cells % labels
    docs_X = np.bincount(label_B, minlength=labels)
    size_B, size_X = np.bincount(cell_T), np.bincount(label_T, minlength=labels)
    weight_B = size_B / np.sqrt(size_X[label_B]) * (docs_X[label_B] > 3)
    share_E = np.bincount(ids_TK.reshape(-1), minlength=num_experts) / max(ids_TK.size, 1)
    parts_TK = 1 / (np.sqrt(share_E[ids_TK]) * (size_B[cell_T] * ids_TK.shape[1])[:, None])
    columns = (label_T[:, None] * num_experts + ids_TK).reshape(-1)
    shares = sparse.csr_array(
        (parts_TK.reshape(-1), (np.repeat(cell_T, ids_TK.shape[1]), columns)),
        shape=(cells.size, labels * num_experts),
    )
    summed = np.asarray(shares.sum(0)).reshape(-1)
    own = np.asarray(shares.multiply(shares).sum(1)).reshape(-1)
    others_B = shares @ summed - own
    spare_X = np.maximum(docs_X - 2, 1)
    middle_X = np.bincount(label_B, others_B, labels) / (np.maximum(docs_X - 1, 1) * spare_X)
    shift_B = middle_X[label_B] / 2 - others_B / spare_X[label_B]

    def by_document(values_B: Floats) -> sparse.csr_array:
        return sparse.csr_array((values_B, (doc_B, label_B)), shape=(num_docs, labels))

    gather = sparse.csr_array((weight_B, (doc_B, np.arange(cells.size))), (num_docs, cells.size))
    experts = gather @ shares
    half = (by_document(weight_B * shift_B) @ by_document(weight_B).T).toarray()
    made: Floats = (experts @ experts.T).toarray() + half + half.T
    made[np.abs(made) < 1e-12] = 0.0
    np.fill_diagonal(made, 0.0)
    return made


def joined_documents(doc_T: Ints, domain_T: Ints) -> Ints:
    """Documents of one domain joined in turn until at most `MOST_DOCUMENTS` are left."""
    documents, first, doc = np.unique(doc_T, return_index=True, return_inverse=True)
    if documents.size <= MOST_DOCUMENTS:
        return doc.reshape(-1).astype(np.int64)
    domain_N = np.unique(domain_T[first], return_inverse=True)[1]
    most = max(MIN_CLUSTERS, MOST_DOCUMENTS // (int(domain_N.max()) + 1))
    order = np.argsort(domain_N, kind="stable")
    starts = np.searchsorted(domain_N[order], np.arange(domain_N.max() + 1))
    turn = np.empty(documents.size, np.int64)
    turn[order] = np.arange(documents.size) - starts[domain_N[order]]
    joined = np.unique(domain_N * most + turn % most, return_inverse=True)[1]
    made: Ints = joined.reshape(-1)[doc.reshape(-1)].astype(np.int64)
    return made


def _large_domains(domain_N: Ints, usable_N: NDArray[np.bool_]) -> tuple[Ints | None, Ints]:
    """Places of the usable documents in domains that have enough of them, and their domains."""
    sizes = np.bincount(domain_N[usable_N], minlength=int(domain_N.max(initial=0)) + 1)
    kept = np.flatnonzero(usable_N & (sizes[domain_N] >= MIN_CLUSTERS))
    names, domain = np.unique(domain_N[kept], return_inverse=True)
    return (kept if names.size > 1 else None), domain.reshape(-1).astype(np.int64)


def _permuted(
    domain_N: Ints, statistic: Callable[[Floats], Floats], rng: np.random.Generator
) -> float:
    """Share of labellings, the true one included, whose statistic is at least the true one."""
    columns = np.eye(int(domain_N.max()) + 1)
    drawn = (statistic(columns[labels]) for labels in _labellings(domain_N, rng))
    return float(permutation_p(statistic(columns[domain_N][None])[0], drawn))


def _labellings(domain_N: Ints, rng: np.random.Generator) -> Iterator[Ints]:
    cells = domain_N.size * (int(domain_N.max()) + 1)
    step = max(1, min(PERMUTATIONS, _BATCH_CELLS // cells))
    for start in range(0, PERMUTATIONS, step):
        rows = min(step, PERMUTATIONS - start)
        yield rng.permuted(np.tile(domain_N, (rows, 1)), axis=1)
