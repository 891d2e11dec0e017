"""Workers that are processes of this machine.

Each has a pipe for what it is told and one for what it says; both end when either side dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

from moescope.corpus import Shard
from moescope.errors import LaunchError
from moescope.files import own
from moescope.launch.job import Job
from moescope.launch.watch import Watch
from moescope.launch.worker import Outcome
from moescope.memory import available_memory
from moescope.models.loading import pick_device

_COMMAND = [sys.executable, "-m", "moescope.launch"]
_SHARE_OF_MEMORY = 0.9


def run_local(job: Job, watch: Watch, workers: int) -> None:
    """Trace all shards that are not finished by processes of this machine.

    Threads, free memory (where no ``memory`` is asked for) and GPUs are divided among the workers.

    Raises:
        LaunchError: a process cannot be started, or died too often.
        BadInputError: what a worker says of its input.
    """
    workers = min(workers, len(watch.todo))
    if workers:
        _Pool(_share_memory(job, workers), watch, workers).run()


class _Worker:
    """One process, and the shard that it has."""

    def __init__(self, slot: int, process: subprocess.Popen[str], log: Path) -> None:
        self.slot, self.process, self.log = slot, process, log
        self.shard: Shard | None = None

    def give(self, message: str) -> None:
        """Tell it something; a process that is dead says so on its other pipe."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(message + "\n")
            self.process.stdin.flush()

    def let_go(self) -> None:
        """Close its input, which ends it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def stop(self) -> None:
        """Let it go and make sure that it has ended."""
        self.let_go()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class _Pool:
    """The workers of one launch and what they say."""

    def __init__(self, job: Job, watch: Watch, workers: int) -> None:
        self.job, self.watch = job, watch
        self.waiting = deque(watch.todo)
        self.workers: dict[int, _Worker] = {}
        self.slots = workers
        self.said: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()

    def run(self) -> None:
        self.watch.tell()
        try:
            for slot in range(self.slots):
                self._start(slot)
            while self.workers:
                self._hear(*self.said.get())
        finally:
            for worker in self.workers.values():
                worker.let_go()  # all at once, then wait for each
            for worker in self.workers.values():
                worker.stop()

    def _start(self, slot: int) -> None:
        """Start a process for the next shard."""
        log = self.watch.parts.folder / f"worker-{slot + 1}.log"
        try:
            own(log).parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stderr:
                process = subprocess.Popen(
                    _COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    encoding="utf-8",
                    env=_environment(self.job, slot, self.slots),
                )
        except OSError as error:
            raise LaunchError(f"a worker cannot be started ({error})") from error
        worker = _Worker(slot, process, log)
        self.workers[slot] = worker
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        worker.give(self.job.model_dump_json())
        self._assign(worker)

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # a line cut short by its death
                self.said.put((worker, json.loads(line)))
        self.said.put((worker, None))

    def _assign(self, worker: _Worker) -> None:
        """Give it the next shard, or let it go."""
        worker.shard = self.waiting.popleft() if self.waiting else None
        if worker.shard is None:
            del self.workers[worker.slot]
            worker.stop()
            return
        run = str(self.watch.parts.run_of(worker.shard))
        worker.give(json.dumps({"shard": list(worker.shard), "run": run}))

    def _hear(self, worker: _Worker, message: dict[str, Any] | None) -> None:
        shard = worker.shard
        if self.workers.get(worker.slot) is not worker or shard is None:
            return  # its last words after it was let go
        if message is not None and not message.get("ended"):
            self.watch.advance(shard, message["tokens"], message["share"])
            return
        outcome = _outcome(worker, message)
        if self.watch.finish(shard, outcome):
            self._assign(worker)
            return
        del self.workers[worker.slot]
        worker.stop()
        self.waiting.appendleft(shard)
        self._start(worker.slot)


def _outcome(worker: _Worker, message: dict[str, Any] | None) -> Outcome:
    """What a worker said last, or how it died."""
    if message is None:
        worker.stop()
        return Outcome(f"{_death(worker.process.returncode)} (log: {worker.log})")
    outcome = Outcome(message["message"], message["final"], message["exit_code"])
    if outcome.message is None or outcome.final:
        return outcome
    return outcome._replace(message=f"{outcome.message} (log: {worker.log})")


def _death(code: int) -> str:
    if code >= 0:
        return f"it ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = ", as when memory runs out" if name == "SIGKILL" else ""
    return f"it was killed by {name}{hint}"


def _share_memory(job: Job, workers: int) -> Job:
    """Each worker plans with its part of what is free, unless it was told what it may take.

    On accelerators it asks its own.
    """
    if job.memory is not None or job.engine == "resident" or workers == 1:
        return job
    if pick_device(job.model.device).type != "cpu":
        return job
    share = int(_SHARE_OF_MEMORY * available_memory() / workers)
    return job.model_copy(update={"memory": str(share)})


def _environment(job: Job, slot: int, workers: int) -> dict[str, str]:
    """What a worker finds: its part of the threads, and one GPU where none was named."""
    import torch

    environment = dict(os.environ)
    environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // workers))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = visible.split(",") if visible else [str(i) for i in range(count)]
    if count > 1 and job.model.device in ("auto", "cuda"):
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment
