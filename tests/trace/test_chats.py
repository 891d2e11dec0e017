"""Runs of chats: what is context is read and not counted, and the manifest holds the choice."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.support.saved import tiny_tokenizer
from tests.support.served import routed
from tests.support.tiny import tiny_model

from moescope.cli import main
from moescope.corpus import CorpusSpec, MarksWarning
from moescope.errors import RunError
from moescope.measure.windows import choose_windows, run_windows
from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.progress import Progress
from moescope.report.data import report_data
from moescope.run.manifest import read_manifest
from moescope.run.merge import merge_runs
from moescope.run.options import TraceOptions
from moescope.trace import trace

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    tokenizer = tiny_tokenizer(extra=("<|im_start|>", "<|im_end|>"))
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    tiny_model("olmoe").save_pretrained(folder / "model")
    chats, texts = [], []
    for n in range(8):
        turns = [
            {"role": "user", "content": " ".join(["the plan covers support"] * (n + 1))},
            {"role": "assistant", "content": " ".join(["water boils for tea near a river"] * 3)},
        ]
        named = {"id": f"c{n}", "domain": f"d{n % 2}"}
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
        chats.append({**named, "messages": turns})
        texts.append({**named, "text": rendered if n else "the plan covers support"})
    for name, rows in (("chats", chats), ("texts", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture(scope="module")
def loaded(place: Path) -> LoadedModel:
    return load_model(ModelSpec(str(place / "model")))


def chats(place: Path, turns: str | None, **more: object) -> CorpusSpec:
    path = str(place / "chats.jsonl")
    return CorpusSpec(path=path, text_field="messages", turns=turns, **more)  # type: ignore[arg-type]


def texts(place: Path, **more: object) -> CorpusSpec:
    return CorpusSpec(path=str(place / "texts.jsonl"), **more)  # type: ignore[arg-type]


def traced(loaded: LoadedModel, spec: CorpusSpec, folder: Path, **options: object) -> AnalyzedRun:
    options = {"keep": "all", "context": 250, **options}
    return open_run(trace(loaded, spec, folder, TraceOptions(**options)))  # type: ignore[arg-type]


def test_the_users_words_are_context_of_the_answers(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    """Counted tokens are routed as in the whole chat, run by itself."""
    run = traced(loaded, chats(place, "assistant"), tmp_path / "run")
    rows = run.tokens()
    assert rows is not None
    tokenizer = loaded.tokenizer
    for line in (place / "chats.jsonl").read_text().splitlines():
        record = json.loads(line)
        whole = tokenizer.apply_chat_template(record["messages"], tokenize=False)
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        expected = routed(loaded, ids)
        mine = rows.doc == rows.doc_names.index(record["id"])
        text = tokenizer.decode(rows.token_id[mine])
        assert text.strip() == record["messages"][1]["content"]
        for layer in run.shape.layers:
            at = expected[rows.pos[mine], layer]
            assert np.sort(rows.ids[layer][mine]).tolist() == np.sort(at).tolist()


def test_the_choice_is_recorded_and_another_is_not_resumed(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    run = traced(loaded, chats(place, "assistant"), tmp_path / "run")
    assert run.manifest.corpus["turns"] == "assistant"
    with pytest.raises(RunError, match="corpus turns was 'assistant', now 'all'"):
        trace(loaded, chats(place, "all"), tmp_path / "run",
              TraceOptions(keep="all", context=250), resume=True)  # fmt: skip
    every = traced(loaded, chats(place, "all"), tmp_path / "all")
    assert every.manifest.progress["tokens"] > run.manifest.progress["tokens"]
    assert {w.num_tokens for w in run_windows(loaded, run)} == {
        w.num_tokens for w in choose_windows(loaded, chats(place, "assistant"))
    }


def test_runs_of_other_choices_are_not_merged(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    a = traced(loaded, chats(place, "assistant", shard="1/2"), tmp_path / "a")
    b = traced(loaded, chats(place, "all", shard="2/2"), tmp_path / "b")
    with pytest.raises(RunError, match=r"different corpus .turns: 'assistant' against 'all'"):
        merge_runs([a.path, b.path], tmp_path / "merged")
    c = traced(loaded, texts(place, shard="1/2"), tmp_path / "c", chat_text=True)
    d = traced(loaded, texts(place, shard="2/2"), tmp_path / "d")
    with pytest.raises(RunError, match=r"different options .chat_text: True against None"):
        merge_runs([c.path, d.path], tmp_path / "merged")


def test_rendered_chats_are_noticed_counted_and_said(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    run = traced(loaded, texts(place), tmp_path / "run")
    assert "chat_text" not in run.manifest.options  # off: as in runs of versions without it
    assert run.manifest.progress["spelt_out"] == {"<|im_start|>": 7, "<|im_end|>": 7}
    said = [a["text"] for a in report_data(run)["alerts"] if a["level"] == "warn"]
    assert any("<|im_end|> in 7 documents" in text and "`chat_text`" in text for text in said)


def test_read_as_chats_they_have_their_control_tokens_and_nothing_is_said(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    run = traced(loaded, texts(place), tmp_path / "spelt")
    read = traced(loaded, texts(place), tmp_path / "read", chat_text=True)
    assert read.manifest.options["chat_text"] is True
    assert "spelt_out" not in read.manifest.progress
    assert read.manifest.progress["tokens"] < run.manifest.progress["tokens"]
    assert not any("chat template" in a["text"] for a in report_data(read)["alerts"])
    with pytest.raises(RunError, match="option chat_text was True, now None"):
        trace(loaded, texts(place), tmp_path / "read",
              TraceOptions(keep="all", context=250), resume=True)  # fmt: skip


def test_an_interrupted_run_keeps_the_count(
    place: Path, loaded: LoadedModel, tmp_path: Path
) -> None:
    options = TraceOptions(context=250, pool_tokens=60, checkpoint_seconds=0)

    def stop(progress: Progress) -> None:
        if progress.done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(loaded, texts(place), tmp_path / "run", options, on_progress=stop)
    found = read_manifest(tmp_path / "run").progress["spelt_out"]
    assert 0 < found["<|im_end|>"] < 7
    trace(loaded, texts(place), tmp_path / "run", options, resume=True)
    whole = read_manifest(tmp_path / "run").progress["spelt_out"]
    assert whole == {"<|im_start|>": 7, "<|im_end|>": 7}


def test_merged_shards_keep_the_count(place: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    parts = [traced(loaded, texts(place, shard=f"{n}/2"), tmp_path / f"{n}").path for n in (1, 2)]
    merged = open_run(merge_runs(parts, tmp_path / "merged"))
    assert merged.manifest.progress["spelt_out"] == {"<|im_start|>": 7, "<|im_end|>": 7}


def test_measures_without_a_run_warn_of_their_text(place: Path, loaded: LoadedModel) -> None:
    with pytest.warns(MarksWarning, match="<|im_end|> in 7 documents"):
        choose_windows(loaded, texts(place))


@pytest.mark.filterwarnings("default::moescope.corpus.MarksWarning")
@pytest.mark.parametrize("verb", ["trace", "similarity"])
def test_the_command_line_says_it_in_a_line(
    verb: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    words = [verb, place / "model", place / "texts.jsonl", "-o", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        main.run()
    assert not stopped.value.code
    lines = [x for x in capsys.readouterr().err.splitlines() if "control tokens" in x]
    assert len(lines) == 1
    assert lines[0].startswith("note: The text holds control tokens")
    assert "--chat-text" in lines[0]
