"""What a router put out, and the arithmetic on it that kinds of edits share."""

from __future__ import annotations

from typing import NamedTuple

import torch

__all__ = ["Chosen", "same_sum", "wide"]


class Chosen(NamedTuple):
    """What a router put out, as rows. ``real_ids`` gives a skip expert its own number."""

    logits: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    real_ids: torch.Tensor


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 at least: sums and ratios of half precision would be rounded twice."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def same_sum(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Scale each row of ``new`` to the sum of that row of ``old``; rows of zeros stay."""
    total = wide(new).sum(-1, keepdim=True)
    whole = total.where(total > 0, torch.ones_like(total))
    return (wide(new) * (wide(old).sum(-1, keepdim=True) / whole)).to(new.dtype)
