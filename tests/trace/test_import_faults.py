"""Bad captures are refused in one line; an interrupted import goes on; memory stays flat."""

import base64
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.served import (
    Case,
    Served,
    imported_lines,
    npy,
    packed,
    plain,
    sglang_answer,
    vllm_answer,
    write_lines,
)

from moescope.errors import BadInputError, CorpusError, RunError
from moescope.files import LEDGER
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import ModelSpec
from moescope.run.options import TraceOptions
from moescope.trace.importers import import_traces
from moescope.trace.importers.files import find_captures, read_items


def one_more_layer(r: Served) -> Any:
    return np.concatenate([r.experts, r.experts[:, :1]], axis=1).tolist()


BAD: dict[str, tuple[Callable[[Served], dict[str, Any]], str]] = {
    "no experts": (lambda r: {"routed_experts": None}, "c.jsonl:1: no routed_experts"),
    "a word": (lambda r: {"routed_experts": "experts"}, "not base64"),
    "no axes": (lambda r: {"routed_experts": [1, 2]}, r"three axes.*shape \[2\]"),
    "ragged": (lambda r: {"routed_experts": [[[1, 2], [3]]]}, "ragged"),
    "fractions": (lambda r: {"routed_experts": [[[0.5]]]}, "something else than whole numbers"),
    "one row too few": (
        lambda r: {"routed_experts": r.experts[:-1].tolist()}, "rows of routing do not fit.*got"),
    "one layer too many": (
        lambda r: {"routed_experts": one_more_layer(r)}, r"number of layers \(got 5, expected 4"),
    "another K": (
        lambda r: {"routed_experts": r.experts[:, :, :2].tolist()}, "got 2, expected 3"),
    "an expert past E": (
        lambda r: {"routed_experts": np.where(r.experts == 7, 8, r.experts).tolist()},
        r"does not have \(layer \d, token \d+: got 8, expected 0 to 7\)"),
    "an expert twice": (
        lambda r: {"routed_experts": (r.experts * 0).tolist()}, "named twice.*layer 0, token 0"),
    "half a row missing": (
        lambda r: {"routed_experts": np.where(np.arange(3) == 2, -1, r.experts).tolist()},
        "got -1"),
    "cut short": (
        lambda r: {"routed_experts": {**packed(r.experts), "data": packed(r.experts)["data"][:-8]}},
        "cut short.*bytes, expected"),
    "broken base64": (
        lambda r: {"routed_experts": {**packed(r.experts), "data": "A"}}, "not base64"),
    "unknown dtype": (
        lambda r: {"routed_experts": {**packed(r.experts), "dtype": "object"}}, "unknown dtype"),
    "no shape": (
        lambda r: {"routed_experts": {"data": "", "dtype": "uint8"}}, "no shape beside"),
    "cut npy": (
        lambda r: {"routed_experts": base64.b64encode(
            base64.b64decode(npy(r.experts))[:-9]).decode()}, "not an .npy array"),
    "no prompt": (lambda r: {"prompt_token_ids": None}, "no field 'prompt_token_ids'"),
    "no output": (lambda r: {"output_token_ids": None}, "no field 'output_token_ids'"),
    "another vocabulary": (
        lambda r: {"prompt_token_ids": [99_999] * len(r.prompt)}, "outside the vocabulary"),
    "no domain": (lambda r: {"domain": None}, "no domain.*`domain=LABEL`"),
    "the name of the total": (lambda r: {"domain": "all"}, "reserved"),
    "a mask of another length": (lambda r: {"counted": [True]}, "counted does not fit"),
    "a mask of words": (lambda r: {"counted": ["yes"] * len(r.prompt)}, "counted"),
    "a start past the end": (lambda r: {"start": 10_000}, "expected 0"),
    "a start below 0": (lambda r: {"start": -1}, "start is not a position"),
    "the split form": (lambda r: {"prompt_routed_experts": []}, "split form of vLLM 0.21"),
}  # fmt: skip


class TestBadInput:
    @pytest.mark.parametrize("kind", BAD)
    def test_a_bad_record_is_one_clear_line(self, kind: str, case: Case, tmp_path: Path) -> None:
        change, words = BAD[kind]
        record = plain(case.requests[0]) | change(case.requests[0])
        with pytest.raises(CorpusError, match=words) as error:
            imported_lines("vllm", [record], case, tmp_path)
        assert "c.jsonl:1" in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("lost", [1, 4, 48])
    def test_a_truncated_answer_of_sglang(self, lost: int, case: Case, tmp_path: Path) -> None:
        request = case.requests[0]
        record = {**request.named, "input_ids": request.prompt, **sglang_answer(request)}
        raw = base64.b64decode(record["meta_info"]["routed_experts"])
        record["meta_info"]["routed_experts"] = base64.b64encode(raw[:-lost]).decode()
        with pytest.raises(CorpusError, match=r"cut short|rows of routing do not fit"):
            imported_lines("sglang", [record], case, tmp_path)

    def test_a_count_that_does_not_fit_the_ids(self, case: Case, tmp_path: Path) -> None:
        request = case.requests[0]
        record = {**request.named, "input_ids": request.prompt[1:], **sglang_answer(request)}
        with pytest.raises(CorpusError, match="do not fit prompt_tokens"):
            imported_lines("sglang", [record], case, tmp_path)

    def test_an_openai_answer_of_sglang_has_no_ids(self, case: Case, tmp_path: Path) -> None:
        record = {"id": "a", "domain": "d", "response": {"choices": [{}]}}
        with pytest.raises(CorpusError, match="save the answer of /generate"):
            imported_lines("sglang", [record], case, tmp_path)

    def test_an_answer_without_token_ids_says_how_to_get_them(
        self, case: Case, tmp_path: Path
    ) -> None:
        answer = vllm_answer(case.requests[0])
        del answer["choices"][0]["token_ids"]
        with pytest.raises(CorpusError, match="return_token_ids"):
            imported_lines("vllm", [{"domain": "d", "response": answer}], case, tmp_path)

    def test_a_repeated_id(self, case: Case, tmp_path: Path) -> None:
        with pytest.raises(CorpusError, match=r"c.jsonl:2: duplicate id \('d0-0'\)"):
            imported_lines("vllm", [plain(case.requests[0])] * 2, case, tmp_path)

    def test_lines_that_are_no_json(self, case: Case, tmp_path: Path) -> None:
        (tmp_path / "c.jsonl").write_text('{"id": "a"}\n{broken\n')
        with pytest.raises(CorpusError, match=r"c.jsonl:1: no field|no domain"):
            import_traces("vllm", [tmp_path / "c.jsonl"], tmp_path / "run", case.spec)

    def test_files_that_are_not_what_their_name_says(self, case: Case, tmp_path: Path) -> None:
        for name in ("a.npz", "a.safetensors"):
            (tmp_path / name).write_text("nothing of the kind")
            with pytest.raises(CorpusError, match=name):
                import_traces("vllm", [tmp_path / name], tmp_path / "run", case.spec)

    def test_pickles_are_never_opened(self, case: Case, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", routed_experts=np.asarray([{"a": 1}], dtype=object))
        with pytest.raises(CorpusError, match=r"not a \.npz archive of plain arrays"):
            import_traces("vllm", [tmp_path / "a.npz"], tmp_path / "run", case.spec)
        (tmp_path / "a.pkl").write_bytes(b"")
        with pytest.raises(CorpusError, match="unknown kind of file"):
            import_traces("vllm", [tmp_path / "a.pkl"], tmp_path / "run", case.spec)

    def test_nothing_to_count(self, case: Case, tmp_path: Path) -> None:
        record = {"id": "a", "domain": "d", "prompt_token_ids": [1], "output_token_ids": [5],
                  "routed_experts": [[[0, 1, 2]] * 4]}  # fmt: skip
        with pytest.raises(CorpusError, match="no token was counted"):
            imported_lines("vllm", [record], case, tmp_path)

    def test_options_of_a_trace_are_refused(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(case.requests[0])])
        with pytest.raises(BadInputError, match="option limit concerns a trace"):
            import_traces("vllm", [lines], tmp_path / "run", case.spec, TraceOptions(limit=3))

    def test_bad_requests_can_be_left_out_and_are_counted(self, case: Case, tmp_path: Path) -> None:
        records = [plain(r) for r in case.requests]
        records[2] = plain(case.requests[2], id="aborted", routed_experts=None)
        records[5] = plain(case.requests[5], id="cut", routed_experts=[])
        lines = write_lines(tmp_path / "c.jsonl", records)
        with lines.open("a") as stream:
            stream.write("{broken\n")
        run = open_run(import_traces("vllm", [lines], tmp_path / "run", case.spec, on_error="skip"))
        skipped = run.manifest.coverage["skipped_records"]
        assert skipped == {
            "no routed_experts": 1, "routed_experts has no three axes": 1, "not valid JSON": 1,
        }  # fmt: skip
        assert run.documents.num_rows == len(records) - 2


class Stopped(Exception):
    pass


class TestResume:
    def options(self, **more: Any) -> TraceOptions:
        return TraceOptions(keep="all", pool_tokens=150, checkpoint_seconds=0, **more)

    def stop_after(self, tokens: int) -> Callable[[Any], None]:
        def watch(progress: Any) -> None:
            if progress.done > tokens:
                raise Stopped

        return watch

    def test_stopped_and_resumed_equals_uninterrupted(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
        whole = import_traces("vllm", [lines], tmp_path / "whole", case.spec, self.options())
        broken = tmp_path / "broken"
        for tokens in (200, 400):
            with pytest.raises(Stopped):
                import_traces(
                    "vllm", [lines], broken, case.spec, self.options(),
                    resume=True, on_progress=self.stop_after(tokens),
                )  # fmt: skip
            with pytest.raises(RunError, match="not finished"):
                open_run(broken)
        import_traces("vllm", [lines], broken, case.spec, self.options(), resume=True)
        files = [
            {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()}
            for run in (whole, broken)
        ]
        assert files[0].keys() == files[1].keys()
        assert len([p for p in files[0] if p.parent.name == "shards"]) > 2
        for name in files[0].keys() - {Path("manifest.json"), Path(LEDGER)}:
            assert files[0][name] == files[1][name], name

    def test_other_files_are_refused(self, case: Case, tmp_path: Path) -> None:
        lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
        with pytest.raises(Stopped):
            import_traces(
                "vllm", [lines], tmp_path / "run", case.spec, self.options(),
                on_progress=self.stop_after(300),
            )  # fmt: skip
        write_lines(lines, [plain(r) for r in case.requests[1:]])
        with pytest.raises(RunError, match=r"cannot resume .*run: source files was "):
            import_traces("vllm", [lines], tmp_path / "run", case.spec, self.options(), resume=True)

    def test_a_run_is_not_overwritten(self, case: Case, imported: AnalyzedRun) -> None:
        lines = imported.path.parent / "captured.jsonl"
        with pytest.raises(RunError, match="already holds a run"):
            import_traces("vllm", [lines], imported.path, case.spec)

    def test_a_repeated_id_is_known_after_resuming(self, case: Case, tmp_path: Path) -> None:
        records = [plain(r) for r in case.requests]
        lines = write_lines(tmp_path / "c.jsonl", [*records, records[0]])
        with pytest.raises(Stopped):
            import_traces(
                "vllm", [lines], tmp_path / "run", case.spec, self.options(),
                on_progress=self.stop_after(500),
            )  # fmt: skip
        with pytest.raises(CorpusError, match="duplicate id"):
            import_traces("vllm", [lines], tmp_path / "run", case.spec, self.options(), resume=True)


def peak(path: Path, run: Path, spec: ModelSpec) -> int:
    options = TraceOptions(
        pool_tokens=500, sample_tokens=100, token_budget=500, checkpoint_seconds=0
    )
    tracemalloc.start()
    import_traces("vllm", [path], run, spec, options)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_file(case: Case, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((60, 4, 8)), axis=2)[:, :, :3]
    record = {"domain": "d", "prompt_token_ids": rng.integers(4, 90, 56).tolist(),
              "output_token_ids": [5] * 5, "routed_experts": experts.tolist()}  # fmt: skip
    peaks = []
    for count in (150, 600):
        lines = [record | {"id": str(n)} for n in range(count)]
        path = write_lines(tmp_path / f"{count}.jsonl", lines)
        peaks.append(peak(path, tmp_path / f"run-{count}", case.spec))
    assert path.stat().st_size > 600_000
    assert peaks[1] < peaks[0] + 1_500_000, peaks


def test_items_are_read_one_at_a_time(case: Case, tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "c.jsonl", [plain(r) for r in case.requests])
    [file] = find_captures([lines], (".jsonl",))
    first = next(read_items(file))
    assert first.where.endswith("c.jsonl:1")  # type: ignore[union-attr]
