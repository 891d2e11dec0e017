"""Resuming: only what was begun goes on, only what moescope wrote is touched, by one at a time."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from tests.support.processes import Starter

from moescope.cli import main
from moescope.corpus import CorpusSpec
from moescope.errors import RunError
from moescope.files import LEDGER
from moescope.metrics.runs import open_run
from moescope.models import LoadedModel
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.run.reader import Run
from moescope.trace import trace

OPTIONS = TraceOptions(
    context=40, pool_tokens=128, batch_tokens=64, sample_tokens=300, checkpoint_seconds=0
)


class Stop(Exception):
    pass


def write(path: Path, texts: list[str], ids: list[str] | None = None) -> CorpusSpec:
    rows = [
        {"text": text, "domain": ("law", "care")[i % 2], "id": ids[i] if ids else str(i)}
        for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return CorpusSpec(path=str(path))


TEXTS = [f"the plan number {i} pays for the chair and for the ramp of the house" for i in range(24)]


def interrupted(loaded: LoadedModel, spec: CorpusSpec, run: Path, updates: int = 6) -> None:
    seen: list[Progress] = []

    def stop(at: Progress) -> None:
        seen.append(at)
        if len(seen) == updates:
            raise Stop

    with pytest.raises(Stop):
        trace(loaded, spec, run, OPTIONS, on_progress=stop)
    assert Run(run, require_complete=False).manifest.state is not None


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("how", ["another text", "one more", "one less", "another order"])
def test_a_finished_run_is_not_taken_for_that_of_another_corpus(
    how: str, tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    run = trace(tiny_loaded, write(tmp_path / "a.jsonl", TEXTS), tmp_path / "run", OPTIONS)
    texts = {
        "another text": ["the plan pays for nothing", *TEXTS[1:]],
        "one more": [*TEXTS, "and one more about the plan"],
        "one less": TEXTS[:-1],
        "another order": [TEXTS[2], TEXTS[1], TEXTS[0], *TEXTS[3:]],
    }[how]
    before = everything(run)
    with pytest.raises(RunError, match=r"is not the corpus|more documents|has 23 documents"):
        trace(tiny_loaded, write(tmp_path / "b.jsonl", texts), run, OPTIONS, resume=True)
    assert everything(run) == before
    moved = write(tmp_path / "moved.jsonl", TEXTS)  # the same text at another place
    assert trace(tiny_loaded, moved, run, OPTIONS, resume=True) == run
    assert everything(run) == before


@pytest.mark.parametrize("killed", [True, False])
def test_the_settings_that_a_run_was_begun_with_stay(
    killed: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS)
    words = ["trace", str(tiny_folder), spec.path, "-o", str(tmp_path / "run"), "--context", "40"]
    words += ["--pool-tokens", "128"]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["moescope", *words, *more])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        return int(stopped.value.code or 0)

    with monkeypatch.context() as patch:
        if killed:
            patch.setattr("moescope.run.commit.finish", lambda *_, **__: 1 / 0)
        assert run("--checkpoint-seconds", "0") == int(killed)
    assert run("--resume", "--checkpoint-seconds", "7") == 0
    assert "checkpoint_seconds: 0.0" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_damaged_state_is_one_line_when_a_run_goes_on(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS)
    interrupted(tiny_loaded, spec, tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    state = tmp_path / "run" / manifest["state"]["file"]
    arrays = load_file(state)
    del arrays["domain_docs"]
    save_file(arrays, state)
    manifest["state"]["sha256"] = hashlib.sha256(state.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))
    before = everything(tmp_path / "run")
    with pytest.raises(RunError, match="is damaged or was written by something else"):
        trace(tiny_loaded, spec, tmp_path / "run", OPTIONS, resume=True)
    assert everything(tmp_path / "run") == before


@pytest.mark.parametrize("which", ["domains", "ids"])
def test_names_come_back_from_a_resume_as_they_were(
    which: str, tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    odd = ["a\nb", "\n", " x\ty ", "a\r\nb", "\x00", "ünï", "\u2028", "[", "{}", "", "a\n\nb"]
    ids = [f"{odd[i % len(odd)]}{i}" for i in range(len(TEXTS))]
    spec = write(tmp_path / "a.jsonl", TEXTS, ids if which == "ids" else None)
    if which == "domains":
        rows = [json.loads(line) for line in Path(spec.path).read_text().splitlines()]
        for i, row in enumerate(rows):
            row["domain"] = f"{['[', 'a b', 'ünï'][i % 3]}{i % 3}"
        Path(spec.path).write_text("\n".join(map(json.dumps, rows)))
    interrupted(tiny_loaded, spec, tmp_path / "run")
    trace(tiny_loaded, spec, tmp_path / "run", OPTIONS, resume=True)
    trace(tiny_loaded, spec, tmp_path / "whole", OPTIONS)
    resumed, whole = open_run(tmp_path / "run"), open_run(tmp_path / "whole")
    assert resumed.domains == whole.domains
    for file in ("documents", "sample", "state", "vocabulary"):  # by checksum
        assert getattr(resumed.manifest, file) == getattr(whole.manifest, file)
    if which == "ids":
        assert set(resumed.documents["doc"].to_pylist()) == set(ids)
        assert set(resumed.sample_table["doc"].to_pylist()) <= set(ids)


@pytest.mark.parametrize("name", ["../victim/thesis.parquet", "/victim", "shards/../../victim"])
def test_a_received_run_reaches_nothing_outside_of_it(
    name: str, tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS)
    interrupted(tiny_loaded, spec, tmp_path / "run")
    victim = tmp_path / "victim" / "thesis.parquet"
    victim.parent.mkdir()
    victim.write_text("years of work")
    for section in ("documents", "shards", "state"):
        path = tmp_path / "run" / "manifest.json"
        kept = path.read_text()
        manifest = json.loads(kept)
        if section == "state":
            manifest["state"]["file"] = name
        else:
            manifest[section].append({"file": name, "sha256": "0" * 64})
        path.write_text(json.dumps(manifest))
        with pytest.raises(RunError, match="is not the name of a file inside the folder"):
            trace(tiny_loaded, spec, tmp_path / "run", OPTIONS, resume=True)
        path.write_text(kept)
    assert victim.read_text() == "years of work"


def test_links_in_a_received_run_are_not_followed_when_it_goes_on(
    tiny_loaded: LoadedModel, tmp_path: Path
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS)
    interrupted(tiny_loaded, spec, tmp_path / "run")
    (tmp_path / "victim").mkdir()
    state = next((tmp_path / "run" / "aggregates").iterdir())
    state.rename(tmp_path / "victim" / state.name)
    (tmp_path / "run" / "aggregates").rmdir()
    (tmp_path / "run" / "aggregates").symlink_to(tmp_path / "victim")
    before = everything(tmp_path / "victim")
    with pytest.raises(RunError, match="is a link"):
        trace(tiny_loaded, spec, tmp_path / "run", OPTIONS, resume=True)
    assert everything(tmp_path / "victim") == before


def test_a_users_files_in_a_run_outlive_its_end(tiny_loaded: LoadedModel, tmp_path: Path) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS)
    interrupted(tiny_loaded, spec, tmp_path / "run")
    mine = ["documents/notes.txt", "shards/99999.parquet", "aggregates/state-9.safetensors", "x/y"]
    for name in mine:
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    trace(tiny_loaded, spec, tmp_path / "run", OPTIONS, resume=True)
    assert [(tmp_path / "run" / name).read_text() for name in mine] == ["mine"] * len(mine)
    assert not set(mine) & set((tmp_path / "run" / LEDGER).read_text().split())
    done = subprocess.run(["sha256sum", "--quiet", "-c", LEDGER], cwd=tmp_path / "run", check=False)
    assert done.returncode == 0


def test_of_two_processes_on_one_folder_one_writes_and_the_other_says_who(
    tiny_folder: Path, tmp_path: Path, starter: Starter
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS * 8)
    words = [
        "trace", str(tiny_folder), spec.path, "-o", str(tmp_path / "run"),
        "--context", "40", "--checkpoint-seconds", "0", "--pool-tokens", "256",
    ]  # fmt: skip
    both = [starter.start(words, tmp_path) for _ in range(2)]
    codes = [process.wait() for process in both]
    said = [process.said for process in both]
    assert 0 in codes
    [other] = [i for i in (0, 1) if codes[i] != 0]
    # it came while the first one wrote, or after it had finished
    assert codes[other] == (1 if "being written by process" in said[other] else 2)
    assert f"process {both[1 - other].pid} on " in said[other] or "holds a run" in said[other]
    assert len(said[other].splitlines()) == 1
    assert starter.start([*words, "--resume"], tmp_path).wait() == 0


def test_a_killed_process_leaves_no_lock_that_holds(
    tiny_folder: Path, tmp_path: Path, starter: Starter
) -> None:
    spec = write(tmp_path / "a.jsonl", TEXTS * 20)  # it commits far longer than a look takes
    words = [
        "trace", str(tiny_folder), spec.path, "-o", str(tmp_path / "run"),
        "--context", "40", "--checkpoint-seconds", "0", "--pool-tokens", "256",
    ]  # fmt: skip
    process = starter.start(words, tmp_path)
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / "run" / "manifest.json").exists():
            assert process.poll() is None, "it ended before it wrote anything"
            assert time.monotonic() < deadline, "it wrote nothing for two minutes"
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert (tmp_path / "run" / ".moescope.lock").exists()
    again = starter.start([*words, "--resume"], tmp_path)
    assert again.wait() == 0, again.said
    assert not (tmp_path / "run" / ".moescope.lock").exists()
