"""A corpus spread over workers: shards, locks, resuming, refusals, and flags."""

import contextlib
import dataclasses
import errno
import fcntl
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.launched import OPTIONS, Place, assert_is_the_run, make_place
from tests.support.same_run import assert_same_sums

from moescope.cli import analyze_cmd, main
from moescope.corpus import CorpusSpec, Shard
from moescope.errors import (
    BadInputError,
    BusyError,
    LaunchError,
    MissingExtraError,
    RunError,
    WriteError,
)
from moescope.files import LOCK, claim
from moescope.jobs import report_on
from moescope.launch import LaunchOptions, LaunchProgress, launch
from moescope.launch import local as local_module
from moescope.launch import run as run_module
from moescope.launch import worker as worker_module
from moescope.launch.job import Job, Parts
from moescope.launch.local import _environment, _share_memory, run_local
from moescope.launch.watch import Watch
from moescope.launch.worker import attempt
from moescope.metrics.runs import open_run
from moescope.models import load_model
from moescope.run.manifest import read_manifest
from moescope.run.merge import merge_runs
from moescope.run.options import TraceOptions
from moescope.trace import trace

TWO = LaunchOptions(workers=2, shards=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("launch"), documents_per_domain=6)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are this process: quick, for what is not about processes."""

    def serve(job: Job, watch: Watch, _workers: int) -> None:
        for shard in watch.todo:
            watch.finish(shard, attempt(job, shard, watch.parts.run_of(shard)))

    monkeypatch.setattr(run_module, "run_local", serve)


def test_without_ray_the_line_that_installs_it_is_said(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    how = LaunchOptions(launcher="ray")
    with pytest.raises(MissingExtraError, match=r"pip install 'moescope\[ray\]'"):
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, how)
    assert not (tmp_path / "run").exists()


ENDS = "import sys, os, json; sys.stdin.readline(); shard = json.loads(sys.stdin.readline()); "


def pretend(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Workers that do something else."""
    monkeypatch.setattr(local_module, "_COMMAND", [sys.executable, "-c", ENDS + body])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.kill(os.getpid(), 9)", "it was killed by SIGKILL, as when memory runs out"),
        ("sys.exit(7)", "it ended with exit code 7"),
        ("print('{\"shard\": 1, \"tok', end=''); sys.exit(1)", "it ended with exit code 1"),
    ],
)
def test_a_shard_over_which_every_worker_dies_is_given_up_with_one_line(
    body: str, said: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = Parts(tmp_path / "run", 2)
    with claim(tmp_path / "run", "run"):
        finished.write(place.job())
    assert attempt(place.job(), Shard(1, 2), finished.run_of(Shard(1, 2))).message is None
    pretend(monkeypatch, body)
    how = LaunchOptions(workers=2, shards=2)
    with pytest.raises(LaunchError) as caught:
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, how, resume=True)
    line = str(caught.value)
    assert line.startswith("shard 2/2: 4 workers died over it and got no further, the last: ")
    assert f"the last: {said} (log: " in line
    assert "1 of 2 shards are finished and stay" in line
    assert read_manifest(finished.run_of(Shard(1, 2))).status == "complete"


def test_what_would_go_wrong_again_is_not_tried_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = OPTIONS.model_copy(update={"layers": (77,)})
    seen: list[LaunchProgress] = []
    with pytest.raises(BadInputError, match=r"^shard 1/1: .*MoE layers are 0-3"):
        launch(
            place.model, place.corpus, tmp_path / "run", wrong, LaunchOptions(workers=1),
            on_progress=seen.append,
        )  # fmt: skip
    assert all(at.lost == 0 for at in seen)
    launch_again = LaunchOptions(workers=2, shards=2)
    pretend(monkeypatch, "sys.exit(3)")
    with pytest.raises(LaunchError):  # nothing was committed, so nothing has to be resumed
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, launch_again)


def test_a_text_that_is_not_there_leaves_no_folder_behind(place: Place, tmp_path: Path) -> None:
    spec = CorpusSpec(path=str(tmp_path / "none.jsonl"))
    with pytest.raises(BadInputError, match=r"none\.jsonl"):
        launch(place.model, spec, tmp_path / "run", OPTIONS, TWO)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("here")
def test_a_launch_is_resumed_with_what_it_was_begun_with_only(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "merge_runs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch(place.model, place.corpus, run, OPTIONS, TWO)
    shorter = OPTIONS.model_copy(update={"context": 32})
    with pytest.raises(RunError, match=r"with another options \(context: run has 64, now 32\)"):
        launch(place.model, place.corpus, run, shorter, TWO, resume=True)
    pinned = dataclasses.replace(place.model, revision="v2")
    with pytest.raises(RunError, match=r"with another model \(revision: run has None, now 'v2'\)"):
        launch(pinned, place.corpus, run, OPTIONS, TWO, resume=True)
    half = place.corpus.model_copy(update={"split": "test"})
    with pytest.raises(RunError, match=r"with another corpus \(split: run has None, now 'test'\)"):
        launch(place.model, half, run, OPTIONS, TWO, resume=True)
    four = LaunchOptions(workers=2, shards=4)
    with pytest.raises(RunError, match="cut into 3 shards, now 4 are asked for"):
        launch(place.model, place.corpus, run, OPTIONS, four, resume=True)
    more_workers = LaunchOptions(workers=7)
    launch(place.model, place.corpus, run, OPTIONS, more_workers, resume=True)
    assert_is_the_run(run, place)
    assert not (run / "parts").exists()


def interrupted(*_args: object, **_more: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("here")
def test_a_finished_launch_is_left_as_it_is(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keeping = TWO.model_copy(update={"keep_parts": True})
    launch(place.model, place.corpus, run, OPTIONS, keeping)
    assert sorted(p.name for p in (run / "parts").iterdir() if p.is_dir()) == [
        "1-of-3", "2-of-3", "3-of-3"
    ]  # fmt: skip
    before = (run / "manifest.json").read_bytes()
    with pytest.raises(RunError, match="already holds a run"):
        launch(place.model, place.corpus, run, OPTIONS, TWO)
    other = OPTIONS.model_copy(update={"seed": 1})
    with pytest.raises(RunError, match="already holds another run"):
        launch(place.model, place.corpus, run, other, TWO, resume=True)
    assert launch(place.model, place.corpus, run, OPTIONS, TWO, resume=True) == run
    assert (run / "manifest.json").read_bytes() == before
    assert not (run / "parts").exists()  # no longer to be kept
    assert_is_the_run(run, place)


@pytest.mark.usefixtures("here")
def test_nothing_of_others_is_removed(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "parts").mkdir(parents=True)
    (run / "parts" / "list.txt").write_text("screws")
    with pytest.raises(RunError, match=r"holds what moescope did not write \(parts\)"):
        launch(place.model, place.corpus, run, OPTIONS, LaunchOptions(workers=1))
    assert (run / "parts" / "list.txt").read_text() == "screws"
    Parts.remove(run)
    assert (run / "parts" / "list.txt").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "parts").write_text("of a car")
    with pytest.raises(RunError, match=r"holds what moescope did not write \(parts\)"):
        launch(place.model, place.corpus, tmp_path / "other", OPTIONS, LaunchOptions(workers=1))
    with pytest.raises(RunError, match="already holds a run"):
        launch(place.model, place.corpus, place.whole, OPTIONS, TWO)


def test_two_launchers_never_work_in_one_folder(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_LOCK_SECONDS", 0.1)
    run = tmp_path / "run"
    with (
        held_elsewhere(run),
        pytest.raises(BusyError, match="is being written by process 12345 on node7"),
    ):
        launch(place.model, place.corpus, run, OPTIONS, TWO)
    assert [path.name for path in run.iterdir()] == [LOCK]


def test_two_workers_never_write_one_shard(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "LOCK_SECONDS", 0.1)
    run = tmp_path / "1-of-3"
    with held_elsewhere(run):
        outcome = attempt(place.job(), Shard(1, 3), run)
    assert not outcome.final  # it may be dying
    assert outcome.message is not None
    assert "is being written by process 12345 on node7" in outcome.message
    assert [path.name for path in run.iterdir()] == [LOCK]
    assert attempt(place.job(), Shard(1, 3), run).message is None


def test_a_shard_that_a_scheduler_starts_twice_is_written_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(analyze_cmd, "_LOCK_SECONDS", 0.1)
    run = tmp_path / "run"
    words = (place.model.model, place.corpus.path, "-o", run, "--shard", "1/3", "--context", 64)
    with held_elsewhere(run):
        for verb in ("trace", "analyze"):
            assert command(monkeypatch, verb, *words) == 1
            assert "is being written by process 12345 on node7" in capsys.readouterr().err
        assert [path.name for path in run.iterdir()] == [LOCK]
    assert command(monkeypatch, "trace", *words) == 0
    assert not (run / LOCK).exists()


@contextlib.contextmanager
def held_elsewhere(run: Path) -> Iterator[None]:
    """As another process holds a folder."""
    run.mkdir()
    with (run / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write('{"pid": 12345, "host": "node7"}')
        other.flush()
        yield


@contextlib.contextmanager
def no_file_above(limit: int) -> Iterator[None]:
    """Writing fails beyond so many bytes of a file, in this process and its children."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("here")
def test_a_disk_that_fills_is_one_line_and_what_was_finished_stays(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = tmp_path / "run"
    parts = Parts(run, 3)
    with claim(run, "run"):
        parts.write(place.job())
    first = parts.shards[0]
    assert attempt(place.job(), first, parts.run_of(first)).message is None
    largest = max(p.stat().st_size for p in parts.run_of(first).rglob("*.safetensors"))
    with no_file_above(largest // 2), pytest.raises(LaunchError) as caught:
        launch(place.model, place.corpus, run, OPTIONS, TWO, resume=True)
    line = str(caught.value)
    assert re.match(r"shard [23]/3: cannot write .*safetensors: File too large; what was", line)
    assert parts.is_done(first)

    for shard in parts.shards[1:]:
        assert attempt(place.job(), shard, parts.run_of(shard)).message is None
    with no_file_above(largest // 2):  # now the merge meets it
        with pytest.raises(WriteError, match=r"cannot write .*; what was finished before is whole"):
            launch(place.model, place.corpus, run, OPTIONS, TWO, resume=True)
        assert all(map(parts.is_done, parts.shards))
        shards = [parts.run_of(shard) for shard in parts.shards]
        assert command(monkeypatch, "merge", *shards, "-o", tmp_path / "all") == 1
    assert "cannot write" in capsys.readouterr().err

    launch(place.model, place.corpus, run, OPTIONS, TWO, resume=True)
    assert_is_the_run(run, place)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "scratch"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_below_moescope_is_not_tried_again(
    error: Exception, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object, **_more: object) -> None:
        raise error

    monkeypatch.setattr(worker_module, "trace", fails)
    outcome = attempt(place.job(), Shard(1, 3), tmp_path / "1-of-3")
    assert outcome.final
    assert outcome.message is not None
    assert outcome.message.startswith(f"the disk is full ({type(error).__name__}: ")
    assert outcome.message.endswith(
        "what was committed stays: make room and give the same command again"
    )


def test_a_fault_in_a_worker_is_said_and_may_be_tried_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object, **_more: object) -> None:
        raise RuntimeError("CUDA error:\n  an illegal memory access")

    monkeypatch.setattr(worker_module, "trace", fails)
    outcome = attempt(place.job(), Shard(1, 3), tmp_path / "1-of-3")
    assert outcome == ("RuntimeError: CUDA error: an illegal memory access", False, 1)


def test_too_little_memory_in_a_worker_is_no_fault_in_moescope(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(*_args: object, **_more: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(worker_module, "trace", fails)
    outcome = attempt(place.job(), Shard(1, 3), tmp_path / "1-of-3")
    said = "there is not enough memory for a worker; take fewer workers or less text"
    assert outcome == (said, False, 1)
    assert "Traceback" not in capfd.readouterr().err


def test_a_streamed_model_serves_one_shard_after_the_other(place: Place, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"generate": 0})
    spec = place.corpus.model_copy(update={"split": "test"})
    for engine in ("streamed", "resident"):
        job = place.job(engine=engine, options=options, corpus=spec)
        parts = Parts(tmp_path / f"{engine}-parts", 2)
        assert [attempt(job, s, parts.run_of(s)).message for s in parts.shards] == [None, None]
        merge_runs([parts.run_of(s) for s in parts.shards], tmp_path / engine)
    assert_same_sums(open_run(tmp_path / "streamed"), open_run(tmp_path / "resident"))


def test_threads_and_free_memory_are_divided_among_workers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(local_module, "available_memory", lambda: 10_000_000_000)
    assert _environment(place.job(), 0, 3)["OMP_NUM_THREADS"] == "2"
    assert _environment(place.job(), 0, 16)["OMP_NUM_THREADS"] == "1"
    assert _share_memory(place.job(), 3).memory == "3000000000"
    assert _share_memory(place.job(memory="4GB"), 3).memory == "4GB"
    assert _share_memory(place.job(engine="resident"), 3).memory is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    seen = [_environment(place.job(), i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)]
    assert seen == ["4", "6", "4"]
    named = place.job(model=dataclasses.replace(place.model, device="cuda:1"))
    assert _environment(named, 0, 3)["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_nothing_is_started_when_all_shards_are_finished(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = Parts(tmp_path / "run", 1)
    attempt(place.job(), Shard(1, 1), parts.run_of(Shard(1, 1)))
    pretend(monkeypatch, "sys.exit(9)")
    run_local(place.job(), Watch(parts), 4)


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["moescope", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as stopped:
        main.run()
    return int(stopped.value.code or 0)


BAD = {
    ("--shard", "0/3"): "shard '0/3' is not i/n",
    ("--shard", "third"): "shard 'third' is not i/n",
    ("--launcher", "shard"): "--launcher shard needs --shard i/n",
    ("--launcher", "local"): "--launcher local needs --workers N",
    ("--workers", "2"): "--workers needs --launcher local or ray",
    ("--keep-parts",): "--keep-parts needs --launcher local or ray",
    ("--launcher", "ray", "--shard", "1/3"): "--launcher ray cuts the shards itself",
    ("--launcher", "local", "--worker-gpus", "1"): "--worker-gpus needs --launcher ray",
}


@pytest.mark.parametrize("flags", BAD)
def test_flags_that_do_not_go_together_are_one_line(
    flags: tuple[str, ...], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ("trace", place.model.model, place.corpus.path, "-o", tmp_path / "run", *flags)
    assert command(monkeypatch, *words) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ")
    assert BAD[flags] in err
    assert "\n" not in err
    assert not (tmp_path / "run").exists()


def test_shards_by_hand_and_merge_are_the_run(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """What a scheduler without Ray does, as a shell sees it."""
    spec = place.corpus.model_copy(update={"split": "test", "test_share": 0.5})
    options = TraceOptions(context=64)
    whole = open_run(trace(load_model(place.model), spec, tmp_path / "whole", options))
    for n in (1, 2):
        words = ("trace", place.model.model, place.corpus.path, "--context", 64)
        words += ("--split", "test", "--test-share", 0.5)
        shard = ("--launcher", "shard", "--shard", f"{n}/2", "-o", tmp_path / f"{n}", "--resume")
        assert command(monkeypatch, *words, *shard) == 0
    out = tmp_path / "all"
    assert command(monkeypatch, "merge", tmp_path / "2", tmp_path / "1", "-o", out) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == str(out)
    tokens = whole.manifest.progress["tokens"]
    assert f"{tokens:,} tokens of 3 domains" in shown.err.splitlines()[-1]
    assert_same_sums(whole, open_run(out))
    assert command(monkeypatch, "merge", tmp_path / "2", "-o", tmp_path / "half") == 2
    assert "1 of 2 shards are not there: 1;" in capsys.readouterr().err
    words = ("merge", tmp_path / "2", "-o", tmp_path / "half", "--partial")
    assert command(monkeypatch, *words) == 0
    assert "shards not merged: 1" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_analyze_with_a_launcher_ends_in_a_report(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ("analyze", place.model.model, place.corpus.path, "-o", tmp_path / "run")
    words += ("--context", 64, "--split", "test", "--limit", 200)
    assert command(monkeypatch, *words, "--launcher", "local", "--workers", 2) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "run" / "report.html")
    assert "--limit 200 counts in each shard by itself" in shown.err
    assert "shard 2/2 is done" in shown.err
    assert "launcher: local" in (tmp_path / "run" / "config.yaml").read_text()
    assert report_on(tmp_path / "run").report.is_file()


def test_a_launch_file_that_is_damaged_is_named(place: Place, tmp_path: Path) -> None:
    parts = Parts(tmp_path / "run", 2)
    with claim(tmp_path / "run", "run"):
        parts.write(place.job())
    (parts.folder / "launch.json").write_text("{")
    with pytest.raises(RunError, match=r"launch\.json is damaged"):
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, TWO)
    shutil.rmtree(parts.folder)


def test_the_shard_of_a_launch_is_its_own_affair(place: Place, tmp_path: Path) -> None:
    spec = place.corpus.model_copy(update={"shard": "1/3"})
    with pytest.raises(BadInputError, match="cuts the corpus itself; leave the shard out"):
        launch(place.model, spec, tmp_path / "run", OPTIONS, TWO)
