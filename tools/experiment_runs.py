"""One run of an experiment: train it, trace what was trained, write down what was measured.

Tokenizer and tokens are made once for all runs of the same text and linked into each run. What was
measured stands in ``measured.json`` of the run, written last: a run that has it is finished.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tools.experiment_plan import Job

from moescope import CorpusSpec, ModelSpec, TraceOptions, load_model, open_corpus, open_run
from moescope.errors import BadInputError, TrainingError
from moescope.files import LEDGER
from moescope.progress import Progress
from moescope.trace import trace
from moescope.training.data import prepare_data
from moescope.training.log import TrainingLog
from moescope.training.recipe import Recipe
from moescope.training.state import TrainingState
from moescope.training.trainer import train

__all__ = ["MEASURED", "TAIL", "carry_out", "link_text", "plain", "read_measured", "shared_text"]

MEASURED = "measured.json"
TAIL = 0.1
"""Routing at the end of training is the mean over the logged batches of this last share of it."""

_VERSION = 1
_COMPLETE = ".complete"
_DIGITS = 6

Row = dict[str, Any]


def read_measured(job: Job) -> dict[str, Any] | None:
    """What a finished run measured; None if it is not finished or was of other settings or text."""
    path = job.folder / MEASURED
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = found["mark"] == _mark(job) and found["text"] == _fingerprint(shared_text(job))
    return found if same else None


def shared_text(job: Job) -> Path:
    """Tokenizer and tokens that all runs of the same text share, made when they are not there."""
    recipe = job.recipe()
    assert recipe.data.heldout is not None
    corpora = (recipe.data.train.model_dump_json(), recipe.data.heldout.model_dump_json())
    settings = [*_corpora(*corpora), recipe.tokenizer.model_dump_json()]
    settings.append(str(recipe.model.max_position_embeddings))
    shared = job.text / hashlib.sha256(" ".join(settings).encode()).hexdigest()[:12]
    if not (shared / _COMPLETE).exists():
        prepare_data(recipe, shared)
        (shared / _COMPLETE).touch()
    return shared


def link_text(job: Job) -> None:
    """Give a run that has not begun the shared tokenizer and tokens.

    Raises:
        BadInputError: it has tokens of other text; writing there would reach through the links.
    """
    shared = shared_text(job)
    if (job.folder / "tokens" / "index.json").exists():
        if _fingerprint(job.folder) != _fingerprint(shared):
            raise BadInputError(
                f"{job.folder} was begun on other text than --data holds now; delete it or give "
                "another folder with --out"
            )
        return
    for part in ("tokenizer", "tokens"):
        if (shared / part).is_dir():
            target = job.folder / part
            shutil.copytree(shared / part, target, copy_function=_link, dirs_exist_ok=True)
    shutil.copyfile(shared / LEDGER, job.folder / LEDGER)


@cache
def _corpora(*specs: str) -> tuple[str, ...]:
    return tuple(open_corpus(CorpusSpec.model_validate_json(s)).fingerprint() for s in specs)


def _fingerprint(folder: Path) -> str:
    """Of the corpora and the tokenizer behind a folder's tokens."""
    index = json.loads((folder / "tokens" / "index.json").read_text(encoding="utf-8"))
    return str(index["fingerprint"])


def carry_out(job: Job, say: Callable[[str], None]) -> None:
    """Train (or go on training), trace and measure one run.

    A training that breaks down is an outcome: it is written down as failed, with the reason.

    Args:
        job: which.
        say: told what is being done.

    Raises:
        MoescopeError: data or folders that do not fit, a full disk, an interruption.
    """
    recipe = job.recipe()

    def prepare(at: Progress) -> None:
        if not at.unit:  # steps are told by `refresh`, less often
            say(at.stage)

    def refresh(state: TrainingState) -> None:
        if state.step and state.status == "running":
            loss = state.log.rows["steps"][-1]["loss"]
            rate = f"{state.tokens_per_second:,.0f} tokens/s"
            say(f"step {state.step}/{recipe.num_steps} · loss {loss:.3f} · {rate}")

    resume = (job.folder / "recipe.yaml").exists()
    measured: dict[str, Any] = {"mark": _mark(job), "seed": job.seed, "failed": None}
    try:
        done = train(recipe, job.folder, resume=resume, on_progress=prepare, refresh=refresh)
    except TrainingError as error:
        measured["failed"] = str(error).partition(";")[0]
    else:
        measured |= _training(recipe, job.folder)
        say("tracing the held-out text")
        _merge(measured, _saved_model(recipe, job))
        measured["seconds"] = done.state.seconds
        measured["threads"] = torch.get_num_threads()
        measured["parameters"] = done.state.parameters
        measured["active_parameters"] = done.state.active_parameters
    measured["text"] = _fingerprint(job.folder)
    text = json.dumps(plain(measured), indent=1)
    (job.folder / MEASURED).write_text(text, encoding="utf-8")


def _mark(job: Job) -> str:
    """Changes whenever the run would be trained or measured differently."""
    parts = [str(_VERSION), job.recipe().identity(), job.trace.model_dump_json()]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _link(source: str, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _training(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Held-out loss, routing at the end of training, and how the CV went."""
    layers = TrainingLog.read(folder, "layers").to_pylist()
    tail = [row for row in layers if row["step"] > (1 - TAIL) * recipe.num_steps]
    metrics: dict[str, float | None] = {}
    for name in ("cv", "max_violation", "load_entropy", "router_entropy", "dead_share"):
        metrics[name] = _mean(list(_by_layer(tail, name).values()))
    metrics["dead_share_worst"] = max(_by_layer(tail, "dead_share").values())
    limited = recipe.capacity is not None and recipe.capacity.train is not None
    if limited:
        for name in ("dropped_share", "rerouted_share"):
            metrics[name] = _mean(list(_by_layer(tail, name).values()))
    metrics |= _losses(recipe, folder)
    steps = sorted({row["step"] for row in layers})
    cv = [_mean([r["cv"] for r in layers if r["step"] == step]) for step in steps]
    profiles = {"cv_by_step": {"x": steps, "y": cv}}
    if limited:
        drops = TrainingLog.read(folder, "drops").to_pylist()
        profiles["dropped_by_position"] = {
            "x": [row["position_from"] for row in drops],
            "y": [row["dropped_share"] for row in drops],
        }
    return {"metrics": metrics, "profiles": profiles}


def _by_layer(rows: list[Row], name: str) -> dict[int, float]:
    """Each layer's mean over rows."""
    layers = sorted({row["layer"] for row in rows})
    return {n: _mean([row[name] for row in rows if row["layer"] == n]) for n in layers}


def _losses(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Held-out loss at the end, mean of the domains: as the saved model routes, and limited."""
    rows = TrainingLog.read(folder, "domains").to_pylist()
    by_routing: dict[str, list[Row]] = {}
    for row in rows:
        if row["step"] == recipe.num_steps:
            by_routing.setdefault(row["routing"], []).append(row)
    found = {kind: _mean([row["loss"] for row in mine]) for kind, mine in by_routing.items()}
    made = {"heldout_loss": found.get("stock", found["recipe"])}
    if "stock" in found:  # only a limit that holds in evaluation makes the two differ here
        made["heldout_loss_limited"] = found["recipe"]
    return made | {"unigram_loss": _mean([row["unigram"] for row in by_routing["recipe"]])}


def _saved_model(recipe: Recipe, job: Job) -> dict[str, Any]:
    """Routing of the saved model on held-out text, from a trace of it."""
    assert recipe.data.heldout is not None
    target = job.folder / "trace"
    shutil.rmtree(target, ignore_errors=True)  # an unfinished one is faster begun again
    options = TraceOptions(
        keep="sample" if job.trace.information else "aggregates",
        limit=job.trace.limit,
        context=recipe.data.context,
        sample_tokens=job.trace.sample_tokens,
        predictions=False,
    )
    model = load_model(ModelSpec(str(job.folder / "model"), dtype="float32", device="cpu"))
    run = open_run(trace(model, CorpusSpec(**recipe.data.heldout.model_dump()), target, options))
    rows = [r for r in run.table("balance").to_pylist() if r["domain"] == "all"]
    metrics: dict[str, float | None] = {
        "model_cv": _mean([r["cv"] for r in rows]),
        "model_max_violation": _mean([r["max_over_mean"] - 1 for r in rows]),
        "model_load_entropy": _mean([r["entropy"] for r in rows]),
        "model_dead_share": _mean([r["dead_share"] for r in rows]),
        "model_dead_share_worst": max(r["dead_share"] for r in rows),
        "model_tokens": rows[0]["tokens"],
    }
    profiles: dict[str, Any] = {}
    if job.trace.information:
        found = _specialization(run)
        metrics |= found["metrics"]
        profiles = found["profiles"]
    return {"metrics": metrics, "profiles": profiles}


def _specialization(run: Any) -> dict[str, Any]:
    """How much experts and domains have to do with each other."""
    bits = run.table("information").to_pylist()
    columns = {
        "info_domain": "i_expert_domain_bits",
        "info_domain_given_token": "i_expert_domain_given_token_bits",
        "info_token": "i_expert_token_bits",
    }
    metrics = {f"{name}_bits": _mean([r[column] for r in bits]) for name, column in columns.items()}
    profiles = {
        f"{name}_by_layer": {"x": [r["layer"] for r in bits], "y": [r[column] for r in bits]}
        for name, column in columns.items()
    }
    cells = run.table("domain_specialization").to_pylist()
    lifts: dict[tuple[int, int], float] = {}
    for cell in cells:
        lift, key = cell["lift_over_others"], (cell["layer"], cell["expert"])
        if lift is not None and math.isfinite(lift):
            lifts[key] = max(lifts.get(key, 0.0), lift)
    tested = [c["q"] for c in cells if c["q"] is not None and math.isfinite(c["q"])]
    metrics["largest_lift"] = _mean(list(lifts.values())) if lifts else math.nan
    metrics["specialized_cells"] = _mean([q < 0.05 for q in tested]) if tested else math.nan
    return {"metrics": metrics, "profiles": profiles}


def _mean(values: list[Any]) -> float:
    return math.fsum(values) / len(values)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for name, part in other.items():
        into[name] |= part


def plain(value: Any) -> Any:
    """What JSON can hold: numbers of a few digits, None where nothing was measured."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
