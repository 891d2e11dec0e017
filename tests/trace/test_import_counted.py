"""Which tokens of a captured request count, and under which phase; and llama.cpp's tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.served import (
    UNKNOWN,
    Case,
    Served,
    imported_lines,
    packed,
    plain,
    same,
    sglang_answer,
    vllm_answer,
    write_activations,
    write_lines,
    write_table,
)

from moescope.errors import CorpusError
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.run.options import TraceOptions
from moescope.trace.importers import import_traces


class TestWhatIsCounted:
    def test_a_start_offset_leaves_tokens_out_and_counts_them(
        self, case: Case, tmp_path: Path
    ) -> None:
        request, start = case.requests[0], 3
        record = {**request.named, "input_ids": request.prompt, "start": start}
        record["response"] = sglang_answer(request, start)
        run = imported_lines("sglang", [record], case, tmp_path)
        # position 0 is BOS; 1 and 2 are text before the offset; the last token was never fed
        assert run.manifest.progress["left_out"] == {
            "special tokens": 1,
            "tokens whose routing was not returned": 2,
            "last tokens, which were never fed": 1,
        }
        sample = run.tokens()
        assert sample is not None
        assert sample.pos.tolist() == list(range(3, len(request.prompt)))
        assert any("2 tokens were read from a cached prefix" in n for n in notes(run))

    def test_rows_of_minus_one_are_not_routing(self, case: Case, tmp_path: Path) -> None:
        request = case.requests[0]
        experts = request.experts.copy()
        experts[:4] = -1
        record = plain(request, routed_experts=packed(experts, "int16"))
        run = imported_lines("vllm", [record], case, tmp_path)
        left_out = run.manifest.progress["left_out"]
        assert left_out["tokens whose routing was not returned"] == 3

    def test_a_mask_leaves_out_what_a_template_wrote(self, case: Case, tmp_path: Path) -> None:
        request = case.requests[0]
        mask = [t >= 5 for t in range(len(request.prompt))]
        run = imported_lines("vllm", [plain(request, counted=mask)], case, tmp_path)
        assert run.manifest.progress["left_out"]["tokens masked in the capture"] == 4
        assert not any("template" in note for note in notes(run))

    def test_neighbours_across_a_gap_are_no_pair(self, case: Case, tmp_path: Path) -> None:
        request = case.requests[0]
        mask = [t != 4 for t in range(len(request.prompt))]
        run = imported_lines("vllm", [plain(request, counted=mask)], case, tmp_path)
        pairs = run.table("repetition").to_pylist()[0]["pairs"]
        # of P − 1 text tokens one is gone; two runs are left, each with one pair fewer than tokens
        assert pairs == len(request.prompt) - 2 - 2

    def test_special_tokens_in_prompt_and_output_are_not_counted(
        self, case: Case, tmp_path: Path
    ) -> None:
        bos, eos = 1, 2
        experts = some_rows(6)
        request = Served("a", "d", [bos, 10, eos, 11], [12, eos, 13], experts)
        run = imported_lines("vllm", [plain(request)], case, tmp_path)
        assert run.manifest.coverage["tokens_by_phase"] == {"prefill": 2, "decode": 1}

    def test_a_prompt_in_words_is_tokenized_as_the_engine_does(
        self, case: Case, tmp_path: Path
    ) -> None:
        text = "the plan covers support"
        ids = case.loaded.tokenizer(text)["input_ids"]
        experts = some_rows(len(ids))
        record = {"id": "a", "domain": "d", "prompt": text, "output_token_ids": [9],
                  "routed_experts": experts.tolist()}  # fmt: skip
        run = imported_lines("vllm", [record], case, tmp_path)
        sample = run.tokens()
        assert sample is not None
        assert sample.token_id.tolist() == ids[1:]

    def test_a_prompt_of_unknown_ids_counts_for_experts_only(
        self, case: Case, tmp_path: Path
    ) -> None:
        request = case.requests[0]
        record = {**request.named, "response": sglang_answer(request)}
        run = imported_lines("sglang", [record], case, tmp_path)
        assert run.manifest.coverage["tokens_by_phase"]["prefill"] == len(request.prompt)
        assert run.manifest.progress["requests"]["unnamed_tokens"] == len(request.prompt)
        prefill = [r for r in run.table("expert_tokens").to_pylist() if r["phase"] == "prefill"]
        assert prefill == []
        assert run.table("information").filter(_is(run, "prefill")).num_rows == 0

    def test_a_request_that_read_all_from_the_cache_is_decode_only(
        self, case: Case, tmp_path: Path
    ) -> None:
        records = []
        for request in case.requests:
            read = len(request.prompt)
            records.append({**request.named, "input_ids": request.prompt, "start": read,
                            "response": sglang_answer(request, read)})  # fmt: skip
        run = imported_lines("sglang", records, case, tmp_path)
        assert run.phases == ["decode"]
        same_phase(case.traced, run, "load", "decode")

    def test_domains_come_from_the_record_else_from_the_caller(
        self, case: Case, tmp_path: Path
    ) -> None:
        first, second = (plain(r) for r in case.requests[:2])
        first["domain"], second["domain"] = " chat  rooms ", ""
        lines = write_lines(tmp_path / "c.jsonl", [first, second])
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", case.spec, domain="rest"))
        assert run.domains == ["chat rooms", "rest"]

    def test_without_an_id_the_place_in_the_file_is_one(self, case: Case, tmp_path: Path) -> None:
        record = plain(case.requests[0])
        del record["id"]
        run = imported_lines("vllm", [record], case, tmp_path)
        assert run.documents["doc"].to_pylist() == ["c.jsonl:1"]

    def test_several_choices_are_several_requests(self, case: Case, tmp_path: Path) -> None:
        one = vllm_answer(case.requests[0])
        one["choices"] = one["choices"] * 2
        run = imported_lines("vllm", [{"domain": "d", "response": one}], case, tmp_path)
        assert run.documents["doc"].to_pylist() == ["cmpl-1#0", "cmpl-1#1"]

    def test_some_layers_only(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
        options = TraceOptions(layers=(1, 3))
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", case.spec, options))
        found = {r["layer"] for r in run.table("load").to_pylist()}
        assert found == {1, 3}


def notes(run: AnalyzedRun) -> list[str]:
    made: list[str] = run.manifest.source["notes"]
    return made


def _is(run: AnalyzedRun, phase: str) -> Any:
    import pyarrow as pa

    return pa.array([p == phase for p in run.table("information")["phase"].to_pylist()])


def same_phase(a: AnalyzedRun, b: AnalyzedRun, name: str, phase: str) -> None:
    left, right = (
        [r["count"] for r in run.table(name).to_pylist() if r["phase"] == phase] for run in (a, b)
    )
    assert left == right
    assert sum(left) > 0


class TestLlamaCpp:
    @pytest.mark.parametrize("write", [write_table, write_activations])
    def test_a_csv_gives_the_counts_of_the_trace(
        self, write: Any, sparse_case: Case, tmp_path: Path
    ) -> None:
        for n, request in enumerate(sparse_case.requests):
            write(tmp_path / f"{n:03d}.csv", request, sparse_case.layers)
        run = open_run(import_traces("llamacpp", [tmp_path], tmp_path / "run", sparse_case.spec))
        same(sparse_case.traced, run, "load", UNKNOWN["load"])
        same(sparse_case.traced, run, "vocabulary_specialization")
        assert len(run.manifest.source["files"]) == 2 * len(sparse_case.requests)

    def test_every_fed_token_is_counted_when_the_last_one_was_fed_too(
        self, case: Case, tmp_path: Path
    ) -> None:
        request = case.requests[0]
        request = request._replace(output=request.output[:-1])  # all of it has routing
        write_activations(tmp_path / "a.csv", request, case.layers)
        run = open_run(import_traces("llamacpp", [tmp_path], tmp_path / "run", case.spec))
        assert run.manifest.progress["left_out"] == {"special tokens": 1}
        assert run.manifest.progress["tokens"] == len(request.experts) - 1

    def test_without_tokens_ids_are_unknown_but_experts_are_counted(
        self, case: Case, tmp_path: Path
    ) -> None:
        path = write_table(tmp_path / "a.csv", case.requests[0], case.layers)
        path.with_suffix(".json").unlink()
        run = open_run(import_traces("llamacpp", [path], tmp_path / "run", case.spec, domain="d"))
        assert run.manifest.progress["tokens"] == len(case.requests[0].experts)
        assert run.table("expert_tokens").num_rows == 0
        assert any("ids of" in note for note in run.manifest.source["notes"])

    def test_the_prompts_end_must_be_known(self, case: Case, tmp_path: Path) -> None:
        path = write_activations(tmp_path / "a.csv", case.requests[0], case.layers)
        path.with_suffix(".json").unlink()
        with pytest.raises(CorpusError, match=r"prompt ends is not known.*JSON file"):
            import_traces("llamacpp", [path], tmp_path / "run", case.spec, domain="d")

    def test_a_last_layer_of_logits_only_is_named_and_can_be_left_out(
        self, case: Case, tmp_path: Path
    ) -> None:
        request = case.requests[0]
        path = write_activations(tmp_path / "a.csv", request, case.layers[:-1])
        with path.open("a") as stream:
            stream.write("3,0\n3,1\n3,2\n")
        with pytest.raises(CorpusError, match=r"layer 3: rows of 1 tokens.*`layers` 0-2"):
            import_traces("llamacpp", [path], tmp_path / "run", case.spec)
        options = TraceOptions(layers=(0, 1, 2))
        run = open_run(import_traces("llamacpp", [path], tmp_path / "run", case.spec, options))
        assert run.shape.layers == (0, 1, 2)

    def test_rankings_read_as_choices_are_recognised(self, case: Case, tmp_path: Path) -> None:
        """The first 3·T ids of a (T, 8) table of rankings, instead of its first 3 columns."""
        request, rng = case.requests[0], np.random.default_rng(0)
        rows = len(request.experts)
        rankings = np.argsort(rng.random((4, rows, 8)), axis=2).reshape(4, -1)
        wrong = rankings[:, : 3 * rows].reshape(4, rows, 3).transpose(1, 0, 2)
        path = write_activations(tmp_path / "a.csv", request._replace(experts=wrong), case.layers)
        with pytest.raises(CorpusError, match=r"whole rankings.*first revision"):
            import_traces("llamacpp", [path], tmp_path / "run", case.spec)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1,2,3\n4,5,6\n", "without header"),
            ("layer,token\n0,0\n", "no column 'expert'"),
            ("layer,expert\n0,x\n", "something else than whole numbers"),
            ("phase,token,layer,expert\nprefill,0,0,1\nprefill,2,0,1\n", "tokens are missing"),
            ("phase,token,layer,expert\nprefill,0,0,1\n", "token 0: got 1, expected 3"),
            ("phase,token,layer,expert\nprefill,0,9,1\n", "no row of a MoE layer"),
        ],
    )
    def test_a_csv_of_another_form_is_refused(
        self, text: str, words: str, case: Case, tmp_path: Path
    ) -> None:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(CorpusError, match=words):
            import_traces("llamacpp", [tmp_path / "a.csv"], tmp_path / "run", case.spec, domain="d")


def some_rows(size: int) -> Any:
    """Routing of so many tokens, no two alike."""
    experts = (np.arange(size)[:, None] + np.arange(3)) % 8
    return np.repeat(experts[:, None], 4, axis=1)
