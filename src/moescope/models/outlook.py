"""What a model will take here, before anything of it is loaded: memory, and about how much time.

Shapes and one short matrix product tell; no weight is read.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from moescope.memory import readable
from moescope.models.loading import Holding
from moescope.models.source import is_here
from moescope.models.spec import local_folder
from moescope.words import about_time, counted

_OF_THE_PEAK = 0.6
"""What a trace reaches of plain matrix products; 0.6 to 0.9 were measured (docs/performance.md)."""
_ROWS, _WIDTH, _SECONDS = 256, 1024, 0.3
_PER_LAYER, _PER_EXPERT = 2e-6, 3e-8
"""Seconds that recording takes for a token in a layer, and more for each of its experts."""


class Outlook(NamedTuple):
    """What one pass over a text will take; all of it is an estimate.

    ``tokens`` of the text, at least so many where not ``whole``; ``rate``: tokens in a second.
    """

    held: Holding
    tokens: int
    whole: bool
    rate: float

    @property
    def seconds(self) -> float:
        """Time of the pass; loading, tables and pages come on top."""
        return self.tokens / self.rate

    def __str__(self) -> str:
        held, least = self.held, "" if self.whole else "at least "
        weights = readable(held.anatomy.total_params * held.dtype.itemsize)
        precision = str(held.dtype).removeprefix("torch.")
        need, budget = readable(held.need), readable(held.budget)
        way = (
            f"read from disk layer by layer within {budget} of memory (whole it would take {need})"
            if held.streamed
            else f"held in {need} of memory ({budget} may be taken)"
        )
        return (
            f"{_called(held.spec.model)}: {weights} of weights in {precision}, "
            f"{'' if is_here(held.spec) else 'to be fetched first, '}{way}\n"
            f"{least}{counted(self.tokens, 'token')}, {least}{about_time(self.seconds)} at an "
            f"estimated {self.rate:,.0f} tokens a second; loading, tables and pages come on top"
        )


def _called(model: str) -> str:
    """A folder without those above it; a hub id whole."""
    folder = local_folder(model)
    return model if folder is None else folder.resolve().name


def outlook(held: Holding, tokens: int, whole: bool = True) -> Outlook:
    """What a pass of this many tokens will take; see `Outlook`."""
    computing = 2 * held.anatomy.active_params / (_OF_THE_PEAK * _products(held.device, held.dtype))
    recording = sum(_PER_LAYER + _PER_EXPERT * m.num_experts for m in held.anatomy.layers)
    return Outlook(held, tokens, whole, 1 / (computing + recording))


def _products(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations in a second, of a plain product in this precision."""
    rows = torch.ones(_ROWS, _WIDTH, device=device, dtype=dtype)
    weights = torch.ones(_WIDTH, _WIDTH, device=device, dtype=dtype)
    done, began = -1, 0.0  # the first one compiles
    while done < 1 or time.perf_counter() - began < _SECONDS:
        (rows @ weights)[0, 0].item()  # waits for the device
        done += 1
        began = began or time.perf_counter()
    return done * 2 * _ROWS * _WIDTH**2 / (time.perf_counter() - began)
