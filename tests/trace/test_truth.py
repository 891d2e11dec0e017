"""Whole runs of models whose routing is known: nothing to find, and something planted."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.metrics.runs import open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.run.options import TraceOptions
from moescope.trace import trace

SEEDS = 20


def test_where_domains_are_only_labels_few_cells_pass(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    """Same odds of words in every domain: every discovery is false. Stated: 5 % of them."""
    shares, runs_with_any = [], 0
    for seed in range(SEEDS):
        corpus = tmp_path / f"{seed}.jsonl"
        write_corpus(corpus, documents_per_domain=18, domains=1, seed=seed)
        lines = corpus.read_text().splitlines()
        labels = np.random.default_rng(seed).permutation(np.arange(len(lines)) % 3)
        relabelled = [
            line.replace('"domain0"', f'"domain{label}"')
            for line, label in zip(lines, labels, strict=True)
        ]
        corpus.write_text("\n".join(relabelled))
        options = TraceOptions(context=128, seed=seed, keep="aggregates", predictions=False)
        trace(tiny_loaded, CorpusSpec(path=str(corpus)), tmp_path / f"run{seed}", options)
        q = np.asarray(open_run(tmp_path / f"run{seed}").table("domain_specialization")["q"])
        assert q.size == 3 * 4 * 8
        shares.append((q < 0.05).mean())
        runs_with_any += bool((q < 0.05).any())
    assert np.mean(shares) <= 0.05
    assert runs_with_any <= 4  # 1 expected of 20; P(≥ 5 | 5 %) is below 0.3 %


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose layer 0 sends "tea", and nothing else, to expert 5; in domain1 only."""
    folder = save_tiny("olmoe", tmp_path / "model")
    loaded = load_model(ModelSpec(str(folder)))
    model = loaded.model
    (word,) = loaded.tokenizer("tea")["input_ids"][1:]
    tea, rest = torch.linalg.qr(torch.randn(32, 2, generator=torch.manual_seed(3)))[0].T
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        router = model.model.layers[0].mlp.gate.weight
        for matrix in (embedding, router):
            for direction in (tea, rest):
                matrix -= (matrix @ direction)[:, None] * direction
        embedding += 4.0 * rest
        embedding[word] += 4.0 * (tea - rest)
        router[5] = 6.0 * (tea - rest)
        model.model.layers[0].self_attn.o_proj.weight.zero_()  # the router reads the embedding
    model.save_pretrained(folder)
    corpus = write_corpus(tmp_path / "texts.jsonl", documents_per_domain=20, domains=3)
    lines = [
        line.replace('"text": "', '"text": "tea tea tea tea tea ')
        if '"domain1"' in line
        else re.sub(r"\btea\b", "old", line)
        for line in corpus.read_text().splitlines()
    ]
    corpus.write_text("\n".join(lines))
    return folder, corpus


def test_a_planted_domain_expert_is_found(planted: tuple[Path, Path], tmp_path: Path) -> None:
    model, corpus = planted
    loaded = load_model(ModelSpec(str(model)))
    trace(loaded, CorpusSpec(path=str(corpus)), tmp_path / "run", TraceOptions(context=128))
    table = open_run(tmp_path / "run").table("domain_specialization").to_pandas()
    cell = table[(table.layer == 0) & (table.expert == 5)].set_index("domain")
    found = cell.loc["domain1"]
    assert found.q < 0.05
    assert found.ci_low > 10 * cell.loc["domain0"].value
    strongest = table[table.layer == 0].sort_values("lift_over_others").iloc[-1]
    assert (strongest.expert, strongest.domain) == (5, "domain1")
    # the baseline says why: it is a word that no other domain has, not a use of shared words
    assert found.shared_tokens < 0.97
    assert abs(found.beyond_token) < 0.02
