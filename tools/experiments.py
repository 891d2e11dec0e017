"""Router-lab experiments: train every condition with every seed, measure, write results and pages.

    python tools/build_corpora.py --out DIR
    python tools/experiments.py --data DIR --out RUNS                    all experiments, 3 seeds
    python tools/experiments.py --data DIR --out RUNS --only balancing   one of them
    python tools/experiments.py --pages                                  pages from results.json

Runs are RUNS/EXPERIMENT/CONDITION/seed-N. What is finished is skipped and what was interrupted goes
on, so the same command can be given again at any time. Results go to docs/experiments/results.json,
a page and a figure for each experiment beside it.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
for _name, _value in {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}.items():
    os.environ.setdefault(_name, _value)

from tools import experiment_runs as runs  # noqa: E402
from tools.experiment_figures import require_matplotlib  # noqa: E402
from tools.experiment_pages import write_page  # noqa: E402
from tools.experiment_plan import Experiment, Job, jobs_of, load_experiments  # noqa: E402
from tools.experiment_results import aggregate, read_results, write_results  # noqa: E402

from moescope.errors import BadInputError, InterruptedTrainingError, MoescopeError  # noqa: E402

EXPERIMENTS = ROOT / "docs" / "experiments" / "experiments.yaml"


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    data: Path | None
    out: Path | None
    only: tuple[str, ...]
    seeds: int
    jobs: int
    overrides: tuple[str, ...]
    experiments: Path
    docs: Path
    pages: bool


class Interrupted(Exception):
    """Stopped on request; what was done is saved."""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def plan(options: Options, chosen: dict[str, Experiment]) -> dict[str, list[Job]]:
    """All runs by experiment, every recipe of theirs checked before the first is trained."""
    if options.data is None or options.out is None:
        raise BadInputError("give --data DIR and --out RUNS, or --pages to write pages only")
    if options.overrides and options.docs == EXPERIMENTS.parent:
        raise BadInputError("--set is for a pilot; give --docs, so that it replaces no results")
    for side in ("train", "heldout"):
        if not (options.data / side).is_dir():
            raise BadInputError(
                f"--data {options.data}: no folder {side} there; make it with: "
                "python tools/build_corpora.py --out DIR"
            )
    recipes, data, out = options.experiments.parent, options.data.resolve(), options.out.resolve()
    made = {
        name: list(jobs_of(name, e, recipes, data, out, options.seeds, options.overrides))
        for name, e in chosen.items()
    }
    for job in (job for jobs in made.values() for job in jobs):
        job.recipe()
    return made


def command_of(options: Options, name: str) -> str:
    """The command that made an experiment's figures, without paths of this machine."""
    words = ["python", "tools/experiments.py", "--data", "DIR", "--out", "RUNS", "--only", name]
    words += ["--seeds", str(options.seeds)]
    for override in options.overrides:
        words += ["--set", shlex.quote(override)]
    return " ".join(words)


class Progress:
    """Lines on stderr: which run, how far, and about how long the rest will take."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs, self.done = total, jobs, 0
        self.seconds: list[float] = []

    def finished(self, number: int, job: Job, seconds: float) -> None:
        """A run is done."""
        self.done += 1
        self.seconds.append(seconds)
        left = (self.total - self.done) * sum(self.seconds) / len(self.seconds) / self.jobs
        rest = f"about {left / 60:.0f} min left" if self.done < self.total else "all done"
        say(f"{self.tag(number)} {job.label} · done in {seconds:.0f} s · {rest}")

    def tag(self, number: int) -> str:
        """``[ 3/60]``."""
        return f"[{number:{len(str(self.total))}}/{self.total}]"

    def speaker(self, number: int, job: Job) -> Callable[[str], None]:
        """Says how one run goes."""
        start = f"{self.tag(number)} {job.label} · "
        return lambda words: say(start + words)


def train_here(pending: Sequence[Job]) -> None:
    """One run after the other, in this process."""
    progress = Progress(len(pending), 1)
    for number, job in enumerate(pending, 1):
        began = time.monotonic()
        runs.link_text(job)
        try:
            runs.carry_out(job, progress.speaker(number, job))
        except (InterruptedTrainingError, KeyboardInterrupt) as error:
            raise Interrupted from error
        progress.finished(number, job, time.monotonic() - began)


def train_side_by_side(pending: Sequence[Job], jobs: int) -> None:
    """Some runs at a time, each in a process with its share of the cores.

    Small models gain: one thread each waits for nobody. Every run ends in the same numbers.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    context, progress = get_context("spawn"), Progress(len(pending), jobs)
    waiting, broken = list(enumerate(pending, 1)), False
    active: dict[Any, tuple[SpawnProcess, int, Job, float]] = {}
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        while active or (waiting and not broken):
            while waiting and len(active) < jobs and not broken:
                number, job = waiting.pop(0)
                runs.link_text(job)
                process = context.Process(target=_child, args=(job, progress.tag(number)))
                process.start()
                active[process.sentinel] = (process, number, job, time.monotonic())
            for sentinel in wait(list(active)):
                process, number, job, began = active.pop(sentinel)
                process.join()
                if process.exitcode:
                    broken = True
                else:
                    progress.finished(number, job, time.monotonic() - began)
    except KeyboardInterrupt as error:
        for process, *_ in active.values():
            process.terminate()  # it saves a checkpoint and ends
        for process, *_ in active.values():
            process.join()
        raise Interrupted from error
    if broken:
        raise BadInputError("a run failed, see above; mend it and give the same command again")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _child(job: Job, tag: str) -> None:
    """A process of its own: one run."""
    try:
        runs.carry_out(job, lambda words: say(f"{tag} {job.label} · {words}"))
    except (InterruptedTrainingError, KeyboardInterrupt):
        sys.exit(1)
    except MoescopeError as error:
        say(f"{tag} {job.label} · error: {error}")
        sys.exit(1)


def carry_out(options: Options, chosen: dict[str, Experiment]) -> None:
    """Train what is missing, then write results.json."""
    planned = plan(options, chosen)
    every = [job for jobs in planned.values() for job in jobs]
    say("looking what is finished")
    pending = [job for job in every if runs.read_measured(job) is None]
    say(f"{len(every)} runs, {len(every) - len(pending)} finished, {len(pending)} to do")
    if pending and options.jobs > 1:
        train_side_by_side(pending, options.jobs)
    elif pending:
        train_here(pending)
    made: dict[str, Any] = {}
    for name, jobs in planned.items():
        measured = [_measured(job) for job in jobs]
        made[name] = aggregate(chosen[name], jobs, measured, command_of(options, name))
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "moescope": version("moescope"),
    }
    write_results(options.docs / "results.json", made, machine)


def _measured(job: Job) -> dict[str, Any]:
    found = runs.read_measured(job)
    if found is None:
        raise BadInputError(f"{job.folder} was not measured; give the same command again")
    return found


def pages(options: Options, chosen: dict[str, Experiment]) -> list[Path]:
    """Write the pages of the experiments that have results."""
    path = options.docs / "results.json"
    results = read_results(path)["experiments"]
    written = [
        write_page(name, experiment, results[name], options.docs)
        for name, experiment in chosen.items()
        if name in results
    ]
    if not written:
        raise BadInputError(f"{path}: no results of {', '.join(chosen)} in it")
    return written


def choose(options: Options) -> dict[str, Experiment]:
    """The experiments that were asked for."""
    known = load_experiments(options.experiments)
    if unknown := [name for name in options.only if name not in known]:
        raise BadInputError(f"--only {unknown[0]}: no such experiment; {', '.join(known)}")
    return {n: e for n, e in known.items() if not options.only or n in options.only}


def parse(words: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that tools/build_corpora.py wrote")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--only", action="append", default=[], help="an experiment; repeatable")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each condition (3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument(
        "--set", action="append", default=[], help="section.key=value for every run (a pilot)"
    )
    parser.add_argument("--experiments", type=Path, default=EXPERIMENTS, help="experiments.yaml")
    parser.add_argument("--docs", type=Path, help="where results and pages go; beside that file")
    parser.add_argument("--pages", action="store_true", help="write pages from results.json only")
    given = parser.parse_args(words)
    for name in ("seeds", "jobs"):
        if getattr(given, name) < 1:
            parser.error(f"--{name} {getattr(given, name)}: give 1 or more")
    return Options(
        data=given.data, out=given.out, only=tuple(given.only), seeds=given.seeds, jobs=given.jobs,
        overrides=tuple(given.set), experiments=given.experiments,
        docs=given.docs or given.experiments.parent, pages=given.pages,
    )  # fmt: skip


def main(words: Iterable[str] | None = None) -> int:
    """Run the command; 0 done, 1 interrupted or failed, 2 bad input."""
    options = parse(None if words is None else list(words))
    try:
        require_matplotlib()
        chosen = choose(options)
        if not options.pages:
            carry_out(options, chosen)
        for path in pages(options, chosen):
            print(path)
    except Interrupted:
        say("interrupted; what was done is saved: give the same command again to go on")
        return 1
    except MoescopeError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
