"""`launch`: cut a corpus into shards, have workers trace them, merge, clean up.

Everything is decided by what lies in the folder: which shards are finished, which have begun. So
the same command with ``resume`` goes on after whatever interrupted it, the merge included.
"""

from __future__ import annotations

from pathlib import Path

from moescope.corpus import AnyText, as_text, open_corpus
from moescope.errors import BadInputError, RunError
from moescope.launch.job import Job, Parts
from moescope.launch.local import run_local
from moescope.launch.on_ray import ray_workers, run_on_ray, with_ray
from moescope.launch.options import LaunchOptions
from moescope.launch.watch import Watch
from moescope.models.spec import AnySpec, EngineName, as_spec
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.manifest import MANIFEST, Manifest, claim_run, read_manifest
from moescope.run.merge import merge_runs
from moescope.run.options import TraceOptions
from moescope.words import counted

_LOCK_SECONDS = 5.0
"""For a launcher that is just dying."""


def launch(
    model: AnySpec,
    texts: AnyText,
    run: str | Path,
    options: TraceOptions | None = None,
    how: LaunchOptions | None = None,
    *,
    engine: EngineName = "auto",
    memory: str | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> Path:
    """Trace a corpus by several workers and join their runs.

    Each shard is a run of its own in ``run/parts`` until all are finished and merged; only then are
    they removed. A worker that dies loses what it had not committed, and its shard goes on in
    another one.

    Args:
        model: what every worker loads: a hub id, a folder, or a `ModelSpec`.
        texts: a path or a `CorpusSpec`.
        run: folder of the joined run.
        options: how to trace; see `TraceOptions`. ``limit`` and ``token_budget`` count in each
            shard by themselves.
        how: how many workers and where; see `LaunchOptions`.
        engine: how each worker holds the model; see `open_model`.
        memory: what each worker may take.
        resume: go on with a launch that was interrupted.
        on_progress: told whenever a worker says how far it is, and when a shard is done.

    Returns:
        The folder of the joined run.

    Raises:
        RunError: the folder holds something else, or another launch.
        LaunchError: workers cannot be started or died too often; finished shards stay.
        MissingExtraError: Ray is not installed.
        MoescopeError: what a worker says of its input.
    """
    how, run = how or LaunchOptions(), Path(run)
    spec, corpus, asked = as_spec(model), as_text(texts), options or TraceOptions()
    if corpus.held:
        raise BadInputError(
            "workers read the text themselves, so texts in memory cannot be given to them; write "
            "the texts to a file and give its path"
        )
    job = Job(model=spec, engine=engine, memory=memory, corpus=corpus, options=asked)
    if corpus.shard is not None:
        raise BadInputError(
            f"a launch cuts the corpus itself; leave the shard out, got {corpus.shard}"
        )
    open_corpus(corpus)  # text that is not there leaves no folder behind
    with claim_run(run, reads=[corpus.path], wait=_LOCK_SECONDS):
        if not _is_finished(run, job, resume):
            parts = _trace_parts(job, run, how, resume, on_progress)
            shards = [parts.run_of(s) for s in parts.shards]
            merge_runs(shards, run, link=True, on_progress=on_progress)
        if not how.keep_parts:
            Parts.remove(run)
    return run


def _trace_parts(
    job: Job, run: Path, how: LaunchOptions, resume: bool, on_progress: OnProgress
) -> Parts:
    """Have every shard traced."""
    if how.launcher == "ray":
        on_progress(Progress("connecting to Ray"))
        with with_ray(how) as ray:
            workers = ray_workers(ray, how)
            parts = _prepare(job, run, how.shards or workers, how, resume)
            run_on_ray(ray, job, Watch(parts, on_progress), how, workers)
        return parts
    if how.workers is None:
        raise BadInputError("`launcher=local` needs `workers=N`: how many processes at a time")
    parts = _prepare(job, run, how.shards or how.workers, how, resume)
    run_local(job, Watch(parts, on_progress), how.workers)
    return parts


def _is_finished(run: Path, job: Job, resume: bool) -> bool:
    """Was the launch in this folder merged already? Anything else there is refused."""
    if not (run / MANIFEST).is_file():
        return False
    old = read_manifest(run)
    if old.merged is not None and old.status != "complete":
        return False  # killed while it was merging
    if resume and old.merged is not None and old.merged.shards is not None and _is_of(old, job):
        known = old.progress["fingerprint"]
        if known and open_corpus(job.corpus).fingerprint() != known:
            raise RunError(
                f"{run} is a run of other text than {job.corpus.path} holds now; trace that into "
                "another folder"
            )
        return True
    raise RunError(f"{run} already holds {'another' if resume else 'a'} run; give another folder")


def _is_of(old: Manifest, job: Job) -> bool:
    name, mine = str(old.model["name"]), job.model.model
    wanted = job.identity()
    return (
        name in (mine, str(Path(mine).absolute()))
        and old.options == wanted["options"]
        and all(old.corpus.get(key) == value for key, value in wanted["corpus"].items())
    )


def _prepare(job: Job, run: Path, shards: int, how: LaunchOptions, resume: bool) -> Parts:
    """The folder of the parts: new, or that of the launch that is resumed."""
    begun = Parts.begun(run)
    if begun is None:
        parts = Parts(run, shards)
        parts.write(job)
        return parts
    if not resume:
        raise RunError(
            f"{begun.folder} holds a launch that was interrupted; resume it, or give another folder"
        )
    begun.require(job)
    if how.shards is not None and how.shards != len(begun.shards):
        raise RunError(
            f"{begun.folder} was cut into {counted(len(begun.shards), 'shard')}, now {how.shards} "
            "are asked for; leave the number out, or give another folder"
        )
    return begun
