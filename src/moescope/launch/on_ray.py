"""Workers that are tasks of a Ray cluster.

Ray places them, starts them and gives a task whose worker or node died to another one; a shard's
run then goes on where it was committed. Tasks and not actors: an actor holds its processor while it
is idle, and can starve whatever else runs in the cluster.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moescope.corpus import Shard
from moescope.errors import LaunchError, MissingExtraError
from moescope.files import holder
from moescope.launch.job import Job
from moescope.launch.options import LaunchOptions
from moescope.launch.watch import RETRIES, Watch
from moescope.launch.worker import Outcome, attempt
from moescope.memory import available_memory
from moescope.models.loading import pick_device
from moescope.words import said_by

_POLL_SECONDS = 1.0
_LOOKS_A_SECOND = 50
"""At how many shards' files the launcher looks, however many there are."""

_SHARE_OF_MEMORY = 0.9


@contextlib.contextmanager
def with_ray(how: LaunchOptions) -> Iterator[Any]:
    """Ray, connected to a cluster or started here; what was started is stopped again.

    Raises:
        MissingExtraError: Ray is not installed.
        LaunchError: it does not answer or does not start.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "`launcher=ray`") from error
    if ray.is_initialized():
        yield ray
        return
    # without an address Ray would join whatever cluster was last started on this machine
    address = how.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    here: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except Exception as error:
        where = "on this machine" if address == "local" else f"at {address}"
        raise LaunchError(f"Ray {where} does not start or answer ({_first(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def ray_workers(ray: Any, how: LaunchOptions) -> int:
    """As many tasks as were asked for, or as the cluster has room for at a time.

    Raises:
        LaunchError: it has room for none.
    """
    if how.workers is not None:
        return how.workers
    found = ray.cluster_resources()
    room = int(found.get("CPU", 0) / how.worker_cpus)
    if how.worker_gpus:
        room = min(room, int(found.get("GPU", 0) / how.worker_gpus))
    if room < 1:
        raise LaunchError(
            f"a worker asks for {how.worker_cpus:g} processors and {how.worker_gpus:g} GPUs; the "
            f"cluster has {found.get('CPU', 0):g} and {found.get('GPU', 0):g}"
        )
    return room


def run_on_ray(ray: Any, job: Job, watch: Watch, how: LaunchOptions, workers: int) -> None:
    """Trace all shards that are not finished by tasks of Ray.

    Model, corpus and run must lie where every node finds them under the same path.

    Raises:
        LaunchError: a shard was lost too often.
        BadInputError: what a worker says of its input.
    """
    task = ray.remote(num_cpus=how.worker_cpus, num_gpus=how.worker_gpus, max_retries=RETRIES)(
        _trace_shard
    )
    text = _everywhere(job).model_dump_json()
    waiting, running = deque(watch.todo), dict[Any, Shard]()
    holders: dict[Shard, str] = {}
    watch.tell()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                shard = waiting.popleft()
                holders.pop(shard, None)
                run = str(watch.parts.run_of(shard).absolute())
                running[task.remote(text, tuple(shard), run, how.worker_cpus)] = shard
            pause = max(_POLL_SECONDS, len(running) / _LOOKS_A_SECOND)
            ready, _ = ray.wait(list(running), num_returns=1, timeout=pause)
            for reference in ready:
                shard = running.pop(reference)
                if not watch.finish(shard, _outcome(ray, reference)):
                    waiting.appendleft(shard)
            for shard in running.values():
                with contextlib.suppress(OSError):  # a network file system may be late
                    _look(watch, shard, holders)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _look(watch: Watch, shard: Shard, holders: dict[Shard, str]) -> None:
    """How far a shard is; and whether Ray has given it to another worker, because one was lost."""
    now, before = holder(watch.parts.lock_of(shard)), holders.get(shard)
    if now is not None:
        holders[shard] = now
        if before is not None and before != now:
            watch.lose(shard, f"Ray lost {before}")
    watch.advance(shard, watch.parts.tokens(shard))


def _outcome(ray: Any, reference: Any) -> Outcome:
    lost = ray.exceptions
    try:
        return Outcome(*ray.get(reference))
    except (
        lost.WorkerCrashedError,
        lost.NodeDiedError,
        lost.LocalRayletDiedError,
        lost.OutOfMemoryError,
        lost.ObjectLostError,
    ) as error:
        return Outcome(f"Ray lost its worker ({_first(error)})")
    except lost.RayError as error:
        return Outcome(f"Ray cannot run it ({_first(getattr(error, 'cause', error))})", final=True)


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {said_by(error, 200)}"


def _trace_shard(text: str, shard: tuple[int, int], run: str, cpus: float) -> tuple[Any, ...]:
    """The task: one shard. Without a GPU the process may keep the model for its next shard."""
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    job = Job.model_validate_json(text)
    on_processor = pick_device(job.model.device).type == "cpu"
    if job.memory is None and job.engine != "resident" and on_processor:
        job = job.model_copy(update={"memory": _share_of_memory(cpus)})
    return tuple(attempt(job, Shard(*shard), Path(run)))


@functools.cache  # what is free changes once the model is loaded, and another share loads it again
def _share_of_memory(cpus: float) -> str:
    part = min(1.0, cpus / (os.cpu_count() or 1))
    return str(int(_SHARE_OF_MEMORY * available_memory() * part))


def _everywhere(job: Job) -> Job:
    """Paths that do not depend on the folder in which a task happens to run."""
    corpus, model = job.corpus, job.model
    if Path(corpus.path).exists():
        corpus = corpus.model_copy(update={"path": str(Path(corpus.path).absolute())})
    if Path(model.model).is_dir():
        model = type(model)(**{**vars(model), "model": str(Path(model.model).absolute())})
    return job.model_copy(update={"corpus": corpus, "model": model})
