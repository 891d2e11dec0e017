"""How far long work is: one thing that is told, by everything that takes long.

Who wants to know gives a function ``on_progress``. It knows neither what is done nor who shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """What is being done, and how far that is.

    ``stage``: in words. ``done`` of ``total`` (None: unknown) in ``unit``, such as ``tokens``.
    ``note``: a line that is to stay, such as that a shard is finished.
    """

    stage: str
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def share(self) -> float:
        """Of the stage, in [0, 1]; 0 where the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else 0.0


OnProgress = Callable[[Progress], None]
"""Told how far it is, in the thread that works."""


def quiet(_at: Progress) -> None:
    """Tell nobody."""
