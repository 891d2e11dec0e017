"""Are the domain test and the intervals what they say? Known rates, simulated documents.

    python benchmarks/calibration.py [--nulls 200] [--out benchmarks/calibration.json]

Size: share of cells with p < 0.05 where the rates of both domains are equal, of the test and of a
plain difference of rates under the same permutations. Power: the same where one domain's rates are
1.5 times the other's. Coverage: share of 95 % intervals that hold the true rate, by number of
documents. Documents are beta-binomial: each has a rate of its own; icc is the share of variance
that lies between documents. "1 in 10 hot": one document in ten uses an expert at 9.1 times its
rate, the others at a tenth; the hardest case that was found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moescope.metrics.rates import rate_interval
from moescope.metrics.specialization import domain_specialization
from moescope.metrics.statistics import benjamini_hochberg

CELLS = 96
PERMUTATIONS = 999
HOT = -1.0
"""Stands where an icc would: one document in ten uses an expert much, the others hardly."""

Lengths = Callable[[np.random.Generator, int], NDArray[np.int64]]


def fixed(length: int) -> Lengths:
    """Documents of one length."""
    return lambda _, n: np.full(n, length)


def around(median: int, spread: float) -> Lengths:
    """Lognormal lengths, at least 3 tokens."""
    return lambda rng, n: np.maximum(3, median * np.exp(spread * rng.normal(size=n))).astype(int)


#: name → for each of two domains: documents, lengths, icc
DOMAINS: dict[str, list[tuple[int, Lengths, float]]] = {
    "alike: 40 of about 100 tokens, 40 the same": [(40, around(100, 0.5), 0.03)] * 2,
    "40 of 20 tokens, 52 of about 400": [(40, fixed(20), 0.03), (52, around(400, 0.3), 0.03)],
    "20 of 20 tokens, 72 of about 400": [(20, fixed(20), 0.03), (72, around(400, 0.3), 0.03)],
    "40 of 15 tokens, 40 of 400, no icc": [(40, fixed(15), 0.0), (40, fixed(400), 0.0)],
    "10 of 20 tokens, 60 of 300": [(10, fixed(20), 0.01), (60, fixed(300), 0.01)],
    "20 of 2,000 tokens, 200 of 20": [(20, fixed(2000), 0.03), (200, fixed(20), 0.03)],
    "10 of icc .2, 190 of icc .01": [(10, fixed(100), 0.2), (190, fixed(100), 0.01)],
    "6 of icc .1, 60 of icc .02": [(6, fixed(100), 0.1), (60, fixed(100), 0.02)],
    "30 and 30 of very unequal lengths": [(30, around(100, 1.2), 0.05)] * 2,
    "6 of icc .2, 6 of icc .01": [(6, fixed(100), 0.2), (6, fixed(100), 0.01)],
    "10 of icc .3, 50 of icc .01, 1,000 tokens": [(10, fixed(1000), 0.3), (50, fixed(1000), 0.01)],
    "12 of 200 tokens, 1 in 10 hot, 100 of icc .01": [
        (12, fixed(200), HOT),
        (100, fixed(200), 0.01),
    ],
    "30 of 200 tokens, 1 in 10 hot, 100 of icc .01": [
        (30, fixed(200), HOT),
        (100, fixed(200), 0.01),
    ],
    "100 of 200 tokens, 1 in 10 hot, 100 of icc .01": [
        (100, fixed(200), HOT),
        (100, fixed(200), 0.01),
    ],
    "12 of very unequal lengths, 100 alike": [
        (12, around(100, 1.2), 0.05),
        (100, around(100, 0.3), 0.05),
    ],
}


def rates_of(rng: np.random.Generator, most: float = 0.6) -> NDArray[np.float64]:
    """Activation rates about 1/8, as uneven as experts' loads are."""
    return np.clip(0.125 * np.exp(rng.normal(size=CELLS)), 0.002, most)


def documents(
    rng: np.random.Generator,
    count: int,
    lengths: Lengths,
    icc: float,
    rates: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hits and tokens of some documents."""
    tokens = lengths(rng, count)
    own = np.broadcast_to(rates, (count, rates.size))
    if icc == HOT:
        own = np.where(rng.random(own.shape) < 0.1, 9.1, 0.1) * own
        return rng.binomial(tokens[:, None], np.minimum(own, 1.0)), tokens
    if icc:
        own = rng.beta(own * (1 / icc - 1), (1 - own) * (1 / icc - 1))
    return rng.binomial(tokens[:, None], own), tokens


def plain_p(
    counts: NDArray[np.int64],
    tokens: NDArray[np.int64],
    first: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """P of the difference of rates, not divided by its standard error."""
    inside = np.concatenate([first[None], rng.permuted(np.tile(first, (PERMUTATIONS, 1)), axis=1)])
    hit, size = inside @ counts, (inside @ tokens)[:, None]
    apart = np.abs(hit / size - (counts.sum(0) - hit) / (tokens.sum() - size))
    return (apart >= apart[0] - 1e-12).mean(0)


def test_row(name: str, runs: int, effect: float, rng: np.random.Generator) -> dict[str, object]:
    """Size or power of one scenario."""
    called, plain, stepped, any_q, any_max, lift = [], [], [], [], [], []
    for run in range(runs):
        # a hot document cannot use an expert for more than all of its tokens
        rates = rates_of(rng, 0.1 if any(s[2] == HOT for s in DOMAINS[name]) else 0.6)
        true = [np.minimum(rates * effect, 0.95), rates]
        made = [documents(rng, *spec, r) for spec, r in zip(DOMAINS[name], true, strict=True)]
        counts, tokens = (np.concatenate([m[i] for m in made]) for i in (0, 1))
        domain = np.repeat([0, 1], [len(m[1]) for m in made])
        found = domain_specialization(counts, tokens, domain, 2, run, PERMUTATIONS)
        p = found.p[0]
        known = np.isfinite(p)
        called.append((p[known] < 0.05).mean())
        plain.append((plain_p(counts, tokens, domain == 0, rng)[known] < 0.05).mean())
        stepped.append((p[known] < 0.005).mean())
        any_q.append((benjamini_hochberg(p)[known] < 0.05).any())
        any_max.append((found.p_max[0][known] < 0.05).any())
        ratio = true[0] / true[1]
        held = (found.lift_low[0] <= ratio) & (ratio <= found.lift_high[0])
        lift.append(held[known].mean())
    columns = {
        "p_below_05": called,
        "p_below_005": stepped,
        "plain_p_below_05": plain,
        "any_q_below_05": any_q,
        "any_p_max_below_05": any_max,
        "lift_coverage": lift,
    }
    row: dict[str, object] = {"scenario": name, "effect": effect, "runs": runs}
    return row | {key: round(float(np.mean(v)), 4) for key, v in columns.items()}


def percentile(
    counts: NDArray[np.int64], tokens: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The percentile bootstrap over documents, for comparison."""
    n = len(tokens)
    draws = rng.multinomial(n, np.full(n, 1 / n), size=1000)
    low, high = np.quantile((draws @ counts) / (draws @ tokens)[:, None], [0.025, 0.975], axis=0)
    return low, high


def coverage_row(
    count: int, lengths: str, icc: float, runs: int, rng: np.random.Generator
) -> dict[str, object]:
    """Coverage of the interval of a rate with so many documents."""
    kinds = {"equal": fixed(100), "unequal": around(100, 1.0)}
    rates = np.array([0.01, 0.03, 0.06, 0.125, 0.25, 0.5, 0.8])
    held, low_rates, old, above = [], [], [], []
    for _ in range(runs):
        counts, tokens = documents(rng, count, kinds[lengths], icc, rates)
        ends = rate_interval(counts, tokens)
        if np.isnan(ends.low).any():  # one document is nearly all of the text: no interval
            continue
        inside = (ends.low <= rates) & (rates <= ends.high)
        held.append(inside.mean())
        low_rates.append(inside[:2].mean())
        above.append((ends.high < rates).mean())
        low, high = percentile(counts, tokens, rng)
        old.append(((low <= rates) & (rates <= high)).mean())
    columns = {"coverage": held, "rates_below_5_percent": low_rates, "high_end_too_low": above,
               "percentile_bootstrap": old}  # fmt: skip
    row: dict[str, object] = {"documents": count, "lengths": lengths, "icc": icc, "runs": runs}
    return row | {key: round(float(np.mean(v)), 3) for key, v in columns.items()}


def main() -> None:
    """Run all scenarios and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nulls", type=int, default=200)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".json")))
    given = parser.parse_args()
    rng = np.random.default_rng(20)
    rows: dict[str, list[dict[str, object]]] = {"size": [], "power": [], "coverage": []}
    for name in DOMAINS:
        rows["size"].append(test_row(name, given.nulls, 1.0, rng))
        print(json.dumps(rows["size"][-1]), flush=True)
    for name in list(DOMAINS)[:6]:
        rows["power"].append(test_row(name, max(1, given.nulls // 4), 1.5, rng))
        print(json.dumps(rows["power"][-1]), flush=True)
    for count in (5, 10, 20, 50, 100):
        for lengths in ("equal", "unequal"):
            for icc in (0.01, 0.1):
                made = coverage_row(count, lengths, icc, 2 * given.nulls, rng)
                rows["coverage"].append(made)
                print(json.dumps(made), flush=True)
    Path(given.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
