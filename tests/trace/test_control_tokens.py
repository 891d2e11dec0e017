"""Control tokens count nowhere: not in what is read, nor in what is written, traced or imported."""

from pathlib import Path

import pytest
import torch
from tests.support.saved import tiny_tokenizer
from tests.support.served import UNKNOWN, Case, case_of, imported_lines, plain, same
from tests.support.tiny import tiny_model
from tokenizers import AddedToken

from moescope.corpus import CorpusSpec, control_ids
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.run.options import TraceOptions
from moescope.trace import trace

MARK = "<|channel|>"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model that likes to write a control token which its tokenizer holds but does not name."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer, model = tiny_tokenizer(extra=(MARK,)), tiny_model("olmoe")
    mark = tokenizer.convert_tokens_to_ids(MARK)
    assert mark not in tokenizer.all_special_ids
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[mark] *= 3.0
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return case_of(folder / "model", folder)


def test_the_tokenizers_mark_decides_and_unk_is_text() -> None:
    tokenizer = tiny_tokenizer(extra=(MARK,))
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<think>", special=False)])
    names = {tokenizer.convert_ids_to_tokens(i) for i in control_ids(tokenizer)}
    assert names == {"<pad>", "<s>", "</s>", MARK}


def test_a_trace_and_an_import_of_the_same_requests_agree(talker: Case, tmp_path: Path) -> None:
    mark = talker.loaded.tokenizer.convert_tokens_to_ids(MARK)
    written = sum(r.output[:-1].count(mark) for r in talker.requests)
    assert written > 3
    imported = imported_lines(
        "vllm", [plain(r) for r in talker.requests], talker, tmp_path, ordered=True
    )
    for name in ("load", "repetition", "vocabulary_specialization"):
        same(talker.traced, imported, name, {"gate_mass"} | UNKNOWN[name] - {"first_share"}
             if name == "load" else ())  # fmt: skip
    left_out = talker.traced.manifest.progress["left_out"]
    assert left_out["control tokens that the model wrote"] == written
    assert tokens_of(talker.traced, "decode") == tokens_of(imported, "decode")
    assert sum(talker.traced.documents["left_out"].to_pylist()) == sum(left_out.values())


def test_they_are_no_neighbours_and_in_no_sample(talker: Case) -> None:
    rows = talker.traced.tokens("decode")
    assert rows is not None
    mark = talker.loaded.tokenizer.convert_tokens_to_ids(MARK)
    assert mark not in rows.token_id
    assert len(rows.token_id) == tokens_of(talker.traced, "decode")


def test_what_counts_the_template_counts_them_too(talker: Case, tmp_path: Path) -> None:
    corpus = CorpusSpec(path=str(talker.folder.parent / "texts.jsonl"))
    options = TraceOptions(generate=4, context=250, count_template=True)
    run = open_run(trace(talker.loaded, corpus, tmp_path / "run", options))
    assert tokens_of(run, "decode") == 4 * len(talker.requests)


def tokens_of(run: AnalyzedRun, phase: str) -> int:
    return run.manifest.coverage["tokens_by_phase"].get(phase, 0)
