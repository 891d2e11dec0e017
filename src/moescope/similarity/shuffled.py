"""Experts whose weights were shuffled: what experts of this shape have in common without training.

Two functions of the same input are alike to some degree whatever they compute. How much that is
for experts of this width and with weights of this size is measured on the model itself: every
weight tensor of one expert keeps its entries and loses their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moescope.models.expert_calls import ExpertLayer


@contextmanager
def shuffled_expert(experts: ExpertLayer, expert: int, seed: int) -> Iterator[None]:
    """While the block runs, the entries of each of an expert's weight tensors stand elsewhere.

    Afterwards every entry is back, bit for bit.

    Raises:
        ModelError: this family does not keep its experts stacked.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = [(tensor[expert], tensor[expert].clone()) for _, tensor in experts.weights()]
    try:
        with torch.no_grad():
            for place, entries in kept:
                order = torch.randperm(entries.numel(), generator=generator).to(entries.device)
                place.copy_(entries.flatten()[order].view_as(entries))
        yield
    finally:
        with torch.no_grad():
            for place, entries in kept:
                place.copy_(entries)
