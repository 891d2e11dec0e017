"""`moescope table`: what it prints is in the order, and in the form, that was asked for."""

import csv
import json
import math
from typing import Any

import pyarrow as pa
import pytest

from moescope.cli.main import app
from moescope.cli.where import rows_where
from moescope.metrics.runs import AnalyzedRun


def printed(run: AnalyzedRun, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    app(["table", str(run.path), *words], standalone_mode=False)
    return capsys.readouterr().out


def test_sorted_rows_begin_with_the_largest_and_end_with_what_is_no_number(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(tiny_run, capsys, "load", "--sort", "count", "--format", "csv")
    counts = [int(row["count"]) for row in csv.DictReader(out.splitlines())]
    assert counts[0] > counts[-1]
    assert counts == sorted(counts, reverse=True)
    assert sorted(counts) == sorted(tiny_run.table("load")["count"].to_pylist())
    out = printed(tiny_run, capsys, "histograms", "--sort", "low", "--format", "csv")
    lows = [float(row["low"]) for row in csv.DictReader(out.splitlines())]
    known = [low for low in lows if math.isfinite(low)]
    assert known == sorted(known, reverse=True)
    assert lows == known + [-math.inf] * (len(lows) - len(known))
    assert len(known) < len(lows)


def test_json_has_null_where_a_number_is_not_known(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN and Infinity are not JSON, and most readers refuse the whole line."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    for name in ("histograms", "domain_specialization"):
        lines = printed(tiny_run, capsys, name, "--format", "json").splitlines()
        rows = [json.loads(line, parse_constant=refuse) for line in lines]
        whole = tiny_run.table(name).to_pylist()
        for row, of in zip(rows, whole, strict=True):
            assert row == {
                k: None if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in of.items()
            }
    assert any(not math.isfinite(low) for low in tiny_run.table("histograms")["low"].to_pylist())


def rows_of(run: AnalyzedRun, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    lines = printed(run, capsys, *words, "--format", "json").splitlines()
    return [json.loads(line) for line in lines]


def test_what_is_small_where_it_is_good_comes_first_and_the_way_can_be_said(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best is on top: the smallest q and loss, the largest lift."""
    for table, column, smallest_first in (
        ("domain_specialization", "q", True), ("domain_specialization", "p", True),
        ("domain_specialization", "p:desc", False), ("domain_loss", "loss", True),
        ("domain_specialization", "lift_over_others", False), ("load", "layer", True),
        ("domain_specialization", "lift_over_others:asc", True), ("load", "domain", True),
    ):  # fmt: skip
        name = column.partition(":")[0]
        rows = rows_of(tiny_run, capsys, table, "--sort", column)
        values = [row[name] for row in rows if row[name] is not None]
        assert values == sorted(values, reverse=not smallest_first)
        assert values[0] != values[-1] or table == "domain_specialization"
        assert all(row[name] is None for row in rows[len(values) :])


def test_where_keeps_the_rows_of_which_all_conditions_hold(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rows_of(tiny_run, capsys, "load")
    domain = whole[-1]["domain"]
    for words, holds in {
        f"load>0.1 and domain = {domain}": lambda r: r["load"] > 0.1 and r["domain"] == domain,
        f'domain != "{domain}" and count <= 20': lambda r: (
            r["domain"] != domain and r["count"] <= 20
        ),
        "layer >= 1 AND expert < 3 and phase==prefill": (
            lambda r: r["layer"] >= 1 and r["expert"] < 3 and r["phase"] == "prefill"
        ),
        "gate_mass > 1e-3": lambda r: r["gate_mass"] > 1e-3,
    }.items():
        kept = rows_of(tiny_run, capsys, "load", "--where", words)
        assert kept == [row for row in whole if holds(row)]
        assert 0 < len(kept) < len(whole)


def test_a_number_that_is_not_known_fulfils_no_condition() -> None:
    data = pa.table({"q": [0.01, float("nan"), 7.0, None], "n": [1, 2, 3, 4]})
    for words, kept in {
        "q != 7": [1],
        "q = 7": [3],
        "q < 9": [1, 3],
        "q > 0 and n < 3": [1],
    }.items():
        assert rows_where(data, words)["n"].to_pylist() == kept


def test_members_and_other_yes_or_no_can_be_asked_for(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = rows_of(tiny_run, capsys, "committee")
    for word, is_member in (("yes", True), ("false", False)):
        kept = rows_of(tiny_run, capsys, "committee", "--where", f"member = {word}")
        assert kept == [row for row in whole if row["member"] is is_member]


def test_experts_are_named_as_everywhere_and_a_pair_is_a_row_of_both(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(tiny_run, capsys, "load", "--expert", "L1E3", "--expert", "l0e2")
    assert {(r["layer"], r["expert"]) for r in rows} == {(1, 3), (0, 2)}
    pairs = rows_of(tiny_run, capsys, "token_overlap", "--expert", "L1E3")
    assert {r["layer"] for r in pairs} == {1}
    assert {r["expert_i"] for r in pairs} | {r["expert_j"] for r in pairs} == set(range(8))
    assert all(3 in (r["expert_i"], r["expert_j"]) for r in pairs)


def test_columns_are_those_that_were_named_in_their_order(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(tiny_run, capsys, "load", "--columns", "count, domain,layer", "--format", "csv")
    assert out.splitlines()[0] == "count,domain,layer"
    out = printed(tiny_run, capsys, "load", "--columns", "count,layer", "--sort", "load")
    assert out.split()[:2] == ["count", "layer"]


def test_what_is_no_terminal_gets_every_column_on_one_line(
    tiny_run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    header = printed(tiny_run, capsys, "information").splitlines()[0]
    assert sorted(header.split()) == sorted(tiny_run.table("information").column_names)
