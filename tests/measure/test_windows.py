"""The text that measures run on: the windows of the run's own sample, whatever the order."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError, CorpusError, RunError
from moescope.measure.windows import (
    TextWindow,
    choose_windows,
    require_model,
    run_windows,
    window_batches,
)
from moescope.metrics.runs import AnalyzedRun
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.run.options import TraceOptions
from moescope.run.reader import Run
from moescope.run.sample import span_priority
from moescope.trace import trace


def name(window: TextWindow) -> tuple[str, int]:
    return window.doc, window.window


def tokens(window: TextWindow) -> list[int]:
    return window.token_ids[window.counted].tolist()


def run_of(loaded: LoadedModel, corpus: Path, folder: Path, **options: Any) -> Run:
    defaults: dict[str, Any] = {"predictions": False, "checkpoint_seconds": 0}
    settings = TraceOptions(**(defaults | options))
    trace(loaded, CorpusSpec(path=str(corpus)), folder, settings)
    return Run(folder)


def sampled(run: Run) -> dict[tuple[str, str, int], list[int]]:
    """Domain, document and window of every span of the stored sample → its tokens."""
    found: dict[tuple[str, str, int], list[int]] = {}
    assert run.sample_table is not None
    for row in run.sample_table.to_pylist():
        if row["phase"] == "prefill":
            key = (row["domain"], row["doc"], row["window"])
            found.setdefault(key, []).append(row["token_id"])
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "all of the text": {},
    "a budget": {"sample_tokens": 60},
    "short windows": {"context": 12, "sample_tokens": 50},
    "another seed": {"sample_tokens": 60, "seed": 3},
    "a limit": {"limit": 90, "context": 20},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_run_gives_the_windows_of_its_own_sample(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path, case: str
) -> None:
    run = run_of(tiny_loaded, tiny_corpus, tmp_path / "run", **OPTIONS[case])
    windows = run_windows(tiny_loaded, run)
    ours = {(w.domain, w.doc, w.window): tokens(w) for w in windows}
    assert len(ours) == len(windows)
    assert ours == sampled(run)
    assert len({w.domain for w in windows}) == 3


def test_windows_that_were_shortened_for_generation_are_shortened_again(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    """A context of 24 tokens, of which 4 written ones and the next take 5."""
    loaded = load_model(ModelSpec(str(save_tiny("olmoe", tmp_path, max_position_embeddings=24))))
    run = run_of(loaded, tiny_corpus, tmp_path / "run", generate=4)
    windows = run_windows(loaded, run)
    assert max(len(w.token_ids) for w in windows) == 19
    assert {(w.domain, w.doc, w.window): tokens(w) for w in windows} == sampled(run)


def test_every_token_of_a_window_lies_where_it_says(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    spec = CorpusSpec(path=str(tiny_corpus))
    options = TraceOptions(context=12)
    whole = {w.doc: tokens(w) for w in choose_windows(tiny_loaded, spec, tokens_per_domain=None)}
    pieces = choose_windows(tiny_loaded, spec, tokens_per_domain=None, options=options)
    assert max(len(w.token_ids) for w in pieces) == 12
    assert len(pieces) > len(whole)
    joined: dict[str, list[int]] = {}
    for w in pieces:
        first = w.start + int(w.counted.argmax())
        assert tokens(w) == whole[w.doc][first - 1 : first - 1 + w.num_tokens]  # BOS is token 0
        joined.setdefault(w.doc, []).extend(tokens(w))
    assert joined == whole


def test_the_budget_keeps_the_windows_of_lowest_hash_and_no_more_than_it_needs(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    spec, options = CorpusSpec(path=str(tiny_corpus)), TraceOptions(context=16, seed=5)
    everything = choose_windows(tiny_loaded, spec, tokens_per_domain=None, options=options)
    domains = ("domain0", "domain1", "domain2")
    ranked = {
        domain: sorted(
            (w for w in everything if w.domain == domain),
            key=lambda w: span_priority(w.doc, w.window, 5),
        )
        for domain in domains
    }
    exactly = sum(w.num_tokens for w in ranked["domain0"][:3])
    for budget in (1, 40, 90, exactly, 10_000):
        chosen = choose_windows(tiny_loaded, spec, tokens_per_domain=budget, options=options)
        for domain in domains:
            kept, total = set(), 0
            for window in ranked[domain]:
                if total >= budget:
                    break
                kept.add(name(window))
                total += window.num_tokens
            assert {name(w) for w in chosen if w.domain == domain} == kept


def test_neither_the_order_of_the_documents_nor_other_documents_change_the_choice(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    lines = tiny_corpus.read_text(encoding="utf-8").splitlines()
    other = json.dumps({"id": "x", "domain": "another", "text": "the court may review"})
    shuffled = [*lines, other]
    random.Random(0).shuffle(shuffled)
    (tmp_path / "shuffled.jsonl").write_text("\n".join(shuffled) + "\n", encoding="utf-8")
    first, second = (
        {
            (w.domain, *name(w)): tokens(w)
            for w in choose_windows(tiny_loaded, CorpusSpec(path=str(path)), tokens_per_domain=50)
        }
        for path in (tiny_corpus, tmp_path / "shuffled.jsonl")
    )
    assert {k: v for k, v in second.items() if k[0] != "another"} == first
    assert len(second) == len(first) + 1


def test_windows_come_by_domain_document_and_window(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    windows = choose_windows(
        tiny_loaded, CorpusSpec(path=str(tiny_corpus)), options=TraceOptions(context=10)
    )
    order = [(w.domain, *name(w)) for w in windows]
    assert order == sorted(order)
    assert len(set(order)) == len(order)


def test_a_longer_window_gives_its_first_tokens(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    spec = CorpusSpec(path=str(tiny_corpus))
    whole = {name(w): tokens(w) for w in choose_windows(tiny_loaded, spec)}
    for w in choose_windows(tiny_loaded, spec, window_tokens=5):
        assert tokens(w) == whole[name(w)][:5]
        assert len(w.token_ids) == len(w.counted) == min(5, len(whole[name(w)])) + 1  # BOS
        assert not w.counted[0]


def test_batches_hold_every_window_once_padded_on_the_right(
    tiny_loaded: LoadedModel, tiny_corpus: Path
) -> None:
    windows = choose_windows(tiny_loaded, CorpusSpec(path=str(tiny_corpus)))
    seen = []
    for batch in window_batches(windows, 150, pad_id=9):
        assert batch.token_ids.size <= 150 or len(batch.rows) == 1
        for row, place in enumerate(batch.rows):
            window, length = windows[place], len(windows[place].token_ids)
            assert np.array_equal(batch.token_ids[row, :length], window.token_ids)
            assert (batch.token_ids[row, length:] == 9).all()
            assert batch.attention_mask[row].tolist() == [
                i < length for i in range(batch.token_ids.shape[1])
            ]
            assert np.array_equal(batch.counted[row, :length], window.counted)
            assert not batch.counted[row, length:].any()
            seen.append(int(place))
    assert sorted(seen) == list(range(len(windows)))
    assert list(window_batches([], 10)) == []


# -- refusals


def test_budgets_below_one_are_refused(tiny_loaded: LoadedModel, tiny_corpus: Path) -> None:
    spec = CorpusSpec(path=str(tiny_corpus))
    for wrong in ({"tokens_per_domain": 0}, {"window_tokens": 0}, {"window_tokens": -3}):
        [what] = wrong
        with pytest.raises(BadInputError, match=f"{what} must be 1 or more, got"):
            choose_windows(tiny_loaded, spec, **wrong)  # type: ignore[arg-type]
    windows = choose_windows(tiny_loaded, spec)
    with pytest.raises(BadInputError, match="must be 1 or more"):
        list(window_batches(windows, 0))


def test_a_text_without_a_counted_token_is_refused(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text('{"id": "a", "domain": "d", "text": ""}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"blank\.jsonl"):
        choose_windows(tiny_loaded, CorpusSpec(path=str(path)))


def test_a_corpus_that_changed_since_the_run_is_refused(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "texts.jsonl")
    run = run_of(tiny_loaded, corpus, tmp_path / "run", limit=30)
    assert run_windows(tiny_loaded, run)
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("the", "a", 1), encoding="utf-8")
    with pytest.raises(RunError, match="is not the corpus of this run any more"):
        run_windows(tiny_loaded, run)
    corpus.write_text(text + text.splitlines()[0].replace("d0-0", "new") + "\n", encoding="utf-8")
    with pytest.raises(RunError, match="its documents differ"):
        run_windows(tiny_loaded, run)
    corpus.unlink()
    with pytest.raises(CorpusError):
        run_windows(tiny_loaded, run)


@pytest.mark.parametrize("change", [{"source": {"engine": "vllm"}}, {"fingerprint": ""}])
def test_a_run_that_does_not_tell_what_was_read_is_refused(
    change: dict[str, Any], tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    """An imported run, and one that was merged from parts with a limit each."""
    run = run_of(tiny_loaded, tiny_corpus, tmp_path / "run")
    run.manifest.progress |= {k: v for k, v in change.items() if k == "fingerprint"}
    run.manifest.source = change.get("source", {})
    with pytest.raises(RunError, match=r"imported, or merged .* give the corpus itself"):
        run_windows(tiny_loaded, run)


def test_another_model_or_tokenizer_is_refused(
    tiny_run: AnalyzedRun, tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    require_model(tiny_loaded, tiny_run)
    for what in ("config", "weights", "tokenizer"):
        other: Any = SimpleNamespace(**{**vars(tiny_loaded), f"{what}_hash": "0" * 64})
        with pytest.raises(RunError, match=rf"another model .* than .*: {what} not the same"):
            require_model(other, tiny_run)
        with pytest.raises(RunError, match="another model"):
            run_windows(other, tiny_run)
    seeded = load_model(ModelSpec(str(save_tiny("olmoe", tmp_path / "other", seed=1))))
    with pytest.raises(RunError, match="another model"):
        run_windows(seeded, tiny_run)
