"""Workers and launchers that are killed in the middle lose nothing and double nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.launched import OPTIONS, Place, assert_is_the_run, make_place

from moescope.errors import BadInputError, LaunchError
from moescope.launch import LaunchOptions, launch
from moescope.progress import Progress
from moescope.run.reader import Run

pytestmark = pytest.mark.slow

COMMITTING = OPTIONS.model_copy(update={"checkpoint_seconds": 0.0})
"""The same run, with a commit after every pool, so that a worker can be caught in the middle."""

TWO = LaunchOptions(workers=2, shards=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A corpus that takes seconds."""
    return make_place(tmp_path_factory.mktemp("launch"), documents_per_domain=40)


def holders(parts: Path) -> dict[Path, int]:
    """Process ids of the workers that are in the middle of a shard."""
    found = {}
    for manifest in parts.glob("*/manifest.json"):
        run = manifest.parent
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            told = json.loads(manifest.read_text())
            if told["status"] == "running" and told["progress"].get("tokens"):
                found[run] = int(json.loads((run / ".moescope.lock").read_text())["pid"])
    return found


def test_workers_that_are_killed_lose_nothing_and_double_nothing(
    place: Place, tmp_path: Path
) -> None:
    killed: list[Path] = []
    seen: list[Progress] = []

    def kill(at: Progress) -> None:
        seen.append(at)
        for run, pid in holders(tmp_path / "run" / "parts").items():
            if len(killed) < 2 and run not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(run)

    folder = launch(place.model, place.corpus, tmp_path / "run", COMMITTING, TWO, on_progress=kill)
    assert len(killed) == 2
    assert_told(seen, place, lost=2)
    assert not (folder / "parts").exists()
    assert_is_the_run(folder, place)


def assert_told(seen: list[Progress], place: Place, lost: int) -> None:
    """Every shard was said to be done once, every lost worker was told, and all tokens counted."""
    notes = [at.note for at in seen if at.note]
    assert sum("a worker died" in note for note in notes) == lost
    done = sorted(note for note in notes if "is done" in note)
    assert done == [f"shard {n}/3 is done" for n in (1, 2, 3)]
    last = [at for at in seen if at.stage.startswith("tracing")][-1]
    assert last.stage == "tracing, 3/3 shards"
    assert last.share == 1.0
    assert last.done == Run(place.whole).manifest.progress["tokens"]


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
    assert "holds a launch that was interrupted; resume it, or give another folder" in again.stderr
    finished = {p: p.stat().st_mtime_ns for p in parts.glob("*/documents.parquet")}
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("is done") == 3
    assert done.stdout.strip() == str(tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in finished} == finished  # not run again
    assert len(list(parts.glob("*/manifest.json"))) == 3
    assert_is_the_run(tmp_path / "run", place)


def test_an_interrupted_launcher_says_so_and_leaves_no_worker(place: Place, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "moescope", "trace", place.model.model, place.corpus.path,
        "-o", str(tmp_path / "run"), "--launcher", "local", "--workers", "2",
        "--context", "64", "--pool-tokens", "256", "--checkpoint-seconds", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(lambda: holders(tmp_path / "run" / "parts") or process.poll() is not None)
    pids = list(holders(tmp_path / "run" / "parts").values())
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does on Ctrl-C
    _, said = process.communicate(timeout=120)
    assert pids
    assert process.returncode == 130
    last = said.strip().splitlines()[-1]
    assert last == (
        "error: interrupted; what was finished stays, go on with the same command and --resume"
    )
    assert not any(map(is_alive, pids))


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
    seen: list[Progress] = []

    def kill(at: Progress) -> None:
        seen.append(at)
        for pid in list(holders(tmp_path / "run" / "parts").values())[: 1 - len(killed)]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    how = LaunchOptions(launcher="ray", workers=1, shards=3)
    folder = launch(place.model, place.corpus, tmp_path / "run", COMMITTING, how, on_progress=kill)
    assert len(killed) == 1
    assert_told(seen, place, lost=1)  # Ray gave the shard to another worker; the launcher saw it
    assert_is_the_run(folder, place)


def test_a_shard_over_which_every_ray_worker_dies_is_given_up(
    place: Place, tmp_path: Path, ray_here: object
) -> None:
    killed: set[int] = set()

    def kill(_at: Progress) -> None:
        for lock in (tmp_path / "run" / "parts").glob("*-of-*.lock"):
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                pid = int(json.loads(lock.read_text())["pid"])
                if pid not in killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)

    how = LaunchOptions(launcher="ray", workers=1, shards=1)
    said = r"^shard 1/1: 4 workers died over it and got no further, the last: Ray lost "
    with pytest.raises(LaunchError, match=said):
        launch(place.model, place.corpus, tmp_path / "run", OPTIONS, how, on_progress=kill)
    assert len(killed) == 4


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
