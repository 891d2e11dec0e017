"""Domains of unlike length: the report says so, and --match-length compares documents cut alike."""

import json
from pathlib import Path

import numpy as np
import pytest

from moescope.corpus import CorpusSpec
from moescope.errors import CorpusError
from moescope.measure.windows import run_windows
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel
from moescope.report.data import report_data
from moescope.run.options import TraceOptions
from moescope.trace import trace

LENGTHS = {"short": [4, 12, 13, 14, 12, 15], "long": [40, 60, 55, 70, 44, 9]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    path = tmp_path_factory.mktemp("lengths") / "texts.jsonl"
    words = [*"abcdefgh", "plan", "support", "water", "tea"]
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{domain}{n}", "domain": domain, "text": " ".join(rng.choice(words, size))}
        for domain, sizes in LENGTHS.items()
        for n, size in enumerate(sizes)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CorpusSpec(path=str(path))


def run(loaded: LoadedModel, texts: CorpusSpec, out: Path, **more: int) -> AnalyzedRun:
    return open_run(trace(loaded, texts, out, TraceOptions(**more)))  # type: ignore[arg-type]


def alerts(made: AnalyzedRun) -> str:
    return " ".join(a["text"] for a in report_data(made)["alerts"])


@pytest.mark.parametrize("context", [8, 64])
def test_every_document_gives_its_first_tokens_or_none(
    tiny_loaded: LoadedModel, texts: CorpusSpec, tmp_path: Path, context: int
) -> None:
    whole = run(tiny_loaded, texts, tmp_path / "whole", context=context, sample_tokens=9999)
    cut = run(
        tiny_loaded, texts, tmp_path / "cut", context=context, match_length=10, sample_tokens=9999
    )
    before = dict(zip(*(whole.documents[c].to_pylist() for c in ("doc", "tokens")), strict=True))
    kept = {doc for doc, tokens in before.items() if tokens >= 10}
    after = dict(zip(*(cut.documents[c].to_pylist() for c in ("doc", "tokens")), strict=True))
    assert {doc for doc, tokens in after.items() if tokens} == kept
    assert {tokens for tokens in after.values() if tokens} == {10}
    assert cut.manifest.progress["left_out"]["documents shorter than --match-length"] == (
        len(before) - len(kept)
    )
    ids = [  # documents are numbered as in the corpus
        {
            (rows.doc_names[d], p): t
            for d, p, t in zip(rows.doc, rows.pos, rows.token_id, strict=True)
        }
        for rows in (whole.tokens(), cut.tokens())
        if rows is not None
    ]
    assert ids[1].items() <= ids[0].items()
    windows = run_windows(tiny_loaded, cut)
    assert sum(w.num_tokens for w in windows) == 10 * len(kept)


def test_unlike_lengths_are_said_and_like_ones_are_not(
    tiny_loaded: LoadedModel, texts: CorpusSpec, tmp_path: Path
) -> None:
    assert "Documents differ in length" in alerts(run(tiny_loaded, texts, tmp_path / "a"))
    cut = run(tiny_loaded, texts, tmp_path / "b", match_length=8)
    assert "Documents differ in length" not in alerts(cut)


def test_a_run_without_it_names_no_such_option(
    tiny_loaded: LoadedModel, texts: CorpusSpec, tmp_path: Path
) -> None:
    """So that runs of versions without the option go on."""
    made = run(tiny_loaded, texts, tmp_path / "run")
    assert "match_length" not in made.manifest.options


def test_what_is_left_of_each_domain_is_said(
    tiny_loaded: LoadedModel, texts: CorpusSpec, tmp_path: Path
) -> None:
    table = run(tiny_loaded, texts, tmp_path / "whole").documents
    tokens = dict(zip(table["doc"].to_pylist(), table["tokens"].to_pylist(), strict=True))
    most = max(t for doc, t in tokens.items() if "short" in doc)
    left = sum(t > most for t in tokens.values())
    said = alerts(run(tiny_loaded, texts, tmp_path / "run", match_length=most + 1))
    assert f"{12 - left} shorter ones are left out. Kept are {left} of long." in said
    assert "Nothing is left of short" in said


def test_a_length_that_no_document_has_leaves_nothing_behind(
    tiny_loaded: LoadedModel, texts: CorpusSpec, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="no document has the 9000 tokens of `match_length`"):
        run(tiny_loaded, texts, tmp_path / "run", match_length=9000)
    assert not (tmp_path / "run").exists()
    assert run(tiny_loaded, texts, tmp_path / "run", match_length=8).documents.num_rows
