"""What an edit does to the prediction of single tokens: cross-entropy, KL, top-1 flips.

With z and z' the logits of the plain and of the edited pass, p = softmax(z), y the true next token
and d = z' − z::

    change of CE = log Σ p·exp(d) − d_y      KL(plain‖edited) = log Σ p·exp(d) − Σ p·d      (nats)

over the full vocabulary. The differences are taken before any logarithm, so small effects are not
lost in the rounding of two large numbers. A flip: another token now has a higher logit than the
one that the plain model preferred. Arrays of (tokens × vocabulary) are worked on in pieces.
It knows no edits and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

_PIECE_CELLS = 1 << 20
"""Cells that are worked on at once, so that they stay in the processor's cache."""

_FAR = 20.0
_OVERFLOW = math.exp(_FAR)
"""Beyond these, Σ p·exp(d) and Σ p·d of a token are computed again in double precision."""


class TokenDamage(NamedTuple):
    """Of each token, (n,) float64: change of cross-entropy and KL in nats, and 1 where top-1 flips.

    ``ce_change`` may be negative; ``kl`` is never below 0.
    """

    ce_change: torch.Tensor
    kl: torch.Tensor
    flips: torch.Tensor

    def take(self, index: torch.Tensor) -> TokenDamage:
        """The tokens at these places."""
        return TokenDamage(*(t[index] for t in self))


class PlainScores:
    """What the plain model says at n tokens.

    Args:
        logits_nV: of the plain pass.
        target_n: the true next tokens.

    Attributes:
        logits: as given, in single precision (double stays double).
        probs: softmax of them. top: the preferred token. ce: cross-entropy in nats, float64.
    """

    def __init__(self, logits_nV: torch.Tensor, target_n: torch.Tensor) -> None:
        self.logits = _at_least_single(logits_nV)
        self.target = target_n
        self.probs = torch.empty_like(self.logits)
        self.top = torch.empty_like(target_n)
        self.ce = _wide(torch.empty(target_n.shape, device=target_n.device))
        for part in _pieces(self.logits):
            log_probs = torch.log_softmax(_wide(self.logits[part]), -1)
            self.probs[part] = log_probs.exp().to(self.probs.dtype)
            self.ce[part] = -log_probs.gather(-1, target_n[part, None])[:, 0]
            self.top[part] = self.logits[part].argmax(-1)

    def __len__(self) -> int:
        return int(self.target.shape[0])


def compare(
    plain: PlainScores, logits_mV: torch.Tensor, index_m: torch.Tensor | None = None
) -> TokenDamage:
    """Change of the prediction of tokens, (m,) each.

    Args:
        plain: of n tokens.
        logits_mV: of the edited pass.
        index_m: which of the n tokens they belong to; all, in order, by default.

    Returns:
        See `TokenDamage`.
    """
    parts = []
    for part in _pieces(logits_mV):
        chosen = part if index_m is None else index_m[part]
        parts.append(_compare_piece(plain, _at_least_single(logits_mV[part]), chosen))
    if not parts:
        empty = torch.zeros_like(plain.ce[:0])
        return TokenDamage(empty, empty, empty)
    return TokenDamage(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _compare_piece(
    plain: PlainScores, edited: torch.Tensor, chosen: slice | torch.Tensor
) -> TokenDamage:
    probs, target, top = plain.probs[chosen], plain.target[chosen, None], plain.top[chosen, None]
    flips = edited.amax(-1) > edited.gather(-1, top)[:, 0]
    change = edited - plain.logits[chosen]
    mean = _wide(torch.linalg.vecdot(probs, change))
    at_target = _wide(change.gather(-1, target)[:, 0])
    total = torch.linalg.vecdot(probs, change.exp_())
    log_total = torch.log(_wide(total) / _wide(probs.sum(-1)))
    kl, ce_change = log_total - mean, log_total - at_target
    far = torch.nonzero(~((total < _OVERFLOW) & (mean > -_FAR)))[:, 0]
    if far.numel():
        exact = _compare_exactly(plain.logits[chosen][far], edited[far], target[far])
        kl[far], ce_change[far] = exact
    return TokenDamage(ce_change, kl.clamp_(min=0.0), _wide(flips))


def _compare_exactly(
    before: torch.Tensor, after: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and change of CE from log-probabilities in double precision, for large changes."""
    p, q = (torch.log_softmax(_wide(t), -1) for t in (before, after))
    return (p.exp() * (p - q)).sum(-1), (p - q).gather(-1, target)[:, 0]


def _pieces(logits: torch.Tensor) -> Iterator[slice]:
    rows, vocabulary = logits.shape
    step = max(1, _PIECE_CELLS // vocabulary)
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _at_least_single(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In double precision, where the device has it."""
    return values.float() if values.device.type == "mps" else values.double()
