"""Thirds of depth by domain: the gap, its interval and what chance gives."""

import numpy as np
import pytest
from numpy.typing import NDArray

from moescope.metrics.phases import mean_gap
from moescope.metrics.runs import AnalyzedRun


def drawn(
    rng: np.random.Generator, rates_NM: NDArray[np.float64], tokens_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    return rng.binomial(tokens_N[:, None], rates_NM)


def test_the_gap_by_hand() -> None:
    # inside 6/10 and 2/10, outside 3/10 and 5/10; K/E = 0.5
    counts = np.array([[6, 2], [3, 5]])
    made = mean_gap(counts, np.array([10, 10]), np.array([True, False]), np.full(2, 0.5))
    assert made.value == pytest.approx((0.3 / 0.5 + 0.3 / 0.5) / 2)
    assert np.isnan([made.low, made.high, made.chance]).all()  # one document each


def test_chance_is_what_shuffled_documents_give() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 200, 60)
    rates = np.clip(rng.normal(0.25, 0.08, (60, 24)), 0.01, 0.9)
    counts, chance = drawn(rng, rates, tokens), np.full(24, 0.25)
    inside = np.arange(60) < 20
    made = mean_gap(counts, tokens, inside, chance)
    shuffled = [mean_gap(counts, tokens, rng.permutation(inside), chance).value for _ in range(400)]
    assert made.chance == pytest.approx(np.mean(shuffled), rel=0.05)
    assert made.value == pytest.approx(made.chance, rel=0.5)


def test_a_planted_gap_lies_in_its_interval_and_far_above_chance() -> None:
    rng = np.random.default_rng(1)
    inside = np.arange(80) < 40
    tokens, chance = np.full(80, 400), np.full(8, 0.25)
    found = []
    for _ in range(100):
        rates = np.where(inside[:, None], 0.35, 0.25) + rng.normal(0, 0.02, (80, 8))
        found.append(mean_gap(drawn(rng, rates, tokens), tokens, inside, chance))
    assert np.mean([f.low <= 0.4 <= f.high for f in found]) >= 0.9  # 0.1 / 0.25
    assert all(f.value > 3 * f.chance for f in found)


def test_every_domain_has_its_thirds_and_all_stays_what_it_was(tiny_run: AnalyzedRun) -> None:
    table = tiny_run.table("phases").to_pandas()
    assert list(dict.fromkeys(table.domain)) == ["all", *tiny_run.domains]
    spec = tiny_run.table("domain_specialization").to_pandas()
    load = tiny_run.table("balance").to_pandas()
    for row in table.itertuples():
        first, *_, last = map(int, row.layers.split("–") * 2)
        own = spec[spec.layer.between(first, last) & (spec.phase == row.phase)]
        own = own if row.domain == "all" else own[own.domain == row.domain]
        assert row.mean_abs_gap == pytest.approx(
            ((own.value - own.others).abs() / own.chance).mean()
        )
        assert row.specialized_share == pytest.approx((own.q < 0.05).mean())
        assert row.used_more_share + row.used_less_share == pytest.approx(row.specialized_share)
        here = load[(load.phase == row.phase) & (load.domain == row.domain)]
        cv = here[here.layer.between(first, last)].cv
        assert row.cv == pytest.approx(cv.mean())
        assert np.isnan(row.mean_abs_gap_low) == (row.domain == "all")
        assert row.mean_abs_gap_chance > 0


def test_a_table_that_lacks_a_column_of_now_is_made_again(tiny_run: AnalyzedRun) -> None:
    import pyarrow.parquet as pq

    from moescope.run.store import write_parquet

    made = tiny_run.table("phases")
    path = tiny_run.path / "tables" / "phases.parquet"
    with tiny_run.writing():
        write_parquet(path, pq.read_table(path).drop_columns(["domain"]))
    again = tiny_run.table("phases")
    assert again.column_names == made.column_names
    assert again["domain"].equals(made["domain"])
