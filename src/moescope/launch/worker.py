"""One worker: loads the model once and traces the shards that it is given.

``python -m moescope.launch`` is told its job and then one shard after another on standard
input, and says on standard output how far it is, a line of JSON each. When the input ends, because
all is done or because the launcher died, it stops at once: a commit is atomic, so it may stop
anywhere. A task of Ray calls `attempt` with one shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moescope.corpus import Shard
from moescope.errors import BusyError, MoescopeError, lacks_memory
from moescope.launch.job import Job
from moescope.models import LoadedModel, open_model
from moescope.progress import OnProgress, Progress, quiet
from moescope.trace import trace
from moescope.words import said_by

LOCK_SECONDS = 120.0
"""A network file system needs so long to notice that the machine of a lock is gone."""

_SAY_SECONDS = 0.5
_FULL = ("No space left on device", "Disk quota exceeded")
_loaded: dict[str, LoadedModel] = {}


class Outcome(NamedTuple):
    """How a shard went.

    ``message`` is None when it is done. ``final``: it would go wrong again, so it is not retried;
    ``exit_code`` is then that of the error.
    """

    message: str | None = None
    final: bool = False
    exit_code: int = 1


def attempt(job: Job, shard: Shard, run: Path, on_progress: OnProgress = quiet) -> Outcome:
    """Trace one shard, or go on with it; never raises for what went wrong in it."""
    corpus = job.corpus.model_copy(update={"shard": str(shard)})
    try:
        trace(
            _model(job), corpus, run, job.options,
            resume=True, on_progress=on_progress, wait=LOCK_SECONDS,
        )  # fmt: skip
    except BusyError as error:  # a worker that was given up may still be dying
        return Outcome(str(error))
    except MoescopeError as error:
        return Outcome(str(error), final=True, exit_code=error.exit_code)
    except Exception as error:
        return _fault(error)
    return Outcome()


def _fault(error: Exception) -> Outcome:
    """What nobody expected; a full disk is said as such, because no other worker has more of it."""
    said = f"{type(error).__name__}: {said_by(error, 200)}"
    if any(words in said for words in _FULL):  # not every library raises an OSError
        return Outcome(
            f"the disk is full ({said}); what was committed stays: make room and give the same "
            "command again",
            final=True,
        )
    if lacks_memory(error):  # there may be more when another worker has ended
        return Outcome("there is not enough memory for a worker; take fewer workers or less text")
    with contextlib.suppress(OSError):
        traceback.print_exception(error)
    return Outcome(said)


def _model(job: Job) -> LoadedModel:
    """The model, loaded once in this process."""
    key = job.model_dump_json(include={"model", "engine", "memory"})
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = open_model(
            job.model,
            engine=job.engine,
            memory=job.memory,
            batch_tokens=job.options.batch_tokens,
            window=job.options.context,
        )
    return _loaded[key]


def main() -> int:
    """Serve shards until the input ends; see the module."""
    say = _speaker()
    job = Job.model_validate_json(sys.stdin.readline())
    _use_threads()
    for shard, run in _requests():
        outcome = attempt(job, shard, run, _reporter(shard, say))
        say({"shard": shard.number, **outcome._asdict(), "ended": True})
        if outcome.message is not None:
            return 1
    return 0


def _speaker() -> Callable[[dict[str, Any]], None]:
    """Write to what standard output was; what libraries print there goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return say


def _use_threads() -> None:
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit():
        torch.set_num_threads(max(1, int(threads)))


def _requests() -> Iterator[tuple[Shard, Path]]:
    """Shards as they are given; the process ends with its input, in the middle of one if need be.

    A thread waits for the input, so a launcher that was killed takes its workers with it.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        given = json.loads(waiting.get())
        yield Shard(*given["shard"]), Path(given["run"])


def _reporter(shard: Shard, say: Callable[[dict[str, Any]], None]) -> OnProgress:
    """Say how far a shard is, twice a second at most."""
    last = 0.0

    def report(at: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAY_SECONDS:
            last = time.monotonic()
            say({"shard": shard.number, "tokens": int(at.done), "share": at.share})

    return report
