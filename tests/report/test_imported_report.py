"""The report of an imported run: what ids cannot say is absent, with the reason, and never 0."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.test_browser import BROWSER, dom, marks, root, used
from tests.support.served import Case, make_case, plain, sglang_answer, write_lines

from moescope.cli.main import app
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.report import build_report
from moescope.report.data import report_data
from moescope.run.options import TraceOptions
from moescope.trace.importers import import_traces

browser = pytest.mark.skipif(BROWSER is None, reason="no chromium here")

KNOWN = (
    "bars", "maps", "difference", "special", "information", "bands", "balance", "pairs",
    "repetition", "vocabulary",
)  # fmt: skip
"""Figures that ids are enough for."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("olmoe", tmp_path_factory.mktemp("served"))


def imported(case: Case, folder: Path, **how: Any) -> AnalyzedRun:
    lines = write_lines(folder / "captured.jsonl", [plain(r) for r in case.requests])
    return open_run(import_traces("vllm", [lines], folder / "run", case.spec, **how))


@pytest.fixture(scope="module")
def plain_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    return imported(case, tmp_path_factory.mktemp("plain"), engine_version="0.33.0")


@pytest.fixture(scope="module")
def ordered_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    return imported(case, tmp_path_factory.mktemp("ordered"), ordered=True)


@pytest.fixture(scope="module")
def decode_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """Every prompt came from the cache: there is generated text only."""
    folder = tmp_path_factory.mktemp("decode")
    records = [
        {**r.named, "start": len(r.prompt), "response": sglang_answer(r, len(r.prompt))}
        for r in case.requests
    ]
    lines = write_lines(folder / "captured.jsonl", records)
    return open_run(import_traces("sglang", [lines], folder / "run", case.spec))


@pytest.fixture(scope="module")
def sums_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    folder = tmp_path_factory.mktemp("sums")
    return imported(case, folder, options=TraceOptions(keep="aggregates"))


@pytest.fixture(scope="module")
def counts_run(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """Sums by layer and expert alone."""
    folder = tmp_path_factory.mktemp("counts")
    rows = [r for r in case.traced.table("load").to_pylist() if r["domain"] != "all"]
    names = ("phase", "domain", "layer", "expert", "count")
    write_lines(folder / "c.jsonl", [{name: row[name] for name in names} for row in rows])
    return open_run(import_traces("counts", [folder / "c.jsonl"], folder / "run", case.spec))


def visible(text: str) -> str:
    """The page as drawn, without its data."""
    return text.split('id="data"')[0]


class TestData:
    def test_nothing_that_needs_weights_has_a_number(self, plain_run: AnalyzedRun) -> None:
        data = report_data(plain_run)
        assert set(data["absent"]) == {"weights", "order"}
        for view in data["views"].values():
            assert view["decisiveness"]["router_entropy"] == []
            assert view["histograms"] == {}
            assert view["committee"] == []
            assert view["loss"]["loss"] == []
            assert view["paths"]["distinct"] == []
            assert set(view["repetition"]["first"]) == {None}
            assert None not in view["repetition"]["any"]
            assert set(view["bands"]["router_entropy"]) == {None}
            assert view["examples"]["weights"] is None
            assert view["examples"]["entropy"] is None
        json.dumps(data, allow_nan=False)

    def test_what_ids_say_is_there(self, case: Case, plain_run: AnalyzedRun) -> None:
        mine, traced = (report_data(r)["views"]["prefill"] for r in (plain_run, case.traced))
        for name in ("rates", "special", "information", "balance", "pairs"):
            assert mine[name] == traced[name], name

    def test_the_head_of_the_page_says_where_the_run_is_from(self, plain_run: AnalyzedRun) -> None:
        said = " ".join(a["text"] for a in report_data(plain_run)["alerts"])
        assert "imported from vLLM 0.33.0: ids only" in said
        assert "which of a token's experts was its first choice" in said
        assert "never fed to the model" in said
        assert "made no predictions" not in said

    def test_no_sentence_or_heading_speaks_of_what_is_absent(self, plain_run: AnalyzedRun) -> None:
        for view in report_data(plain_run)["views"].values():
            words = " ".join([*view["short"], *view["titles"].values()])
            assert "unknown" not in words
            assert "first expert" not in words
            assert "nan" not in words.lower().split()

    def test_with_order_first_choices_are_there(self, case: Case, ordered_run: AnalyzedRun) -> None:
        data, traced = report_data(ordered_run), report_data(case.traced)
        assert set(data["absent"]) == {"weights"}
        mine, theirs = (d["views"]["prefill"] for d in (data, traced))
        assert mine["repetition"] == theirs["repetition"]
        assert mine["paths"] == theirs["paths"]

    def test_a_traced_run_is_said_to_lack_nothing(self, case: Case) -> None:
        data = report_data(case.traced)
        assert data["absent"] == {}
        assert data["about"]["source"] is None


@browser
class TestBrowser:
    def test_absent_figures_say_why(self, plain_run: AnalyzedRun, tmp_path: Path) -> None:
        text = dom(build_report(plain_run, tmp_path / "page.html"), tmp_path)
        assert 'data-ready="yes"' in root(text)
        assert "data-errors" not in root(text)
        for figure in KNOWN:
            assert marks(text, figure) > 3, figure
        for figure in ("decisive", "hist", "committee"):
            part = re.split(r"</div>", text.split(f'id="plot-{figure}"')[1])[0]
            assert "Absent: this run was imported from vLLM: ids only" in part, figure
        assert "experts, by weight" not in visible(text)

    @pytest.mark.parametrize(
        "kind", ["plain_run", "ordered_run", "decode_run", "sums_run", "counts_run"]
    )
    def test_every_control_can_be_used(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        text = used(request.getfixturevalue(kind), tmp_path)
        assert 'data-used="yes"' in root(text)
        assert "data-errors" not in root(text)
        assert "could not be drawn" not in visible(text)

    def test_figures_of_tokens_say_that_there_are_none(
        self, counts_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        text = dom(build_report(counts_run, tmp_path / "page.html"), tmp_path)
        assert "data-errors" not in root(text)
        for figure in ("bars", "maps", "difference", "balance", "bands"):
            assert marks(text, figure) > 3, figure
        for figure in ("pairs", "repetition", "information", "vocabulary", "tokens", "examples"):
            part = re.split(r"</div>", text.split(f'id="plot-{figure}"')[1])[0]
            assert "Absent: this run was imported from aggregated counts: sums" in part, figure

    def test_a_token_tells_its_experts_without_order(
        self, plain_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        found = root(used(plain_run, tmp_path))
        assert "experts, in no order: E" in found
        assert "router entropy" not in found
        assert "first choice by layer" not in found

    def test_a_token_tells_its_first_choices_with_order(
        self, ordered_run: AnalyzedRun, tmp_path: Path
    ) -> None:
        found = root(used(ordered_run, tmp_path))
        assert "experts, by weight: E" in found
        assert "first choice by layer" in found


def test_figures_for_a_paper_leave_out_what_is_absent(
    plain_run: AnalyzedRun, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from moescope.report.figures import write_figures

    names = {p.stem for p in write_figures(plain_run, tmp_path)}
    assert {"activation", "information", "layers", "coactivation"} <= names


class TestCommand:
    def run(self, words: list[str]) -> Any:
        from typer.testing import CliRunner

        return CliRunner().invoke(app, words)

    def test_import_report_and_table(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
        out = tmp_path / "run"
        words = ["import", "vllm", str(lines), "-o", str(out), "--model", str(case.folder)]
        done = self.run(words)
        assert done.exit_code == 0, done.output
        assert done.stdout.strip().splitlines()[-1] == str(out)
        assert "absent: this run was imported from vLLM: ids only" in done.stderr
        assert (out / "config.yaml").is_file()
        assert self.run(["report", str(out)]).exit_code == 0
        shown = self.run(["table", str(out), "load", "--format", "json", "--rows", "1"])
        assert json.loads(shown.stdout)["gate_mass"] is None
        refused = self.run(["table", str(out), "decisiveness"])
        assert "no table 'decisiveness'" in str(refused.exception)
