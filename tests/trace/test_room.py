"""What the sums of a text take is known before it is traced, and refused where it does not fit."""

from collections import Counter
from pathlib import Path

import pytest
from tests.support.saved import save_tiny

from moescope.corpus import CorpusSpec, open_corpus
from moescope.errors import BadInputError
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec
from moescope.models.loading import load_streamed
from moescope.models.memory import StreamedNeed
from moescope.run.aggregates import AggregateShape
from moescope.run.options import TraceOptions
from moescope.trace import record as record_module
from moescope.trace import trace
from moescope.trace.room import document_bytes, sums_need


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    return ModelSpec(str(save_tiny("olmoe", tmp_path / "m")))


def test_the_reckoning_is_what_a_run_takes_at_least(
    spec: ModelSpec, tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus, options = CorpusSpec(path=str(tiny_corpus)), TraceOptions(context=32)
    state = open_run(trace(load_streamed(spec), corpus, tmp_path / "run", options)).state
    documents, characters = Counter(), Counter()
    for document in open_corpus(corpus):
        documents[document.domain] += 1
        characters[document.domain] += len(document.text)
    need = sums_need(state.shape, options, documents, characters)
    sample = state.samples["prefill"].nbytes
    assert need <= state.dense_bytes() - sample  # which counts the sample twice
    assert need > 0.5 * (state.dense_bytes() - 2 * sample)
    assert sample > 0


def test_documents_past_a_limit_need_no_room() -> None:
    shape = AggregateShape(layers=(0, 1), num_experts=(8, 8), top_k=(2, 2))
    sizes = {"d": 1000}, {"d": 1_000_000}  # a thousand characters each
    whole = sums_need(shape, TraceOptions(keep="aggregates"), *sizes)
    limited = sums_need(shape, TraceOptions(keep="aggregates", limit=9_999), *sizes)
    # counts of experts, five scalars and two repetitions of each layer, tokens and pairs
    assert whole - limited == 990 * 8 * (2 * 8 + 2 * 7 + 2)


def test_a_text_whose_sums_do_not_fit_is_refused_before_anything_is_written(
    spec: ModelSpec, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamedNeed, "sums", 1000)
    with pytest.raises(BadInputError, match=r"`memory` leaves 0 MB .* need .* domains.*give"):
        trace(load_streamed(spec), CorpusSpec(path=str(tiny_corpus)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_pool_holds_no_more_documents_than_their_masses_fit_in(
    spec: ModelSpec, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, sizes = load_streamed(spec), []
    stock = record_module.iter_pools

    def listed(*args):  # type: ignore[no-untyped-def]
        for pool in stock(*args):
            sizes.append(len(pool))
            yield pool

    monkeypatch.setattr(record_module, "iter_pools", listed)
    monkeypatch.setattr(
        record_module, "document_bytes", lambda shape: 10**6 * document_bytes(shape)
    )
    monkeypatch.setattr(record_module, "require_room", lambda *_: None)
    layers = loaded.anatomy.layers
    mass = 8 * len(layers) * max(layer.num_experts for layer in layers)
    monkeypatch.setattr(StreamedNeed, "sums", 4 * 3 * 10**6 * mass)
    trace(loaded, CorpusSpec(path=str(tiny_corpus)), tmp_path / "run", TraceOptions(context=32))
    assert max(sizes) == 3
