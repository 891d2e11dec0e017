"""What a choice of experts is worth where it was measured: `ablate --each` results of the run.

Read from their folders; nothing here needs the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.ranks import rank_correlation
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.statistics import permutation_p
from moescope.metrics.view import Layer
from moescope.result import read_result, results_in

_CHOICES = 9999
"""Random choices that a plan is compared with."""

Floats = NDArray[np.float64]


class Importance(NamedTuple):
    """Change of cross-entropy when an expert alone is taken away, (M,); NaN where not measured.

    ``text``: the domain that it was measured on, or all text. ``folders``: where it lies.
    """

    change: Floats
    text: str
    folders: tuple[str, ...]


class Foretold(NamedTuple):
    """How a choice and its score stand to measured importance, in the layers where it is known.

    ``rho``, ``low``, ``high``, ``p``: Spearman's ρ of score and importance within layers, over
    ``experts``. ``chosen``: how many of the chosen are among them; ``chosen_mean``: the mean change
    by one of them; ``random_mean``: by one of as many random ones of the same layers;
    ``p_random``: the chance that these would change as much or more, NaN where none is chosen.
    """

    layers: tuple[int, ...]
    text: str
    experts: int
    rho: float
    low: float
    high: float
    p: float
    chosen: int
    chosen_mean: float
    random_mean: float
    p_random: float


def find_importance(run: AnalyzedRun, target: Sequence[str]) -> Importance | None:
    """What sweeps of every expert in folders of the run measured; None where there is none.

    On the text of the target where it is one domain that was measured by itself, else on all text.
    """
    model = run.manifest.model
    hashes = {name: model[name] for name in ("config_sha256", "weights_sha256")}
    found = [
        name
        for name, head in results_in(run.path, **hashes).items()
        if head.kind == "ablation" and head.about.get("trials") == "each"
    ]
    rows = [r for n in found for r in read_result(run.path / n).tables["each"].to_pylist()]
    if not rows:
        return None
    alone = target[0] if len(target) == 1 else None
    own = [r for r in rows if r["scope"] == "domain" and r["domain"] == alone]
    silent = {(r["layer"], r["expert"]) for r in rows if r["chosen"] == 0}
    places = _places(run)
    change = np.full(len(places), np.nan)
    for row in own or [r for r in rows if r["scope"] == "all"]:
        key = (row["layer"], row["expert"])
        if key in places and key not in silent and row["ce_change"] is not None:
            change[places[key]] = row["ce_change"]
    if np.isnan(change).all():
        return None
    return Importance(change, str(alone) if own else "all text", tuple(found))


def _places(run: AnalyzedRun) -> dict[tuple[int, int], int]:
    layers = Layer.all_of(run.shape)
    named = [(m.layer_idx, e) for m in layers for e in range(m.num_experts)]
    return {key: place for place, key in enumerate(named)}


def foretell(
    importance: Importance,
    layers: Sequence[Layer],
    score_M: Floats,
    chosen_M: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Foretold:
    """Compare a score and the choice by it with what was measured."""
    cuts = np.cumsum([m.num_experts for m in layers])[:-1]
    parts = zip(*(np.split(v, cuts) for v in (score_M, importance.change, chosen_M)), strict=True)
    known = {m.layer_idx: p for m, p in zip(layers, parts, strict=True) if np.isfinite(p[1]).any()}
    made = rank_correlation([(score, change) for score, change, _ in known.values()], rng)
    drawn, taken, expected = np.zeros(_CHOICES), np.zeros(0), 0.0
    for _, whole, chosen in known.values():
        change, mine = whole[np.isfinite(whole)], chosen[np.isfinite(whole)]
        taken, number = np.concatenate([taken, change[mine]]), int(mine.sum())
        expected += number * float(change.mean())
        drawn += rng.permuted(np.tile(change, (_CHOICES, 1)), axis=1)[:, :number].sum(1)
    size = taken.size
    numbers: dict[str, Any] = {"chosen_mean": np.nan, "random_mean": np.nan, "p_random": np.nan}
    if size:
        numbers = {
            "chosen_mean": float(taken.mean()),
            "random_mean": expected / size,
            "p_random": float(permutation_p(taken.sum(), [drawn])),
        }
    return Foretold(
        layers=tuple(known),
        text=importance.text,
        **made._asdict(),
        chosen=size,
        **numbers,
    )
