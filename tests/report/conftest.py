"""Runs that a report must cope with, each traced once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.saved import WORDS, write_corpus

from moescope.corpus import CorpusSpec
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel
from moescope.run.options import TraceOptions
from moescope.trace import trace

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\">\u2028\u2029<!--&amp;'"

MakeRun = Callable[..., AnalyzedRun]


@pytest.fixture(scope="session")
def make_run(tiny_loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    def make(corpus: Path, **options: object) -> AnalyzedRun:
        folder = tmp_path_factory.mktemp("report") / "run"
        chosen = TraceOptions(context=40, checkpoint_seconds=0, **options)  # type: ignore[arg-type]
        trace(tiny_loaded, CorpusSpec(path=str(corpus)), folder, chosen)
        return open_run(folder)

    return make


@pytest.fixture(scope="session")
def hostile_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """Domains, documents and tokens whose names try to break out of the page."""
    path = tmp_path_factory.mktemp("corpus") / "hostile.jsonl"
    lines = [
        {"id": f"{HOSTILE}{d}-{n}", "domain": f"{HOSTILE}{d}", "text": " ".join(WORDS[n : n + 20])}
        for d in range(2)
        for n in range(6)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    run = make_run(path)
    run.__dict__["vocabulary"] = {token: f"{HOSTILE}{token}" for token in range(5000)}
    return run


@pytest.fixture(scope="session")
def one_domain_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "one.jsonl", domains=1)
    return make_run(corpus)


@pytest.fixture(scope="session")
def unlabelled_run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """Plain text without any domain."""
    path = tmp_path_factory.mktemp("corpus") / "plain.txt"
    path.write_text("\n\n".join(" ".join(WORDS[n : n + 15]) for n in range(8)), encoding="utf-8")
    return make_run(path)


@pytest.fixture(scope="session")
def bare_run(make_run: MakeRun, tiny_corpus: Path) -> AnalyzedRun:
    """Sums only, and nothing predicted."""
    return make_run(tiny_corpus, keep="aggregates", predictions=False)
