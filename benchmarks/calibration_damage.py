"""Is the p of an ablation what it says? Plans of no interest, whose harm is known.

    python benchmarks/calibration_damage.py [--nulls 400] [--out benchmarks/calibration_damage.json]

A layer of experts with uneven loads; the harm of taking one away is drawn at random, or follows its
load, or the square of it. A plan is one or two experts drawn at random, so it is of no interest,
and p ≤ 0.05 should come in at most 5 % of the cases. Beside it: the share of plans without any like
partner, which get no p; the least p that the controls could give; and power, the share of p ≤ 0.05
when the harm of the plan's experts is three times as large.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.intervene.damage.table import beyond
from moescope.measure.controls import draw_controls, exceed_chance, lowest_p

EXPERTS = 64
TOKENS = 50_000
FOLLOWS = {"no load": 0.0, "load": 1.0, "load squared": 2.0}


def one(
    size: int, controls: int, power: float, factor: float, rng: np.random.Generator, seed: int
) -> tuple[float, float, float]:
    """p, the least p, and the p that counts as they are, of one plan; NaN without a partner."""
    load = rng.dirichlet(np.full(EXPERTS, 2.0))
    counts = rng.multinomial(TOKENS, load)
    harm = (load * EXPERTS) ** power * rng.gamma(4.0, 0.25, EXPERTS)
    plan = tuple(ExpertRef(0, int(e)) for e in np.sort(rng.permutation(EXPERTS)[:size]))
    drawn = draw_controls(plan, {0: counts}, controls, rng)
    if not drawn.plans:
        return float("nan"), float("nan"), float("nan")
    values = np.array(
        [factor * sum(harm[r.expert] for r in plan)]
        + [sum(harm[r.expert] for r in refs) for refs in drawn.plans]
    )
    chance = exceed_chance(plan, drawn.plans, seed)
    plain, careful = beyond(values, chance, np.concatenate([[1.0], 1 / drawn.ratios]))
    return careful, lowest_p(chance), plain


def row(
    size: int, controls: int, follows: str, runs: int, rng: np.random.Generator
) -> dict[str, object]:
    """Size and power of one scenario."""
    null = np.array([one(size, controls, FOLLOWS[follows], 1.0, rng, n) for n in range(runs)])
    real = np.array([one(size, controls, FOLLOWS[follows], 3.0, rng, n) for n in range(runs)])

    def share(values: NDArray[np.float64]) -> float:
        return round(float((values[np.isfinite(values)] <= 0.05).mean()), 3)

    return {
        "experts": size,
        "controls": controls,
        "harm_follows": follows,
        "plans": runs,
        "size": share(null[:, 0]),
        "size_of_plain_p": share(null[:, 2]),
        "power": share(real[:, 0]),
        "least_p": round(float(np.nanmedian(null[:, 1])), 3),
        "without_partner": round(float(np.isnan(null[:, 0]).mean()), 3),
    }


def main() -> None:
    """Run all scenarios and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nulls", type=int, default=400)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    given = parser.parse_args()
    rng, rows = np.random.default_rng(6), []
    for size in (1, 2):
        for controls in (20, 60):
            for follows in FOLLOWS:
                rows.append(row(size, controls, follows, given.nulls, rng))
                print(json.dumps(rows[-1]), flush=True)
    Path(given.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
