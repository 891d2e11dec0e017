"""`moescope table`: what it prints is in the order, and in the form, that was asked for."""

import csv
import json
import math
from typing import Any

import pytest

from moescope.cli.main import app
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
