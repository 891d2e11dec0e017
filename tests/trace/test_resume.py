"""A run killed at any moment and resumed equals the uninterrupted one, byte for byte."""

import json
import os
import random
import time
from pathlib import Path

import pytest
from tests.support.processes import Started, Starter
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.errors import RunError, WriteError
from moescope.metrics.runs import open_run, table_names
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.run import store as store_module
from moescope.run.options import TraceOptions
from moescope.trace import trace

SCRIPT = """
import sys
from pathlib import Path
from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, open_model
from moescope.run.options import TraceOptions
from moescope.trace import trace
model, corpus, run, engine = sys.argv[1:]
loaded = open_model(ModelSpec(model), engine=engine)
print("loaded", flush=True)
streamed = engine == "streamed"  # it goes through all layers for a pool, and does not generate
options = TraceOptions(keep="all", context=64, pool_tokens=1024 if streamed else 256,
                       batch_tokens=128, sample_tokens=500, generate=0 if streamed else 3,
                       checkpoint_seconds=0)
trace(loaded, CorpusSpec(path=corpus), Path(run), options, resume=True)
"""


def start(starter: Starter, model: Path, corpus: Path, run: Path, engine: str) -> Started:
    words = [str(model), str(corpus), str(run), engine]
    process = starter.start(words, model.parent, SCRIPT)
    assert process.prints("loaded"), process.said
    return process


def tables_of(run: Path) -> dict[str, bytes]:
    opened = open_run(run)
    opened.compute_all()
    return {n: (run / "tables" / f"{n}.parquet").read_bytes() for n in table_names()}


def progress_of(run: Path) -> dict[str, int]:
    manifest = run / "manifest.json"
    found: dict[str, int] = {}
    if manifest.exists():
        found = json.loads(manifest.read_text())["progress"]
    return found


@pytest.mark.parametrize("engine", ["resident", pytest.param("streamed", marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(
    engine: str, tmp_path: Path, starter: Starter
) -> None:
    model = save_tiny("olmoe", tmp_path / "model")
    corpus = write_corpus(tmp_path / "texts.jsonl", documents_per_domain=60, domains=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start(starter, model, corpus, whole, engine)
    began = time.monotonic()  # start-up is not counted: the kills must fall into the trace
    assert process.wait() == 0
    lasted = time.monotonic() - began
    rng, killed, seen, scratch = random.Random(7), 0, [], []
    while killed < 6:
        process = start(starter, model, corpus, broken, engine)
        if engine == "resident" and killed % 2:  # after a commit, so that something is gone on with
            before = progress_of(broken)
            while progress_of(broken) == before and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02) * lasted)
        else:
            time.sleep(rng.uniform(0.02, 0.12) * (1 + killed / 6) * lasted)
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        killed += 1
        seen.append(progress_of(broken))
        scratch.append(any((broken / "streaming").glob("hidden-*")))
    assert killed >= 5, "the run finished before it was killed five times"
    assert start(starter, model, corpus, broken, engine).wait() == 0
    reached = [p.get("tokens", 0) for p in seen]
    assert reached == sorted(reached)
    assert reached[-1] > 0 or any(scratch)  # a streamed pool is committed whole, layers before
    assert any(scratch) == (engine == "streamed")  # it was killed between two layers
    assert tables_of(whole) == tables_of(broken)
    for name in ("documents.parquet", "sample.parquet", "vocabulary.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    files = [sorted(p.name for p in run.rglob("*") if p.is_file()) for run in (whole, broken)]
    assert files[0] == files[1]  # nothing left lying about


def options(**changes: object) -> TraceOptions:
    return TraceOptions(**{"context": 64, "pool_tokens": 128, "checkpoint_seconds": 0, **changes})


class StopHere(Exception):
    pass


def interrupted(loaded: LoadedModel, corpus: Path, run: Path) -> None:
    def stop(progress) -> None:  # type: ignore[no-untyped-def]
        if progress.done > 300:
            raise StopHere

    with pytest.raises(StopHere):
        trace(loaded, CorpusSpec(path=str(corpus)), run, options(), on_progress=stop)


def test_a_run_of_another_model_is_refused(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    interrupted(tiny_loaded, tiny_corpus, tmp_path / "run")
    other = load_model(ModelSpec(str(save_tiny("olmoe", tmp_path / "other", seed=5))))
    with pytest.raises(RunError, match=r"cannot resume .*run: the model has other weights"):
        trace(other, CorpusSpec(path=str(tiny_corpus)), tmp_path / "run", options(), resume=True)


def test_a_corpus_that_changed_is_refused(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text(tiny_corpus.read_text())
    interrupted(tiny_loaded, corpus, tmp_path / "run")
    lines = corpus.read_text().splitlines()
    lines[0] = lines[0].replace('"text": "', '"text": "river ')
    corpus.write_text("\n".join(lines))
    with pytest.raises(RunError, match="not the corpus"):
        trace(tiny_loaded, CorpusSpec(path=str(corpus)), tmp_path / "run", options(), resume=True)


def test_other_options_are_refused_and_named(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    interrupted(tiny_loaded, tiny_corpus, tmp_path / "run")
    spec = CorpusSpec(path=str(tiny_corpus))
    with pytest.raises(RunError, match="option context was 64, now 32"):
        trace(tiny_loaded, spec, tmp_path / "run", options(context=32), resume=True)


def test_a_folder_with_a_run_is_not_overwritten(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    interrupted(tiny_loaded, tiny_corpus, tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run"):
        trace(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), tmp_path / "run", options())


def test_an_unfinished_run_is_not_shown_as_a_result(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    interrupted(tiny_loaded, tiny_corpus, tmp_path / "run")
    with pytest.raises(RunError, match="not finished"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_file_is_named(
    damage: str, tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trace(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), run, options(keep="all"))
    state = next((run / "aggregates").iterdir())
    content = bytearray(state.read_bytes())
    if damage == "truncate":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    else:
        state.unlink()
    with pytest.raises(RunError, match=r"altered|missing"):
        open_run(run).table("load")


def test_a_full_disk_stops_with_one_line_and_keeps_what_was_committed(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tmp_path / "run", []
    real = os.fsync

    def failing(handle: int) -> None:
        committed = list((run / "aggregates").glob("*.safetensors"))
        if not calls and committed and len(list((run / "documents").iterdir())) > 1:
            calls.append(handle)
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(store_module.os, "fsync", failing)
    spec = CorpusSpec(path=str(tiny_corpus))
    with pytest.raises(WriteError, match="disk is full"):
        trace(tiny_loaded, spec, run, options())
    assert not list(run.rglob("*.partial"))
    monkeypatch.setattr(store_module.os, "fsync", real)
    before = json.loads((run / "manifest.json").read_text())["progress"]["tokens"]
    assert before > 0
    trace(tiny_loaded, spec, run, options(), resume=True)
    trace(tiny_loaded, spec, tmp_path / "whole", options())
    assert open_run(run).table("load") == open_run(tmp_path / "whole").table("load")


def test_what_a_kill_left_behind_a_finished_run_is_removed_by_the_resume(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(run: Path) -> list[str]:
        return sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())

    trace(tiny_loaded, tiny_corpus, tmp_path / "whole", options())
    with monkeypatch.context() as patch:  # killed when all is written, before it has tidied up
        patch.setattr("moescope.run.commit._sweep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trace(tiny_loaded, tiny_corpus, tmp_path / "broken", options())
    assert files(tmp_path / "broken") != files(tmp_path / "whole")
    trace(tiny_loaded, tiny_corpus, tmp_path / "broken", options(), resume=True)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")
