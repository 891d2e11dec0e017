"""Counts by layer and expert become a run that says what counts can say, and what it lacks."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.support.served import Case

from moescope.cli.main import app
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.metrics.runs import AnalyzedRun, compare_runs, open_run, table_names
from moescope.profiles.profile import profile_all
from moescope.report.data import report_data
from moescope.run.options import TraceOptions
from moescope.trace.importers import import_traces

WORKS = {"load", "balance", "domain_specialization", "domain_distance", "domain_loss", "phases"}
"""Tables that counts are enough for; of the last but one nothing is known, as in every import."""


def rows_of(run: AnalyzedRun) -> list[dict[str, Any]]:
    """What a recorder that knows domain and phase would have logged."""
    return [
        {"phase": r["phase"], "domain": r["domain"], "layer_id": r["layer"],
         "expert_id": r["expert"], "count": r["count"]}
        for r in run.table("load").to_pylist()
        if r["domain"] != "all" and r["count"]
    ]  # fmt: skip


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    listed = list(rows)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(listed[0]))
        writer.writeheader()
        writer.writerows(listed)
    return path


def imported(case: Case, files: Path | list[Path], folder: Path, **how: Any) -> AnalyzedRun:
    listed = files if isinstance(files, list) else [files]
    return open_run(import_traces("counts", listed, folder, case.spec, **how))


@pytest.fixture(scope="module")
def counted(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    folder = tmp_path_factory.mktemp("counts")
    return imported(case, write_rows(folder / "c.csv", rows_of(case.traced)), folder / "run")


def array_of(case: Case, phase: str = "prefill") -> Any:
    """(layers, experts) of all text."""
    counts = case.traced.aggregates(phase).arrays["cluster_counts"].sum(0)
    return counts[:, : case.traced.shape.num_experts[0]]


class TestWhatCountsSay:
    def test_loads_and_balance_are_those_of_the_trace(
        self, case: Case, counted: AnalyzedRun
    ) -> None:
        for name in ("load", "balance"):
            mine, traced = (r.table(name).to_pydict() for r in (counted, case.traced))
            unknown = {"gate_mass", "first_share", "ci_low", "ci_high"}
            for column in mine.keys() - unknown:
                np.testing.assert_array_equal(mine[column], traced[column], err_msg=column)
            assert all(np.isnan(mine[c]).all() for c in unknown & mine.keys())

    def test_domains_are_as_far_apart_as_in_the_trace(
        self, case: Case, counted: AnalyzedRun
    ) -> None:
        mine, traced = (r.table("domain_distance").to_pydict() for r in (counted, case.traced))
        np.testing.assert_allclose(mine["jsd"], traced["jsd"])

    def test_nothing_is_tested(self, counted: AnalyzedRun) -> None:
        cells = counted.table("domain_specialization").to_pydict()
        for name in ("p", "q", "ci_low", "lift_low", "by_token"):
            assert np.isnan(np.asarray(cells[name], float)).all(), name
        assert np.isfinite(cells["value"]).all()

    def test_tables_of_tokens_are_refused_with_the_reason(self, counted: AnalyzedRun) -> None:
        assert set(table_names()) - set(counted.absent_tables) == WORKS
        assert set(counted.compute_all()) == WORKS
        with pytest.raises(RunError, match="sums only, without single tokens and documents"):
            counted.table("coactivation")

    def test_verbs_that_need_tokens_say_what_the_run_lacks(
        self, case: Case, counted: AnalyzedRun
    ) -> None:
        for call in (lambda: compare_runs(counted, case.traced), lambda: profile_all(counted)):
            with pytest.raises(RunError, match="sums only, without single tokens and documents"):
                call()

    def test_the_report_says_it(self, counted: AnalyzedRun) -> None:
        data = report_data(counted)
        said = " ".join(a["text"] for a in data["alerts"])
        assert "imported from aggregated counts: sums only" in said
        assert "single tokens, pairs and neighbours, documents" in said
        assert "nothing has an interval or a test" in said
        assert set(data["absent"]) == {"weights", "order", "tokens"}
        words = " ".join(s for v in data["views"].values() for s in v["short"])
        assert "0 documents" not in words
        assert "documents are not known" in words
        json.dumps(data, allow_nan=False)


class TestSpellings:
    def test_the_array_of_a_recorder(
        self, case: Case, counted: AnalyzedRun, tmp_path: Path
    ) -> None:
        """[steps, layers, experts] in JSON, and [layers, experts] in safetensors."""
        array = array_of(case)
        steps = np.stack([array // 3, array - array // 3])
        (tmp_path / "a.json").write_text(json.dumps({"logical_count": steps.tolist()}))
        save_file({"logical_count": array}, tmp_path / "b.safetensors")
        for name in ("a.json", "b.safetensors"):
            run = imported(case, tmp_path / name, tmp_path / f"run-{name[0]}", domain="d")
            assert (
                run.aggregates().arrays["cluster_counts"][0, :, : array.shape[1]] == array
            ).all()
            assert any("all stand under prefill" in n for n in run.manifest.source["notes"])
        assert not any("all stand" in n for n in counted.manifest.source["notes"])

    def test_rows_as_objects(self, case: Case, counted: AnalyzedRun, tmp_path: Path) -> None:
        lines = "".join(json.dumps(r) + "\n" for r in rows_of(case.traced))
        (tmp_path / "c.jsonl").write_text(lines)
        run = imported(case, tmp_path / "c.jsonl", tmp_path / "run")
        assert run.table("load")["count"] == counted.table("load")["count"]

    def test_files_of_several_ranks_add_up(
        self, case: Case, counted: AnalyzedRun, tmp_path: Path
    ) -> None:
        rows = rows_of(case.traced)
        half = [{**r, "count": r["count"] // 2} for r in rows]
        rest = [{**r, "count": r["count"] - r["count"] // 2} for r in rows]
        files = [write_rows(tmp_path / f"rank{i}.csv", part) for i, part in enumerate((half, rest))]
        run = imported(case, files, tmp_path / "run")
        assert run.table("load")["count"] == counted.table("load")["count"]

    def test_dense_layers_of_an_array_are_left_out(self, sparse_case: Case, tmp_path: Path) -> None:
        array = array_of(sparse_case)
        dense = sparse_case.loaded.anatomy.num_decoder_layers - len(array)
        assert dense > 0
        for name, rows in (("all", np.concatenate([array[:dense] * 0, array])), ("moe", array)):
            (tmp_path / f"{name}.json").write_text(json.dumps({"logical_count": rows.tolist()}))
            run = imported(sparse_case, tmp_path / f"{name}.json", tmp_path / name, domain="d")
            found = run.aggregates().arrays["cluster_counts"][0]
            assert (found[:, : array.shape[1]] == array).all()

    def test_some_layers(self, case: Case, tmp_path: Path) -> None:
        rows = [r for r in rows_of(case.traced) if r["layer_id"] in (1, 2)]
        path = write_rows(tmp_path / "c.csv", rows)
        with pytest.raises(CorpusError, match=r"layer 0: 0 choices.*choose layers by `layers`"):
            imported(case, path, tmp_path / "run")
        run = imported(case, path, tmp_path / "run", options=TraceOptions(layers=(1, 2)))
        assert run.shape.layers == (1, 2)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"layer_id": 9}, "not an MoE layer of the model .got 9, expected among 0, 1, 2, 3"),
            ({"expert_id": 8}, "does not have .layer 0: got 8, expected 0 to 7"),
            ({"count": -1}, "a count out of range .got -1"),
            ({"count": 0.5}, "'count' holds something else than whole numbers"),
            ({"phase": "training"}, "an unknown phase .got 'training'"),
            ({"domain": "all"}, "the domain 'all' is reserved"),
            ({"count": 1_000_003}, "not those of whole tokens .domain"),
        ],
    )
    def test_one_line(self, change: dict[str, Any], words: str, case: Case, tmp_path: Path) -> None:
        rows = rows_of(case.traced)
        path = write_rows(tmp_path / "c.csv", [{**rows[0], **change}, *rows[1:]])
        with pytest.raises(CorpusError, match=words) as error:
            imported(case, path, tmp_path / "run")
        assert "c.csv" in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_an_array_of_another_model(self, case: Case, tmp_path: Path) -> None:
        (tmp_path / "c.json").write_text(json.dumps({"logical_count": [[1, 2, 3]]}))
        with pytest.raises(CorpusError, match=r"got the shape \[1, 3\], expected \[layers, 8\]"):
            imported(case, tmp_path / "c.json", tmp_path / "run", domain="d")

    def test_a_file_that_is_left_out_is_counted(self, case: Case, tmp_path: Path) -> None:
        good = write_rows(tmp_path / "a.csv", rows_of(case.traced))
        bad = write_rows(tmp_path / "b.csv", [{**rows_of(case.traced)[0], "layer_id": 9}])
        run = imported(case, [good, bad], tmp_path / "run", on_error="skip")
        assert run.manifest.coverage["skipped_records"] == {
            "a layer that is not an MoE layer of the model": 1
        }

    def test_order_is_about_tokens(self, case: Case, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="counts have no tokens"):
            imported(case, tmp_path / "c.csv", tmp_path / "run", ordered=True)


def test_a_finished_import_is_left_as_it_is_and_another_is_refused(
    case: Case, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "c.csv", rows_of(case.traced))
    run = imported(case, path, tmp_path / "run")
    state = run.manifest.state
    assert imported(case, path, tmp_path / "run", resume=True).manifest.state == state
    with pytest.raises(RunError, match="already holds a run"):
        imported(case, path, tmp_path / "run")
    with pytest.raises(RunError, match=r"run: source domain was None, now 'd'"):
        imported(case, path, tmp_path / "run", domain="d", resume=True)


def test_the_command_line_says_what_is_absent(case: Case, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path = write_rows(tmp_path / "c.csv", rows_of(case.traced))
    words = [
        "import",
        "counts",
        str(path),
        "-o",
        str(tmp_path / "run"),
        "--model",
        str(case.folder),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "sums only, without single tokens and documents" in done.stderr
    assert "note: Counts have no documents" in done.stderr
    assert CliRunner().invoke(app, ["report", str(tmp_path / "run")]).exit_code == 0
