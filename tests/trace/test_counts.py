"""The counts of a run equal a plain reading of the model's own router outputs, token for token."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec, open_corpus
from moescope.metrics.runs import open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.run import aggregates
from moescope.run.aggregates import HISTOGRAMS, LOGIT_EDGES, PROB_EDGES, WEIGHT_EDGES
from moescope.run.options import TraceOptions
from moescope.trace import trace

TYPES = ("olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")
CONTEXT = 24


def brute_force(loaded: LoadedModel, corpus: Path) -> Counter:
    """(domain, layer, expert) → tokens; one window at a time, no padding, plain loops."""
    counts: Counter = Counter()
    outputs: dict[str, tuple] = {}
    for layer in loaded.anatomy.layers:
        router = loaded.model.get_submodule(layer.site.router)
        router.register_forward_hook(
            lambda _m, _a, out, name=layer.site.router: outputs.__setitem__(name, out)
        )
    bos = loaded.tokenizer.bos_token_id
    for document in open_corpus(CorpusSpec(path=str(corpus))):
        ids = loaded.tokenizer(document.text)["input_ids"][1:]
        step = CONTEXT - 1
        for start in range(0, len(ids), step):
            window = [bos, *ids[start : start + step]]
            with torch.no_grad():
                loaded.model(input_ids=torch.tensor([window]))
            for layer in loaded.anatomy.layers:
                chosen = outputs[layer.site.router][2]
                for position in range(1, len(window)):
                    for expert in chosen[position].tolist():
                        counts[document.domain, layer.layer_idx, expert] += 1
                        counts["all", layer.layer_idx, expert] += 1
    for layer in loaded.anatomy.layers:
        loaded.model.get_submodule(layer.site.router)._forward_hooks.clear()
    return counts


@pytest.mark.parametrize("model_type", TYPES)
def test_counts_equal_brute_force_at_several_batch_sizes(model_type: str, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "texts.jsonl", documents_per_domain=4)
    loaded = load_model(ModelSpec(str(save_tiny(model_type, tmp_path / "model"))))
    expected = brute_force(loaded, corpus)
    assert max(k[1] for k in expected) > 0
    for batch_tokens in (CONTEXT, 100, 4096):
        folder = tmp_path / f"run-{batch_tokens}"
        options = TraceOptions(context=CONTEXT, batch_tokens=batch_tokens, pool_tokens=300)
        trace(loaded, CorpusSpec(path=str(corpus)), folder, options)
        table = open_run(folder).table("load").to_pylist()
        found = {(r["domain"], r["layer"], r["expert"]): r["count"] for r in table}
        assert {k: v for k, v in found.items() if v} == dict(expected)


def test_sums_that_must_agree_agree(tiny_run) -> None:  # type: ignore[no-untyped-def]
    for phase in tiny_run.phases:
        a = tiny_run.aggregates(phase).arrays
        tokens, top_k = int(a["cluster_tokens"].sum()), tiny_run.shape.top_k[0]
        per_layer = a["cluster_counts"].sum(0)
        assert (per_layer.sum(-1) == tokens * top_k).all()
        assert (a["first_counts"].sum((0, 2)) == tokens).all()
        diagonal = np.diagonal(a["coactivation"], axis1=1, axis2=2)
        assert (diagonal == per_layer).all()
        off = a["coactivation"].sum((1, 2)) - diagonal.sum(1)
        assert (off == tokens * top_k * (top_k - 1)).all()
        assert (a["flow"].sum((1, 2)) == tokens * top_k * top_k).all()
        assert (a["histograms"][:, 1].sum((0, 2)) == tokens * tiny_run.shape.num_experts[0]).all()
        sparse = tiny_run.aggregates(phase).sparse
        assert all(
            sparse[f"input_{n}"].counts.sum() == tokens * top_k for n in tiny_run.shape.layers
        )


def test_every_kept_token_is_in_the_shards_and_agrees_with_the_sums(tiny_run) -> None:  # type: ignore[no-untyped-def]
    from moescope.metrics.runs import _kept_tokens

    rows = _kept_tokens(tiny_run, "prefill")
    prefill = tiny_run.aggregates("prefill").arrays
    assert rows.doc.size == prefill["cluster_tokens"].sum()
    for i, layer in enumerate(tiny_run.shape.layers):
        counted = np.bincount(rows.ids[layer].reshape(-1), minlength=8)
        assert counted.tolist() == prefill["cluster_counts"][:, i].sum(0).tolist()
        assert (np.diff(rows.weights[layer], axis=1) <= 0).all()  # by descending weight


def test_decoding_rows_are_what_the_model_did_when_generating(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    """Teacher-forcing the generated text gives the same experts at the decoded positions."""

    corpus = write_corpus(tmp_path / "texts.jsonl", documents_per_domain=2, domains=2, words=8)
    folder = tmp_path / "run"
    options = TraceOptions(keep="all", generate=6, context=100)
    trace(tiny_loaded, CorpusSpec(path=str(corpus)), folder, options)
    run = open_run(folder)
    sample = run.tokens("decode")
    assert sample is not None
    assert sample.doc.size > 10
    documents = {d.doc_id: d.text for d in open_corpus(CorpusSpec(path=str(corpus)))}
    for d, name in enumerate(sample.doc_names):
        rows = np.flatnonzero(sample.doc == d)
        prompt = tiny_loaded.tokenizer(documents[name])["input_ids"]
        assert sample.pos[rows].tolist() == list(range(len(prompt), len(prompt) + rows.size))
        whole = torch.tensor([[*prompt, *sample.token_id[rows].tolist()]])
        outputs = {}
        handles = [
            tiny_loaded.model.get_submodule(m.site.router).register_forward_hook(
                lambda _m, _a, out, n=m.layer_idx, o=outputs: o.__setitem__(n, out[2])
            )
            for m in tiny_loaded.anatomy.layers
        ]
        with torch.no_grad():
            tiny_loaded.model(input_ids=whole)
        for handle in handles:
            handle.remove()
        for layer in run.shape.layers:
            forced = outputs[layer][len(prompt) :].sort(-1).values
            assert np.sort(sample.ids[layer][rows], axis=1).tolist() == forced.tolist()
    assert sample.doc.size == sum(run.state.domain_docs) * 6  # every token that was asked for


def test_the_loss_by_domain_is_the_models_own(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    trace(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), tmp_path / "r", TraceOptions(context=256))
    rows = {r["domain"]: r for r in open_run(tmp_path / "r").table("domain_loss").to_pylist()}
    total = scored = 0.0
    for document in open_corpus(CorpusSpec(path=str(tiny_corpus))):
        ids = torch.tensor([tiny_loaded.tokenizer(document.text)["input_ids"]])
        with torch.no_grad():
            logits = tiny_loaded.model(input_ids=ids).logits[0].float()
        nll = torch.nn.functional.cross_entropy(logits[1:-1], ids[0, 2:], reduction="sum")
        total, scored = total + float(nll), scored + ids.shape[1] - 2
    assert rows["all"]["scored"] == scored
    assert rows["all"]["loss"] == pytest.approx(total / scored, rel=1e-5)


@pytest.mark.parametrize(
    ("bins", "edges"),
    list(zip(aggregates._BINS_OF, (LOGIT_EDGES, PROB_EDGES, WEIGHT_EDGES), strict=True)),
    ids=HISTOGRAMS,
)
def test_bins_are_those_of_a_search_among_the_edges(bins: object, edges: np.ndarray) -> None:
    """At the edges, next to them, at zeros and infinities, and for any pattern of bits."""
    near = edges.astype(np.float32)
    nearly = [np.nextafter(near, np.float32(to)) for to in (-np.inf, np.inf)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38], np.float32)
    drawn = np.frombuffer(np.random.default_rng(0).bytes(4_000_000), np.float32)
    values = np.concatenate([near, *nearly, special, drawn[~np.isnan(drawn)]])
    expected = np.searchsorted(edges, values, side="right")
    np.testing.assert_array_equal(bins(values), expected)  # type: ignore[operator]
    assert set(expected) == set(range(64))
