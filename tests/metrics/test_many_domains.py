"""Thousands of domains: the same values, in time and memory that follow the text."""

import json

import numpy as np
import pytest

from moescope.cli.main import app
from moescope.corpus import CorpusSpec
from moescope.metrics import expert_tables, specialization, statistics
from moescope.metrics.runs import AnalyzedRun, note_of, open_run
from moescope.metrics.specialization import (
    jensen_shannon,
    jensen_shannon_pairs,
    token_baseline,
)
from moescope.metrics.statistics import MANY_DOMAINS, permutation_test
from moescope.models import LoadedModel
from moescope.run.options import TraceOptions
from moescope.trace import trace


def test_distances_of_all_pairs_are_those_of_each_pair_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(specialization, "_PAIR_CELLS", 1000)  # several chunks
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 4.0, (30, 19))) + np.eye(30, 19, dtype=np.int64)
    counts[3], counts[4] = 7, 7  # even: no answer
    loads = counts / counts.sum(1, keepdims=True)
    found = [np.concatenate(column) for column in zip(*jensen_shannon_pairs(loads), strict=True)]
    expected = [
        (i, j, jensen_shannon(loads[i], loads[j])) for i in range(30) for j in range(i + 1, 30)
    ]
    np.testing.assert_array_equal(np.stack(found, 1), np.asarray(expected))
    assert np.isnan(found[2]).sum() == 1


def shaped(domains: int, documents: int, cells: int = 12) -> tuple:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 40, domains * documents)
    rates = rng.dirichlet(np.full(cells, 2.0), tokens.size)
    counts = np.stack([rng.multinomial(2 * t, r) for t, r in zip(tokens, rates, strict=True)])
    return counts, tokens, np.arange(tokens.size) % domains


def test_permutations_counted_for_all_domains_at_once_give_the_same_p(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, tokens, domain = shaped(6, 7)
    tokens[domain == 2], counts[domain == 2] = 0, 0  # a domain without a document
    made = []
    for many in (MANY_DOMAINS, 1):
        monkeypatch.setattr(statistics, "MANY_DOMAINS", many)
        made.append(permutation_test(counts, tokens, domain, 6, np.random.default_rng(0), 199))
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.isfinite(one).any()


@pytest.fixture(scope="module")
def many(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """A run of more domains than are drawn for one by one."""
    folder = tmp_path_factory.mktemp("many")
    words = [
        "a",
        "chair",
        "is",
        "bought",
        "where",
        "the",
        "plan",
        "says",
        "so",
        "and",
        "paid",
        "by",
        "whom",
        "it",
        "names",
    ]
    with (folder / "text.jsonl").open("w", encoding="utf-8") as file:
        for n in range(2 * MANY_DOMAINS):
            text = " ".join(words[n % 9 : n % 9 + 2 + n % 5])
            file.write(json.dumps({"domain": f"d{n % (MANY_DOMAINS + 6)}", "text": text}) + "\n")
    spec = CorpusSpec(path=str(folder / "text.jsonl"))
    return open_run(trace(tiny_loaded, spec, folder / "run", TraceOptions(context=16)))


def test_every_table_can_be_made(many: AnalyzedRun) -> None:
    names = many.compute_all()
    assert len(many.domains) > MANY_DOMAINS
    assert len(names) > 15


def test_what_the_words_predict_is_that_of_the_dense_table(many: AnalyzedRun) -> None:
    """The table holds one domain at a time; domains × ids × experts were 10 GB at 5,000 domains."""
    from moescope.metrics.view import PhaseView

    view = PhaseView(many, "prefill")
    layer = view.layers[1]
    total_XE, parts = view.token_counts_by_domain(layer)
    dense = np.zeros((len(view.domains), *total_XE.shape), np.int64)
    for d, (rows, own) in enumerate(parts):
        dense[d, rows] = own
    np.testing.assert_array_equal(dense.sum(0), total_XE)
    expected = token_baseline(dense, layer.top_k)
    found = many.table("domain_specialization").to_pandas()
    found = found[found.layer == layer.layer_idx]
    np.testing.assert_array_equal(found.by_token, expected.by_token.reshape(-1))
    np.testing.assert_array_equal(found.beyond_token, expected.beyond_token.reshape(-1))


def test_the_pairs_of_very_many_domains_are_those_with_most_tokens(
    many: AnalyzedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moescope.metrics.view import PhaseView

    view = PhaseView(many, "prefill")
    whole = expert_tables.domain_distance.rows(view).columns
    domains = len(view.domains)
    assert len(whole["jsd"]) == len(view.layers) * domains * (domains - 1) // 2
    monkeypatch.setattr(expert_tables, "MAX_PAIR_ROWS", len(view.layers) * 10)  # of 5 domains
    some = expert_tables.domain_distance.rows(view).columns
    kept = {*some["domain_a"], *some["domain_b"]}
    assert len(some["jsd"]) == len(view.layers) * 10
    least = min(view.domain_tokens[view.places[name]] for name in kept)
    assert (np.sort(view.domain_tokens)[-5:] >= least).all()
    everything = dict(
        zip(zip(*(whole[k] for k in ("layer", "domain_a", "domain_b")), strict=True), whole["jsd"],
            strict=True)
    )  # fmt: skip
    for key, jsd in zip(
        zip(*(some[k] for k in ("layer", "domain_a", "domain_b")), strict=True), some["jsd"],
        strict=True,
    ):  # fmt: skip
        assert everything[key] == jsd or np.isnan(jsd)


def test_a_table_says_how_many_domains_it_compares(
    many: AnalyzedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Domains were left out, and only the description of the table said so."""
    command = ["table", str(many.path), "domain_distance", "--format", "csv", "--layer", "1"]
    file = many.path / "tables" / "domain_distance.parquet"
    file.unlink(missing_ok=True)
    assert note_of(many.table("domain_distance")) == ""
    app(command, standalone_mode=False)
    assert capsys.readouterr().err == ""
    file.unlink()
    monkeypatch.setattr(expert_tables, "MAX_PAIR_ROWS", len(many.shape.layers) * 10)
    note = f"prefill: 5 of {len(many.domains)} domains are compared, those with most tokens"
    for _ in range(2):  # computed, then kept
        assert note_of(many.table("domain_distance")) == note
    app(command, standalone_mode=False)
    shown = capsys.readouterr()
    assert " ".join(shown.err.split()) == f"note: {note}"
    assert len(shown.out.splitlines()) == 1 + 10
    file.unlink()
