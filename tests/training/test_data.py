"""Token streams of a training: a very long document is encoded in pieces, with the same tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.corpus.helpers import byte_level

from moescope.corpus import CorpusSpec, open_corpus
from moescope.corpus import pieces as pieces_module
from moescope.training import data


def test_streams_do_not_depend_on_how_a_document_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, sides = byte_level("<s> $A"), []
    texts = ["the quick brown fox " * n + "</s> jumps.\n\n" for n in (1, 40, 2, 300, 3)]
    with (tmp_path / "t.jsonl").open("w", encoding="utf-8") as file:
        for n, text in enumerate(texts):
            file.write(json.dumps({"domain": f"d{n % 2}", "text": text}) + "\n")
    corpus = open_corpus(CorpusSpec(path=str(tmp_path / "t.jsonl")))
    for name, whole in (("one", pieces_module.WHOLE), ("other", 400)):
        for module in (pieces_module, data):
            monkeypatch.setattr(module, "WHOLE", whole)
        monkeypatch.setattr(pieces_module, "PIECE", min(whole, 100))
        (tmp_path / name).mkdir()
        files = data._encode(corpus, tokenizer, tmp_path / name, "train")
        sides.append({d: np.fromfile(tmp_path / name / f, np.uint16) for d, f in files.items()})
    assert sides[0].keys() == sides[1].keys() == {"d0", "d1"}
    for domain, stream in sides[0].items():
        np.testing.assert_array_equal(stream, sides[1][domain])


def test_the_text_for_a_tokenizer_is_read_up_to_its_budget_within_a_long_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces_module, "WHOLE", 400)
    monkeypatch.setattr(pieces_module, "PIECE", 100)
    text = "the quick brown fox " * 100
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"domain": "d", "text": text}) + "\n", encoding="utf-8"
    )
    corpus = open_corpus(CorpusSpec(path=str(tmp_path / "t.jsonl")))
    assert "".join(data._balanced(corpus, 10_000)) == text
    assert 250 <= len("".join(data._balanced(corpus, 250))) <= 350
