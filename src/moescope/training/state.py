"""Where a training run is, and what it ends with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from moescope.training.log import TrainingLog
from moescope.training.recipe import Recipe


@dataclass(frozen=True)
class Kept:
    """A model kept on the way."""

    step: int
    share: float
    path: Path


@dataclass
class TrainingState:
    """Where a training run is; what listeners are told.

    Attributes:
        recipe: what is trained. folder: where. notes: said at the start.
        status: running, finished or stopped. message: why it stopped.
        step: steps done. seconds: spent on steps, all sessions together.
        tokens_per_second: of the last steps.
        log: the tables so far. kept: models kept so far.
        parameters, active_parameters: of the stock model.
        layer_numbers: of its MoE layers.
    """

    recipe: Recipe
    folder: Path
    notes: list[str]
    log: TrainingLog
    parameters: int
    active_parameters: int
    layer_numbers: tuple[int, ...]
    status: Literal["running", "finished", "stopped"] = "running"
    message: str | None = None
    step: int = 0
    seconds: float = 0.0
    tokens_per_second: float = math.nan
    kept: list[Kept] = field(default_factory=list)


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        folder: the run. model: the stock model in it.
        losses: held-out nats per token by domain, in the precision of the training.
        saved: those of the model in the folder, whose weights are rounded to bfloat16.
        unigram: the baseline, fit on training text.
        state: the last state.
    """

    folder: Path
    model: Path
    losses: dict[str, float]
    saved: dict[str, float]
    unigram: dict[str, float]
    state: TrainingState
