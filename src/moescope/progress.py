"""How far long work is: one thing that is told, by everything that takes long.

Who wants to know gives a function ``on_progress``. It knows neither what is done nor who shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """What is being done, and how far that is.

    ``stage``: in words. ``done`` of ``total`` (None: unknown) in ``unit``, such as ``tokens``.
    ``note``: a line that is to stay, such as that a shard is finished. ``later``: a guess of the
    seconds that other stages take after this one. ``work``: what is done in all, such as
    ``192 experts of 6 layers``; it stands beside the time that is said beforehand.
    """

    stage: str
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    note: str = ""
    later: float = 0.0
    work: str = ""

    @property
    def share(self) -> float:
        """Of the stage, in [0, 1]; 0 where the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else 0.0


class Reckoning:
    """How far the whole work is, and how long it still takes, from what its stages tell.

    Of a stage the pace so far goes on; of later stages there is a guess (`Progress.later`). Stages
    of unknown length count for nothing.

    Attributes:
        share: of the work, in [0, 1); it never falls.
        left: seconds, NaN while nothing can be said; ``rate`` of the stage likewise.
        measured: seconds that the pace was measured over.
    """

    def __init__(self) -> None:
        self.share, self.left, self.rate, self.measured = 0.0, math.nan, math.nan, 0.0
        self._before = self._own = 0.0
        self._last, self._began = Progress(""), (0.0, 0.0)

    def tell(self, at: Progress, now: float) -> None:
        """Take in what is told at this time, in seconds."""
        if at.unit != self._last.unit or at.done < self._last.done:
            self._before, self._own = self._before + self._own, 0.0
            self._began = now, at.done
            self.left, self.rate, self.measured = self._last.later or math.nan, math.nan, 0.0
        self._last = at
        seconds, done = now - self._began[0], at.done - self._began[1]
        if not at.total or done <= 0 or seconds < _SOONEST:
            return
        self.rate, self.measured = done / seconds, seconds
        self._own = at.total / self.rate
        self.left = max(0.0, at.total - at.done) / self.rate + at.later
        done_so_far = self._before + at.share * self._own
        share = done_so_far / (self._before + self._own + at.later)
        self.share = max(self.share, min(share, 0.99))


_SOONEST = 0.5
"""Seconds of a stage before its pace says anything."""

OnProgress = Callable[[Progress], None]
"""Told how far it is, in the thread that works."""


def quiet(_at: Progress) -> None:
    """Tell nobody."""
