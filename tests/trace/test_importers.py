"""What engines captured, read back, equals a trace of the same tokens; what ids lack is absent."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.support.saved import tiny_tokenizer
from tests.support.served import (
    GARBAGE,
    UNKNOWN,
    Case,
    Served,
    imported_lines,
    npy,
    packed,
    plain,
    same,
    sglang_answer,
    vllm_answer,
    write_lines,
)
from tests.support.tiny import tiny_config

from moescope.errors import CorpusError, ModelError, RunError
from moescope.metrics.runs import AnalyzedRun, compare_runs, open_run, table_names
from moescope.models import ModelSpec
from moescope.run.options import TraceOptions
from moescope.trace.importers import import_traces

NEEDS_WEIGHTS = {"decisiveness", "histograms", "committee", "paths"}
NEEDS_ORDER = {"path_entropy"}
OF_ORDER = {"first_share", "first", "first_low", "first_high", "first_by_load"}


class TestEveryTable:
    @pytest.mark.parametrize("name", sorted({*table_names()} - NEEDS_WEIGHTS - NEEDS_ORDER))
    def test_a_table_of_counts_equals_that_of_the_trace(
        self, name: str, case: Case, imported: AnalyzedRun
    ) -> None:
        if name == "domain_loss":
            assert imported.table(name).num_rows == 0
            return
        same(case.traced, imported, name, UNKNOWN.get(name, set()))

    def test_what_needs_weights_or_order_is_not_a_number(self, imported: AnalyzedRun) -> None:
        for name, columns in UNKNOWN.items():
            table = imported.table(name).to_pydict()
            for column in columns:
                assert np.isnan(table[column]).all(), (name, column)

    @pytest.mark.parametrize("name", sorted(NEEDS_WEIGHTS | NEEDS_ORDER))
    def test_a_table_of_weights_is_refused_with_the_reason(
        self, name: str, imported: AnalyzedRun
    ) -> None:
        with pytest.raises(RunError, match=f"no table '{name}': .*imported from vLLM: ids only"):
            imported.table(name)

    def test_no_sum_of_weights_is_kept_as_zero(self, imported: AnalyzedRun) -> None:
        arrays = imported.aggregates().arrays
        gone = {"gate_mass", "prob_sum", "last_prob_sum", "histograms", "cluster_decisive"}
        assert not (gone | {"first_counts", "cluster_repetition"}) & arrays.keys()
        assert "paths" not in imported.aggregates().sparse
        sample = imported.tokens()
        assert sample is not None
        assert all(np.isnan(w).all() for w in sample.weights.values())
        assert all(np.isnan(h).all() for h in sample.entropy.values())

    def test_all_tables_that_there_are_can_be_computed(self, imported: AnalyzedRun) -> None:
        assert set(imported.compute_all()) == {*table_names()} - NEEDS_WEIGHTS - NEEDS_ORDER

    def test_with_order_first_choices_equal_the_trace_too(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", case.spec, ordered=True))
        for name in ("load", "repetition", "phases", "path_entropy"):
            same(case.traced, run, name, UNKNOWN.get(name, set()) - OF_ORDER)
        with pytest.raises(RunError, match="weights"):
            run.table("paths")

    def test_without_order_experts_are_kept_by_number(self, imported: AnalyzedRun) -> None:
        sample = imported.tokens()
        assert sample is not None
        assert all((np.diff(ids, axis=1) > 0).all() for ids in sample.ids.values())


def as_npz(request: Served, path: Path) -> None:
    labels = {"id": request.doc_id, "domain": request.domain}
    ids = {"prompt_token_ids": request.prompt, "output_token_ids": request.output}
    np.savez(path, routed_experts=request.experts.astype(np.uint8), **labels, **ids)


def as_safetensors(request: Served, path: Path) -> None:
    arrays = {
        "prompt_token_ids": np.asarray(request.prompt),
        "output_token_ids": np.asarray(request.output),
        "routed_experts": request.experts.astype(np.uint16),
    }
    save_file(arrays, path, {"id": request.doc_id, "domain": request.domain})


def as_moe_layers(request: Served, layers: tuple[int, ...]) -> dict[str, Any]:
    return plain(request, routed_experts=request.experts[:, list(layers)].tolist())


SPELLINGS: dict[str, Callable[[Served], dict[str, Any]]] = {
    "vllm: nested lists": plain,
    "vllm: base64 with dtype and shape": lambda r: plain(r, routed_experts=packed(r.experts)),
    "vllm: base64 of npy": lambda r: plain(r, routed_experts=npy(r.experts)),
    "vllm: the server's answer": lambda r: {**r.named, "response": vllm_answer(r)},
    "sglang: the server's answer": lambda r: {
        **r.named, "input_ids": r.prompt, "response": sglang_answer(r)},
    "sglang: the answer itself": lambda r: {
        **r.named, "prompt_token_ids": r.prompt, **sglang_answer(r)},
    "sglang: base64 with dtype and shape": lambda r: plain(
        r, routed_experts=packed(r.experts, "int32")),
}  # fmt: skip


class TestSpellings:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("which", ["case", "sparse_case"])
    def test_every_spelling_gives_the_counts_of_the_trace(
        self, spelling: str, which: str, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        case: Case = request.getfixturevalue(which)
        engine: Any = spelling.partition(":")[0]
        lines = write_lines(tmp_path / "c.jsonl", [SPELLINGS[spelling](r) for r in case.requests])
        run = open_run(import_traces(engine, [lines], tmp_path / "run", case.spec))
        same(case.traced, run, "load", UNKNOWN["load"])
        same(case.traced, run, "flow")

    @pytest.mark.parametrize(
        ("suffix", "write"), [("npz", as_npz), ("safetensors", as_safetensors)]
    )
    def test_a_folder_of_one_file_for_each_request(
        self, suffix: str, write: Any, case: Case, tmp_path: Path
    ) -> None:
        folder = tmp_path / "captured"
        folder.mkdir()
        for n, request in enumerate(case.requests):
            write(request, folder / f"{n:03d}.{suffix}")
        run = open_run(import_traces("vllm", [folder], tmp_path / "run", case.spec))
        same(case.traced, run, "load", UNKNOWN["load"])
        assert run.manifest.source["files"][0]["file"] == f"000.{suffix}"

    def test_packed_lines_and_lists(self, case: Case, tmp_path: Path) -> None:
        records = [plain(r) for r in case.requests]
        with gzip.open(tmp_path / "a.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(r) + "\n" for r in records[:3])
        (tmp_path / "b.json").write_text(json.dumps(records[3:-1]))
        (tmp_path / "c.json").write_text(json.dumps(records[-1]))
        files = [tmp_path / n for n in ("a.jsonl.gz", "b.json", "c.json")]
        run = open_run(import_traces("vllm", files, tmp_path / "run", case.spec))
        same(case.traced, run, "load", UNKNOWN["load"])

    def test_arrays_of_moe_layers_only_are_taken_by_their_order(
        self, sparse_case: Case, tmp_path: Path
    ) -> None:
        assert len(sparse_case.layers) < sparse_case.loaded.anatomy.num_decoder_layers
        records = [as_moe_layers(r, sparse_case.layers) for r in sparse_case.requests]
        lines = write_lines(tmp_path / "c.jsonl", records)
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", sparse_case.spec))
        same(sparse_case.traced, run, "load", UNKNOWN["load"])

    def test_what_stands_in_dense_slots_does_not_matter(self, sparse_case: Case) -> None:
        dense = set(range(sparse_case.loaded.anatomy.num_decoder_layers)) - {*sparse_case.layers}
        assert dense
        for layer in dense:
            assert (sparse_case.requests[0].experts[:, layer] == GARBAGE).all()

    def test_more_than_256_experts_as_uint16(self, tmp_path: Path) -> None:
        model = wide_model(tmp_path / "model")
        record = wide_record("uint16")
        lines = write_lines(tmp_path / "c.jsonl", [record])
        run = open_run(
            import_traces("vllm", [lines], tmp_path / "run", model, TraceOptions(keep="all"))
        )
        found = {(r["layer"], r["expert"]) for r in run.table("load").to_pylist() if r["count"]}
        assert found == {(n, e) for n in range(4) for e in (0, 255, 256, 257, 298, 299)}
        sample = run.tokens()
        assert sample is not None
        assert int(sample.ids[3].max()) == 299

    def test_uint8_cannot_hold_more_than_256_experts(self, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [wide_record("uint8")])
        with pytest.raises(CorpusError, match="uint8 is too narrow"):
            import_traces("vllm", [lines], tmp_path / "run", wide_model(tmp_path / "model"))


def wide_model(folder: Path) -> ModelSpec:
    """300 experts; configuration and tokenizer, no weights."""
    tiny_config("olmoe", num_experts=300).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSpec(str(folder))


def wide_record(dtype: str) -> dict[str, Any]:
    row = [[0, 255, 256], [257, 298, 299]]
    experts = np.asarray([[row[t % 2]] * 4 for t in range(9)])
    request = Served("a", "d", list(range(4, 10)), [11, 12, 13, 14], experts)
    return plain(request, routed_experts=packed(experts, dtype))


class TestModel:
    def test_the_manifest_says_what_was_served_and_what_is_absent(
        self, case: Case, imported: AnalyzedRun
    ) -> None:
        manifest = imported.manifest
        assert manifest.model["weights_sha256"] is None
        assert manifest.model["config_sha256"] == case.traced.manifest.model["config_sha256"]
        assert manifest.source["engine"] == "vLLM"
        assert set(manifest.source["absent"]) == {"weights", "order", "loss", "predicted"}
        assert len(manifest.source["files"][0]["sha256"]) == 64
        assert "template" in " ".join(manifest.source["notes"])
        assert case.traced.manifest.source == {}

    def test_a_configuration_alone_will_do(self, case: Case, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        bare.mkdir()
        (bare / "config.json").write_text((case.folder / "config.json").read_text())
        lines = write_lines(tmp_path / "c.jsonl", [plain(case.requests[0])])
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", ModelSpec(str(bare))))
        served = case.requests[0].prompt[1]
        assert run.token_text(served) == f"#{served}"
        assert run.manifest.coverage["tokens_by_phase"]["prefill"] > 0
        assert "no tokenizer" in " ".join(run.manifest.source["notes"])
        assert run.manifest.model["tokenizer_sha256"] is None

    def test_an_order_that_is_not_by_weight_is_noted(
        self, sparse_case: Case, tmp_path: Path
    ) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in sparse_case.requests])
        run = open_run(
            import_traces("vllm", [lines], tmp_path / "run", sparse_case.spec, ordered=True)
        )
        assert any(
            "need not have the largest weight" in note for note in run.manifest.source["notes"]
        )

    def test_an_unknown_model_is_refused_first(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no such folder"):
            import_traces("vllm", [tmp_path / "none"], tmp_path / "run", ModelSpec("./moo"))


class TestCompare:
    def test_an_engine_that_routes_like_transformers_saturates(
        self, case: Case, imported: AnalyzedRun
    ) -> None:
        rows = compare_runs(case.traced, imported).to_pylist()
        assert {r["saturation"] for r in rows} == {1.0}
        assert all(np.isnan(r["first"]) for r in rows)
        assert rows[0]["tokens"] == case.traced.aggregates().arrays["cluster_tokens"].sum()

    def test_an_engine_that_routes_otherwise_does_not(self, case: Case, tmp_path: Path) -> None:
        records = []
        for request in case.requests:
            moved = request.experts.copy()
            moved[:, 2] = (moved[:, 2] + 1) % 8
            records.append(plain(request, routed_experts=moved.tolist()))
        rows = compare_runs(case.traced, imported_lines("vllm", records, case, tmp_path))
        by_layer = {r["layer"]: r["saturation"] for r in rows.to_pylist() if r["domain"] == "all"}
        assert by_layer[1] == 1.0
        assert by_layer[2] < 0.9

    def test_tokens_of_unknown_id_are_matched_by_place(self, case: Case, tmp_path: Path) -> None:
        records = [{**r.named, "response": sglang_answer(r)} for r in case.requests]
        run = imported_lines("sglang", records, case, tmp_path)
        rows = compare_runs(case.traced, run).to_pylist()
        assert {r["saturation"] for r in rows} == {1.0}

    def test_what_the_models_wrote_is_compared_too(self, case: Case, imported: AnalyzedRun) -> None:
        rows = [r for r in compare_runs(case.traced, imported).to_pylist() if r["domain"] == "all"]
        tokens = {r["phase"]: r["tokens"] for r in rows}
        assert tokens == {
            phase: case.traced.aggregates(phase).arrays["cluster_tokens"].sum()
            for phase in ("prefill", "decode")
        }

    def test_behind_the_first_other_token_nothing_is_compared(
        self, case: Case, tmp_path: Path
    ) -> None:
        """The third token that was written differs; the fourth is the same again."""
        records = []
        for request in case.requests:
            output = list(request.output)
            output[2] = output[2] + 1
            records.append(plain(request, output_token_ids=output))
        other = imported_lines("vllm", records, case, tmp_path)
        rows = compare_runs(case.traced, other).to_pylist()
        [decode, *_] = [r for r in rows if r["phase"] == "decode" and r["domain"] == "all"]
        assert decode["tokens"] == 2 * len(case.requests)
        assert decode["saturation"] == 1.0

    def test_a_phase_that_one_run_lacks_is_left_out(self, case: Case, tmp_path: Path) -> None:
        records = [
            plain(
                r, output_token_ids=r.output[:1], routed_experts=r.experts[: len(r.prompt)].tolist()
            )
            for r in case.requests
        ]
        run = imported_lines("vllm", records, case, tmp_path)
        assert {r["phase"] for r in compare_runs(run, case.traced).to_pylist()} == {"prefill"}
