"""A corpus spread over workers: nothing is lost and nothing doubled, whoever is killed."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.same_run import assert_same_sums, assert_same_tokens, kept_tokens
from tests.support.saved import save_tiny, write_corpus

from moescope.analysis import report_on
from moescope.cli import main
from moescope.corpus import CorpusSpec, Shard
from moescope.errors import BadInputError, LaunchError, MissingExtraError, RunError
from moescope.launch import LaunchOptions, LaunchProgress, launch
from moescope.launch import local as local_module
from moescope.launch import run as run_module
from moescope.launch import worker as worker_module
from moescope.launch.job import Job, Parts
from moescope.launch.local import _environment, _share_memory, run_local
from moescope.launch.watch import Watch
from moescope.launch.worker import attempt
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec, load_model
from moescope.trace import Run, TraceOptions, trace
from moescope.trace.merge import merge_runs
from moescope.trace.store import read_manifest

OPTIONS = TraceOptions(
    keep="all", context=64, pool_tokens=256, batch_tokens=128, sample_tokens=500, generate=3,
)  # fmt: skip

COMMITTING = OPTIONS.model_copy(update={"checkpoint_seconds": 0.0})
"""The same run, with a commit after every pool, so that a worker can be caught in the middle."""


@dataclasses.dataclass
class Place:
    """A model, a corpus that takes seconds, the run of it by one process, and of three shards."""

    model: ModelSpec
    corpus: CorpusSpec
    whole: Path
    merged: Path

    def job(self, **changes: object) -> Job:
        given = {"model": self.model, "corpus": self.corpus, "options": OPTIONS, **changes}
        return Job(**given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("launch")
    model = ModelSpec(str(save_tiny("olmoe", folder / "moe")))
    path = write_corpus(folder / "texts.jsonl", documents_per_domain=40, domains=3)
    corpus, loaded = CorpusSpec(path=str(path)), load_model(model)
    whole = trace(loaded, corpus, folder / "whole", OPTIONS)
    specs = [corpus.model_copy(update={"shard": f"{n}/3"}) for n in (1, 2, 3)]
    parts = [trace(loaded, s, folder / f"part{n}", OPTIONS) for n, s in enumerate(specs)]
    return Place(model, corpus, whole, merge_runs(parts, folder / "merged"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are this process: quick, for what is not about processes."""

    def serve(job: Job, watch: Watch, _workers: int) -> None:
        for shard in watch.todo:
            watch.finish(shard, attempt(job, shard, watch.parts.run_of(shard)))

    monkeypatch.setattr(run_module, "run_local", serve)


TWO = LaunchOptions(workers=2, shards=3)


def assert_is_the_run(folder: Path, place: Place) -> None:
    """Bit for bit that of three shards never interrupted; in sums that of one process."""
    names = ["documents.parquet", "sample.parquet", "vocabulary.json"]
    names += [p.relative_to(place.merged).as_posix() for p in place.merged.glob("shards/*")]
    names += [p.relative_to(place.merged).as_posix() for p in place.merged.glob("aggregates/*")]
    assert len(names) > 5
    for name in names:
        assert (folder / name).read_bytes() == (place.merged / name).read_bytes(), name
    one, other = open_run(place.whole), open_run(folder)
    assert_same_sums(one, other)
    assert_same_tokens(one, other, kept_tokens(one), kept_tokens(other))
    assert one.manifest.progress == other.manifest.progress


def holders(parts: Path) -> dict[Path, int]:
    """Process ids of the workers that are in the middle of a shard."""
    found = {}
    for manifest in parts.glob("*/manifest.json"):
        run = manifest.parent
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            told = json.loads(manifest.read_text())
            if told["status"] == "running" and told["progress"].get("tokens"):
                found[run] = int(json.loads(run.with_name(f"{run.name}.lock").read_text())["pid"])
    return found


def test_workers_that_are_killed_lose_nothing_and_double_nothing(
    place: Place, tmp_path: Path
) -> None:
    killed: list[Path] = []
    seen: list[LaunchProgress] = []

    def kill(at: LaunchProgress) -> None:
        seen.append(at)
        for run, pid in holders(tmp_path / "run" / "parts").items():
            if len(killed) < 2 and run not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(run)

    folder = launch(place.model, place.corpus, tmp_path / "run", COMMITTING, TWO, on_progress=kill)
    assert len(killed) == 2
    assert seen[-1].lost == 2
    assert seen[-1].done == (1, 2, 3)
    assert seen[-1].share == 1.0
    assert seen[-1].tokens == Run(place.whole).manifest.progress["tokens"]
    assert not (folder / "parts").exists()
    assert_is_the_run(folder, place)


def wait_for(what: Callable[[], object], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_launcher_that_is_killed_takes_its_workers_along_and_resumes(
    place: Place, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "moescope", "trace", place.model.model, place.corpus.path,
        "-o", str(tmp_path / "run"), "--launcher", "local", "--workers", "2", "--shards", "3",
        "--keep", "all", "--context", "64", "--pool-tokens", "256", "--batch-tokens", "128",
        "--sample-tokens", "500", "--generate", "3", "--checkpoint-seconds", "0", "--keep-parts",
    ]  # fmt: skip
    parts = tmp_path / "run" / "parts"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: holders(parts) or process.poll() is not None)
    pids = list(holders(parts).values())
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert pids
    wait_for(lambda: not any(map(is_alive, pids)), 60)
    assert not (tmp_path / "run" / "manifest.json").exists()

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "holds a launch that was interrupted; go on with it by --resume" in again.stderr
    finished = {p: p.stat().st_mtime_ns for p in parts.glob("*/documents.parquet")}
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is done") == 3
    assert done.stdout.strip() == str(tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in finished} == finished  # not run again
    assert len(list(parts.glob("*/manifest.json"))) == 3
    assert_is_the_run(tmp_path / "run", place)


def ray_or_skip() -> Iterator[object]:
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        pytest.skip(f"Ray does not start here: {' '.join(str(error).split())[:120]}")
    yield ray
    ray.shutdown()


ray_here = pytest.fixture(ray_or_skip, scope="module")


def test_a_ray_worker_that_is_killed_loses_nothing_and_doubles_nothing(
    place: Place, tmp_path: Path, ray_here: object
) -> None:
    killed: list[int] = []
    tokens: list[int] = []

    def kill(at: LaunchProgress) -> None:
        tokens.append(at.tokens)
        for pid in list(holders(tmp_path / "run" / "parts").values())[: 1 - len(killed)]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    how = LaunchOptions(launcher="ray", workers=1, shards=3, keep_parts=True)
    folder = launch(place.model, place.corpus, tmp_path / "run", COMMITTING, how, on_progress=kill)
    assert len(killed) == 1
    pids = {json.loads(p.read_text())["pid"] for p in (tmp_path / "run" / "parts").glob("*.lock")}
    assert killed[0] not in pids  # another worker finished what it had begun
    assert tokens[-1] == Run(place.whole).manifest.progress["tokens"]
    assert_is_the_run(folder, place)


def test_what_a_ray_worker_says_of_its_input_is_one_line(
    place: Place, tmp_path: Path, ray_here: object
) -> None:
    how = LaunchOptions(launcher="ray", shards=2)
    wrong = OPTIONS.model_copy(update={"layers": (77,)})
    with pytest.raises(BadInputError, match=r"^shard ./2: .*MoE layers are 0-3"):
        launch(place.model, place.corpus, tmp_path / "run", wrong, how)
    greedy = LaunchOptions(launcher="ray", worker_cpus=64)
    with pytest.raises(LaunchError, match="asks for 64 processors and 0 GPUs; the cluster has 2"):
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, greedy)


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
    finished.write(place.job())
    assert attempt(place.job(), Shard(1, 2), finished.run_of(Shard(1, 2))).message is None
    pretend(monkeypatch, body)
    how = LaunchOptions(workers=2, shards=2)
    with pytest.raises(LaunchError) as caught:
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, how, resume=True)
    line = str(caught.value)
    assert line.startswith(f"shard 2/2: 4 workers died over it, the last: {said} (log: ")
    assert "1 of 2 shards are finished and stay" in line
    assert "--resume" in line
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
    with pytest.raises(RunError, match=r"with another options \(context: there 64, now 32\)"):
        launch(place.model, place.corpus, run, shorter, TWO, resume=True)
    half = place.corpus.model_copy(update={"split": "test"})
    with pytest.raises(RunError, match=r"with another corpus \(split: there None, now 'test'\)"):
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
    with pytest.raises(RunError, match="parts holds something else"):
        launch(place.model, place.corpus, run, OPTIONS, LaunchOptions(workers=1))
    assert (run / "parts" / "list.txt").read_text() == "screws"
    Parts.remove(run)
    assert (run / "parts" / "list.txt").exists()
    with pytest.raises(RunError, match="already holds a run"):
        launch(place.model, place.corpus, place.whole, OPTIONS, TWO)


def test_two_workers_never_write_one_shard(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LOCK_SECONDS", 0.1)
    run = tmp_path / "1-of-3"
    with (tmp_path / "1-of-3.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write('{"pid": 12345}')
        other.flush()
        outcome = attempt(place.job(), Shard(1, 3), run)
    assert outcome.final
    assert outcome.message is not None
    assert 'is being traced by another process ({"pid": 12345})' in outcome.message
    assert not run.exists()
    assert attempt(place.job(), Shard(1, 3), run).message is None


def test_a_fault_in_a_worker_is_said_and_may_be_tried_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object, **_more: object) -> None:
        raise RuntimeError("CUDA error:\n  an illegal memory access")

    monkeypatch.setattr(worker_module, "trace", fails)
    outcome = attempt(place.job(), Shard(1, 3), tmp_path / "1-of-3")
    assert outcome == ("RuntimeError: CUDA error: an illegal memory access", False, 1)


def test_a_streamed_model_serves_one_shard_after_the_other(place: Place, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"generate": 0})
    spec = place.corpus.model_copy(update={"split": "test"})
    for engine in ("streamed", "resident"):
        job = place.job(engine=engine, options=options, corpus=spec)
        parts = Parts(tmp_path / engine, 2)
        assert [attempt(job, s, parts.run_of(s)).message for s in parts.shards] == [None, None]
        merge_runs([parts.run_of(s) for s in parts.shards], tmp_path / engine)
    assert_same_sums(open_run(tmp_path / "streamed"), open_run(tmp_path / "resident"))


def test_threads_and_free_memory_are_divided_among_workers(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(local_module, "available_memory", lambda: 10_000_000_000)
    assert _environment(0, 3)["OMP_NUM_THREADS"] == "2"
    assert _environment(0, 16)["OMP_NUM_THREADS"] == "1"
    assert _share_memory(place.job(), 3).memory == "3000000000"
    assert _share_memory(place.job(memory="4GB"), 3).memory == "4GB"
    assert _share_memory(place.job(engine="resident"), 3).memory is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [_environment(i, 3)["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "6", "4"]


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
    spec = place.corpus.model_copy(update={"split": "test"})
    options = TraceOptions(context=64)
    whole = open_run(trace(load_model(place.model), spec, tmp_path / "whole", options))
    for n in (1, 2):
        words = ("trace", place.model.model, place.corpus.path, "--split", "test", "--context", 64)
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
    parts.write(place.job())
    (parts.folder / "launch.json").write_text("{")
    with pytest.raises(RunError, match=r"launch\.json is damaged"):
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, TWO)
    shutil.rmtree(parts.folder)


def test_the_shard_of_a_launch_is_its_own_affair(place: Place, tmp_path: Path) -> None:
    spec = place.corpus.model_copy(update={"shard": "1/3"})
    with pytest.raises(BadInputError, match="cuts the corpus itself; leave the shard out"):
        launch(place.model, spec, tmp_path / "run", OPTIONS, TWO)
