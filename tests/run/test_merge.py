"""Runs of shards, merged, are the run of the whole text; what does not belong is refused."""

import doctest
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.support.same_run import (
    assert_same_sums,
    assert_same_tables,
    assert_same_tokens,
    kept_tokens,
    sparse_counts,
)
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec, open_corpus
from moescope.errors import RunError
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.report.report_page import build_report
from moescope.run import merge as merge_module
from moescope.run.aggregates import AggregateShape
from moescope.run.merge import merge_runs
from moescope.run.options import TraceOptions
from moescope.run.reader import Run
from moescope.trace import trace

OPTIONS = TraceOptions(context=32, generate=3, keep="all", sample_tokens=90, pool_tokens=300)
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "many-machines.md"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three domains, and a fourth with one document that only one shard can have."""
    path = write_corpus(tmp_path_factory.mktemp("text") / "c.jsonl", documents_per_domain=8)
    lines = path.read_text().splitlines()
    lines.insert(5, json.dumps({"id": "rare", "domain": "rare", "text": "the court may review"}))
    path.write_text("\n".join(lines[::3] + lines[1::3] + lines[2::3]) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(
    tiny_loaded: LoadedModel, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> AnalyzedRun:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return open_run(trace(tiny_loaded, CorpusSpec(path=str(corpus)), folder, OPTIONS))


def shards(
    loaded: LoadedModel, corpus: Path, total: int, folder: Path, options: TraceOptions = OPTIONS
) -> list[Path]:
    specs = [CorpusSpec(path=str(corpus), shard=f"{n}/{total}") for n in range(1, total + 1)]
    return [trace(loaded, s, folder / str(n), options) for n, s in enumerate(specs, 1)]


@pytest.fixture(scope="module")
def three(
    tiny_loaded: LoadedModel, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    return shards(tiny_loaded, corpus, 3, tmp_path_factory.mktemp("three"))


MORE = [pytest.param(total, marks=pytest.mark.slow) for total in (2, 5)]


@pytest.mark.parametrize("total", [1, 3, 16, *MORE])
def test_merged_shards_equal_the_run_of_the_whole(
    total: int, tiny_loaded: LoadedModel, corpus: Path, whole: AnalyzedRun, tmp_path: Path
) -> None:
    parts = shards(tiny_loaded, corpus, total, tmp_path)
    merged = open_run(merge_runs(parts, tmp_path / "merged"))
    assert_same_sums(whole, merged)
    for phase in ("prefill", "decode"):
        assert sparse_counts(whole, phase) == sparse_counts(merged, phase)
    assert whole.sample_table is not None
    assert merged.sample_table is not None
    assert whole.sample_table.num_rows < kept_tokens(whole).num_rows  # the budget left some out
    assert_same_tokens(whole, merged, whole.sample_table, merged.sample_table)
    assert_same_tokens(whole, merged, kept_tokens(whole), kept_tokens(merged))
    assert merged.vocabulary == whole.vocabulary
    assert merged.manifest.progress == whole.manifest.progress
    extra = {"corpus", "shards_missing"}
    assert {k: v for k, v in merged.manifest.coverage.items() if k not in extra} == (
        whole.manifest.coverage
    )
    if total in (3, 16):  # tables follow from what is equal already; they take the longest
        assert_same_tables(whole, merged)


def test_the_shards_of_these_tests_differ_in_what_makes_merging_hard(
    tiny_loaded: LoadedModel, corpus: Path, three: list[Path], tmp_path: Path
) -> None:
    """Other orders of domains, a domain that a shard lacks, a shard without a document."""
    orders = [Run(path).domains for path in three]
    common = [[name for name in order if name != "rare"] for order in orders]
    assert len({tuple(order) for order in common}) > 1
    assert sum("rare" in order for order in orders) == 1
    sizes = [Run(p).manifest.progress["tokens"] for p in shards(tiny_loaded, corpus, 16, tmp_path)]
    assert 0 in sizes


def in_shard_order(corpus: Path, total: int, target: Path) -> Path:
    """The same documents, those of shard 1 first."""
    lines = {json.loads(line)["id"]: line for line in corpus.read_text().splitlines()}
    specs = [CorpusSpec(path=str(corpus), shard=f"{n}/{total}") for n in range(1, total + 1)]
    target.write_text("".join(lines[d.doc_id] + "\n" for s in specs for d in open_corpus(s)))
    return target


def test_read_in_the_order_of_shards_a_single_run_is_the_same_number_by_number(
    tiny_loaded: LoadedModel, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is renumbered here, not even clusters that several documents share."""
    monkeypatch.setattr(AggregateShape, "max_clusters", property(lambda _: 3))
    turned = in_shard_order(corpus, 3, tmp_path / "turned.jsonl")
    single = open_run(trace(tiny_loaded, CorpusSpec(path=str(turned)), tmp_path / "one", OPTIONS))
    merged = open_run(
        merge_runs(shards(tiny_loaded, corpus, 3, tmp_path / "parts"), tmp_path / "merged")
    )
    assert merged.domains == single.domains
    assert merged.cluster_domain.tolist() == single.cluster_domain.tolist()
    assert np.bincount(single.cluster_domain).tolist() == [3, 3, 3, 1]  # of 8, 8, 8 and 1 documents
    assert merged.state.domain_docs == single.state.domain_docs
    for phase in single.phases:
        for name, array in single.aggregates(phase).arrays.items():
            other = merged.aggregates(phase).arrays[name]
            if array.dtype == np.int64:
                assert (array == other).all(), name
            else:
                np.testing.assert_allclose(array, other, rtol=2e-5, atol=1e-5)
        for name, counter in single.aggregates(phase).sparse.items():
            assert counter.keys.tolist() == merged.aggregates(phase).sparse[name].keys.tolist()
            assert counter.counts.tolist() == merged.aggregates(phase).sparse[name].counts.tolist()
    assert merged.documents["doc"].to_pylist() == single.documents["doc"].to_pylist()


def test_the_order_of_the_arguments_does_not_change_a_byte(
    three: list[Path], tmp_path: Path
) -> None:
    outs = [tmp_path / "a", tmp_path / "b"]
    merge_runs(three, outs[0])
    merge_runs([three[2], three[0], three[1]], outs[1])
    names = [sorted(p.relative_to(o).as_posix() for p in o.rglob("*") if p.is_file()) for o in outs]
    assert names[0] == names[1]
    assert "manifest.json" in names[0]
    assert all((outs[0] / n).read_bytes() == (outs[1] / n).read_bytes() for n in names[0])


def test_a_merged_run_says_what_it_was_made_of_and_has_a_report(
    three: list[Path], corpus: Path, tmp_path: Path
) -> None:
    merged = open_run(merge_runs(three, tmp_path / "merged"))
    said = merged.manifest.merged
    assert said is not None
    assert (said.shards, said.missing) == (3, [])
    assert [part.shard for part in said.parts] == ["1/3", "2/3", "3/3"]
    assert sum(part.documents for part in said.parts) == 25
    assert said.each_part == {"token_budget": 250_000, "limit": None}
    spec = CorpusSpec(path=str(corpus))
    assert merged.manifest.corpus == spec.model_dump(mode="json")
    assert merged.manifest.progress["fingerprint"] == open_corpus(spec).fingerprint()
    assert build_report(merged).is_file()


def test_each_shard_takes_its_own_token_budget(
    tiny_loaded: LoadedModel, corpus: Path, tmp_path: Path
) -> None:
    options = TraceOptions(context=32, token_budget=40)
    parts = shards(tiny_loaded, corpus, 3, tmp_path, options)
    merged = open_run(merge_runs(parts, tmp_path / "merged"))
    expected: dict[str, int] = {}
    for path in parts:
        run = Run(path)
        for name, tokens in run.manifest.progress["domain_tokens"].items():
            expected[name] = expected.get(name, 0) + min(40, tokens)
    taken = merged.aggregates().arrays["token_tokens"]
    assert dict(zip(merged.domains, taken.tolist(), strict=True)) == expected
    assert max(expected.values()) > 40
    assert merged.manifest.merged is not None
    assert merged.manifest.merged.each_part["token_budget"] == 40


def test_a_limit_counts_in_each_shard_and_its_text_cannot_be_read_again(
    tiny_loaded: LoadedModel, corpus: Path, tmp_path: Path
) -> None:
    options = TraceOptions(context=32, limit=30)
    merged = Run(merge_runs(shards(tiny_loaded, corpus, 2, tmp_path, options), tmp_path / "merged"))
    assert max(merged.manifest.progress["domain_tokens"].values()) >= 60
    assert merged.manifest.progress["fingerprint"] == ""


def test_sums_alone_can_be_merged(tiny_loaded: LoadedModel, corpus: Path, tmp_path: Path) -> None:
    options = TraceOptions(context=32, keep="aggregates")
    merged = open_run(
        merge_runs(shards(tiny_loaded, corpus, 2, tmp_path, options), tmp_path / "merged")
    )
    one = open_run(trace(tiny_loaded, CorpusSpec(path=str(corpus)), tmp_path / "one", options))
    assert merged.sample_table is None
    assert merged.vocabulary == one.vocabulary
    assert_same_sums(one, merged)


def test_a_part_of_the_shards_is_merged_only_when_asked_and_says_what_is_missing(
    three: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"1 of 3 shards are not there: 2; .* `partial`"):
        merge_runs([three[0], three[2]], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merged = open_run(merge_runs([three[0], three[2]], tmp_path / "merged", partial=True))
    read = [Run(path).manifest.progress["documents_read"] for path in three]
    assert merged.manifest.coverage["shards_missing"] == [2]
    assert merged.manifest.merged is not None
    assert merged.manifest.merged.missing == [2]
    assert merged.manifest.coverage["skipped_records"] == {
        "in a shard that was not merged": read[1]
    }
    assert merged.documents.num_rows == read[0] + read[2]
    assert merged.manifest.progress["fingerprint"] == ""  # of no corpus that could be read again
    page = build_report(merged).read_text()
    assert f"in a shard that was not merged: {read[1]}" in page
    with pytest.raises(RunError, match="is a merge that lacks shards"):
        merge_runs([tmp_path / "merged", three[1]], tmp_path / "again")


def test_runs_of_different_texts_are_joined(
    tiny_loaded: LoadedModel, corpus: Path, whole: AnalyzedRun, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other.jsonl", documents_per_domain=2, domains=2, seed=3)
    other.write_text(other.read_text().replace('"id": "', '"id": "new-'))
    second = open_run(trace(tiny_loaded, CorpusSpec(path=str(other)), tmp_path / "2", OPTIONS))
    outs = [
        open_run(merge_runs(runs, tmp_path / f"out{i}"))
        for i, runs in enumerate(([whole.path, second.path], [second.path, whole.path]))
    ]
    joined = outs[0]
    assert (outs[0].path / joined.manifest.state.file).read_bytes() == (
        outs[1].path / joined.manifest.state.file
    ).read_bytes()
    assert joined.documents.num_rows == 25 + 4
    for name in ("domain0", "domain1", "domain2"):
        counts = [
            run.aggregates().arrays["first_counts"][run.domains.index(name)]
            for run in (joined, whole, second)
            if name in run.domains
        ]
        assert (counts[0] == sum(counts[1:])).all()
    assert set(joined.manifest.corpus["path"].split(" + ")) == {"c.jsonl", "other.jsonl"}
    assert joined.manifest.merged is not None
    assert joined.manifest.merged.shards is None
    assert build_report(joined).is_file()


def test_a_document_in_two_runs_is_refused(
    tiny_loaded: LoadedModel, whole: AnalyzedRun, tmp_path: Path
) -> None:
    other = write_corpus(tmp_path / "other.jsonl", documents_per_domain=1, domains=1, seed=3)
    second = trace(tiny_loaded, CorpusSpec(path=str(other)), tmp_path / "2", OPTIONS)
    with pytest.raises(RunError, match=r"both hold the document 'd0-0'; it would be counted twice"):
        merge_runs([whole.path, second], tmp_path / "out")


def refusal(*runs: Path, out: Path) -> str:
    with pytest.raises(RunError) as caught:
        merge_runs(runs, out)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_belong_together_is_named_in_one_line(
    tiny_loaded: LoadedModel, corpus: Path, three: list[Path], whole: AnalyzedRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    one, two, _ = three
    copy = shutil.copytree(two, tmp_path / "copy")
    assert f"{two} and {copy} are both shard 2/3" in refusal(*three, copy, out=out)
    assert "is no shard; merge shards of one cut" in refusal(one, whole.path, out=out)
    spec = CorpusSpec(path=str(corpus), shard="2/4")
    quarter = trace(tiny_loaded, spec, tmp_path / "quarter", OPTIONS)
    assert "is shard 1/3 and" in refusal(one, quarter, out=out)

    model = load_model(ModelSpec(str(save_tiny("olmoe", tmp_path / "model", seed=5))))
    second = CorpusSpec(path=str(corpus), shard="2/3")
    other = trace(model, second, tmp_path / "other-model", OPTIONS)
    assert "_sha256: '" in refusal(one, other, out=out)
    said = refusal(one, other, out=out)
    assert (
        f"are runs of {tiny_loaded.spec.model} and {tmp_path / 'model'} with different mod" in said
    )
    longer = OPTIONS.model_copy(update={"context": 48})
    other = trace(tiny_loaded, second, tmp_path / "other-options", longer)
    assert "runs with different options (context: 32 against 48)" in refusal(one, other, out=out)
    spec = second.model_copy(update={"split": "test"})
    other = trace(tiny_loaded, spec, tmp_path / "other-spec", OPTIONS)
    assert "runs with different corpus (split: None against 'test')" in refusal(one, other, out=out)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(corpus.read_text().replace("river", "water", 1))
    spec = CorpusSpec(path=str(changed), shard="2/3")
    other = trace(tiny_loaded, spec, tmp_path / "other-text", OPTIONS)
    assert "are shards of different texts" in refusal(one, other, out=out)
    assert not out.exists()


def test_a_run_that_is_not_finished_or_not_there_is_named(
    tiny_loaded: LoadedModel, corpus: Path, three: list[Path], tmp_path: Path
) -> None:
    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.done > 100:
            raise KeyboardInterrupt

    spec = CorpusSpec(path=str(corpus), shard="2/3")
    options = OPTIONS.model_copy(update={"pool_tokens": 50, "checkpoint_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        trace(tiny_loaded, spec, tmp_path / "half", options, on_progress=stop)
    assert "half is not finished" in refusal(three[0], tmp_path / "half", out=tmp_path / "out")
    assert "is not a run" in refusal(three[0], tmp_path / "none", out=tmp_path / "out")


@pytest.mark.parametrize(
    "pattern", ["aggregates/*", "documents.parquet", "shards/00000.parquet", "vocabulary.json"]
)
def test_a_damaged_file_stops_the_merge_and_is_named(
    pattern: str, three: list[Path], tmp_path: Path
) -> None:
    copies = [shutil.copytree(path, tmp_path / path.name) for path in three]
    [file] = copies[1].glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = refusal(*copies, out=tmp_path / "out")
    assert f"{file} was truncated or altered" in said
    assert not (tmp_path / "out").exists()
    merged = merge_runs(three, tmp_path / "out")
    assert open_run(merged).documents.num_rows == 25


def test_a_document_of_another_shard_is_found_out(three: list[Path], tmp_path: Path) -> None:
    copies = [shutil.copytree(path, tmp_path / path.name) for path in three]
    for path, claimed in ((copies[0], "2/3"), (copies[1], "1/3")):
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["corpus"]["shard"] = claimed
        (path / "manifest.json").write_text(json.dumps(manifest))
    assert "which is not in its shard" in refusal(*copies, out=tmp_path / "out")


def test_shards_that_do_not_add_up_to_their_corpus_are_found_out(
    three: list[Path], tmp_path: Path
) -> None:
    copies = [shutil.copytree(path, tmp_path / path.name) for path in three]
    manifest = json.loads((copies[0] / "manifest.json").read_text())
    manifest["progress"]["documents_read"] -= 1
    (copies[0] / "manifest.json").write_text(json.dumps(manifest))
    said = refusal(*copies, out=tmp_path / "out")
    assert "the shards hold 24 documents together, their corpus has 25" in said


def test_nothing_but_an_interrupted_merge_is_written_over(
    three: list[Path], whole: AnalyzedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "already holds a run" in refusal(*three, out=whole.path)
    (tmp_path / "mine" / "documents").mkdir(parents=True)
    (tmp_path / "mine" / "documents" / "thesis.txt").write_text("years of work")
    assert "moescope did not write (documents)" in refusal(*three, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "documents" / "thesis.txt").exists()
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(*three, out=tmp_path / "file")

    def dies(*_args: object, **_more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merge_module, "finish", dies)
        with pytest.raises(KeyboardInterrupt):
            merge_runs(three, tmp_path / "out")
    merge_runs(three, tmp_path / "out")
    merge_runs(three, tmp_path / "straight")
    names = [
        {p.relative_to(o) for p in o.rglob("*")} for o in (tmp_path / "out", tmp_path / "straight")
    ]
    assert names[0] == names[1]


def test_kept_tokens_can_share_their_bytes_with_the_parts(
    three: list[Path], tmp_path: Path
) -> None:
    merged = Run(merge_runs(three, tmp_path / "merged", link=True))
    files = [merged.path / s.file for s in merged.manifest.shards]
    assert {f.stat().st_nlink for f in files} == {2}
    assert_same_tokens(*[open_run(merged.path)] * 2, *[kept_tokens(open_run(merged.path))] * 2)


def test_an_empty_shard_is_a_finished_run_that_says_so_when_a_report_is_asked_for(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"id": "a", "domain": "web", "text": "water boils for tea"}) + "\n")
    runs = [open_run(run) for run in shards(tiny_loaded, path, 2, tmp_path)]
    empty, full = sorted(runs, key=lambda run: int(run.manifest.progress["tokens"]))
    assert empty.manifest.status == "complete"
    assert empty.manifest.coverage["tokens_per_router"] == 0
    assert empty.table("load").num_rows == 0
    with pytest.raises(RunError, match=r"holds no token: its shard ./2 has no text"):
        build_report(empty)
    merged = open_run(merge_runs([empty.path, full.path], tmp_path / "merged"))
    assert merged.manifest.progress["tokens"] == full.manifest.progress["tokens"] > 0
    with pytest.raises(RunError, match="nothing to merge"):
        merge_runs([empty.path], tmp_path / "out", partial=True)


def test_the_arithmetic_of_the_guide_is_right() -> None:
    said: list[str] = []
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    source = PAGE.read_text(encoding="utf-8").replace("```", "")
    result = runner.run(parser.get_doctest(source, {}, PAGE.name, str(PAGE), 0), out=said.append)
    assert result.attempted > 5
    assert result.failed == 0, "".join(said)
