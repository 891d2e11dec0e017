"""From the sums that an expert adds to the stream to the tokens it promotes and suppresses.

Every figure is a mean over the tokens that an expert served, of its Δlogits with each token's
frozen scale, minus their mean over the vocabulary. Beside it stands the same for the layer's other
experts, each counted once: what all experts promote is not a mark of one. Two halves of the
documents say how repeatable it is. It knows torch and the lens, no text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.metrics.ranks import spearman
from moescope.profiles.lens import Lens
from moescope.profiles.measure import Pushes

PUSH_ROWS = 20
"""Promoted, and suppressed, tokens that are kept of each expert."""

AGREED_TOKENS = 20
"""The strongest so many tokens of one half are compared with those of the other."""

MIN_HALF_TOKENS = 50
"""An expert needs so many assignments in each half of the documents."""

_CORRELATED = 8192


class Pushed(NamedTuple):
    """The pushes of one layer's experts; NaN and −1 for an expert with too few tokens.

    ``ids`` (2, E, R): promoted tokens, then suppressed ones, strongest first; ``own`` the same
    shape: mean Δlogit, centred; ``beyond``: own minus that of the layer's other experts, by which
    tokens are ranked; ``halves`` (2, 2, E, R): beyond in each half of the documents, halves first.
    ``agreement`` (E,): Spearman correlation between the halves, over about 8,192 tokens of
    the vocabulary at even steps; ``overlap``
    (2, E): share of the 20 strongest that they have in common. ``spread`` (E,): standard deviation
    of beyond over the vocabulary. ``counts`` (2, E): assignments behind the halves.
    """

    ids: NDArray[np.int64]
    own: NDArray[np.float64]
    beyond: NDArray[np.float64]
    halves: NDArray[np.float64]
    agreement: NDArray[np.float64]
    overlap: NDArray[np.float64]
    spread: NDArray[np.float64]
    counts: NDArray[np.int64]


def rank_pushes(lens: Lens, pushes: Pushes) -> Pushed:
    """Promoted and suppressed tokens of one layer's experts.

    An expert that is the only one with enough tokens has no others to stand beside: its own push
    is then ranked.
    """
    experts = pushes.counts.shape[1]
    rows = min(PUSH_ROWS, lens.vocabulary)
    shape = (2, experts, rows)
    made = Pushed(
        ids=np.full(shape, -1, np.int64),
        own=np.full(shape, np.nan),
        beyond=np.full(shape, np.nan),
        halves=np.full((2, *shape), np.nan),
        agreement=np.full(experts, np.nan),
        overlap=np.full((2, experts), np.nan),
        spread=np.full(experts, np.nan),
        counts=pushes.counts,
    )
    used = np.flatnonzero((pushes.counts >= MIN_HALF_TOKENS).all(0))
    if not used.size:
        return made
    vectors = _vectors(pushes, used)
    seen = _look(lens, vectors, rows)
    made.ids[:, used] = seen.ids
    for i, e in enumerate(used.tolist()):
        for side in (0, 1):
            ids = torch.as_tensor(seen.ids[side, i], device=lens.head.device)
            values = lens.at(vectors[:, i], ids).double().cpu().numpy() - seen.mean[:, i, None]
            made.own[side, e], made.beyond[side, e] = values[0], values[1]
            made.halves[:, side, e] = values[2:]
    made.agreement[used], made.overlap[:, used] = seen.agreement, seen.overlap
    made.spread[used] = seen.spread
    return made


def _vectors(pushes: Pushes, used: NDArray[np.int64]) -> torch.Tensor:
    """(4, E, D): own, beyond the others, and beyond in each half."""
    index = torch.as_tensor(used, device=pushes.sums.device)
    sums = pushes.sums[:, index].float()
    counts = torch.as_tensor(pushes.counts[:, used], device=sums.device).float()[..., None]
    own = sums.sum(0) / counts.sum(0)
    parts = [own, sums[0] / counts[0], sums[1] / counts[1]]
    beyond = [part - _others(part) for part in parts]
    return torch.stack([own, beyond[0], beyond[1], beyond[2]])


def _others(means_ED: torch.Tensor) -> torch.Tensor:
    """The mean of all other rows, each counted once; zero where there is no other."""
    size = means_ED.shape[0]
    if size < 2:
        return torch.zeros_like(means_ED)
    return (means_ED.sum(0) - means_ED) / (size - 1)


class _Seen(NamedTuple):
    """What one look over the vocabulary gives, for E experts with enough tokens."""

    ids: NDArray[np.int64]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    agreement: NDArray[np.float64]
    overlap: NDArray[np.float64]


class _Strongest:
    """The R largest values of each row and their ids, over chunks of a vocabulary."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._values: torch.Tensor | None = None
        self.ids = torch.empty(0)

    def add(self, start: int, values: torch.Tensor) -> None:
        ids = torch.arange(start, start + values.shape[1], device=values.device)
        joined, names = values, ids.expand_as(values)
        if self._values is not None:
            joined = torch.cat([self._values, values], dim=1)
            names = torch.cat([self.ids, names], dim=1)
        order = joined.topk(min(self._rows, joined.shape[1]), dim=1).indices
        self._values, self.ids = joined.gather(1, order), names.gather(1, order)


def _look(lens: Lens, vectors: torch.Tensor, rows: int) -> _Seen:
    experts = vectors.shape[1]
    best = [[_Strongest(n) for n in (rows, AGREED_TOKENS, AGREED_TOKENS)] for _ in (0, 1)]
    total = torch.zeros(4, experts, dtype=torch.float64)
    squares = torch.zeros_like(total)
    step = max(1, lens.vocabulary // _CORRELATED)
    kept = []
    for start, made in lens.chunks(vectors.reshape(-1, vectors.shape[-1])):
        part = made.reshape(4, experts, -1)
        total += part.double().sum(-1).cpu()
        squares += part.double().pow(2).sum(-1).cpu()
        kept.append(part[2:, :, (-start) % step :: step].cpu())
        for side, sign in enumerate((1, -1)):
            for n in range(3):
                best[side][n].add(start, sign * part[n + 1])
    mean = total / lens.vocabulary
    halves = torch.cat(kept, dim=-1).numpy()
    spread = (squares / lens.vocabulary - mean**2).clamp_min(0).sqrt()[1]
    return _Seen(
        ids=np.stack([best[side][0].ids.cpu().numpy() for side in (0, 1)]),
        mean=mean.numpy(),
        spread=spread.numpy(),
        agreement=spearman(*halves),
        overlap=np.stack([_overlap(best[side][1].ids, best[side][2].ids) for side in (0, 1)]),
    )


def _overlap(a: torch.Tensor, b: torch.Tensor) -> NDArray[np.float64]:
    same = (a[:, :, None] == b[:, None, :]).any(-1).float().mean(-1)
    shares: NDArray[np.float64] = same.double().cpu().numpy()
    return shares
