"""From measured runs to results.json: means over seeds and paired differences, with intervals.

The unit is the seed: it decides the first weights, the order of the text and the noise. Every
interval is a Student t-interval at 95 %. It knows nothing of training or pages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student
from tools.experiment_plan import Experiment, Job
from tools.experiment_runs import TAIL, plain

from moescope.metrics.balance import cv_by_chance

__all__ = ["LEVEL", "aggregate", "read_results", "t_interval", "write_results"]

LEVEL = 0.95
_FORMAT = 1
_LIST = re.compile(r"\[([^\[\]{}\"]+)\]")  # of numbers: on one line

Run = Mapping[str, Any]


def t_interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean and Student t-interval: mean ± t(0.975, n−1)·s/√n, s with n − 1.

    Args:
        values: one for each seed.

    Returns:
        ``mean``, ``low``, ``high``, ``n``. Without values the mean is None; with fewer than two,
        the ends are.
    """
    n = len(values)
    mean = math.fsum(values) / n if n else None
    if mean is None or n < 2:
        return {"mean": mean, "low": None, "high": None, "n": n}
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(student.ppf(0.5 + LEVEL / 2, n - 1)) * spread / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def aggregate(
    experiment: Experiment, jobs: Iterable[Job], runs: Iterable[Run], command: str
) -> dict[str, Any]:
    """All figures of one experiment, as they stand in results.json.

    Args:
        experiment: its conditions and what they are compared with.
        jobs: its runs.
        runs: what each measured, in the same order.
        command: that made them.
    """
    by_condition: dict[str, list[Run]] = {c.name: [] for c in experiment.conditions}
    setup: dict[str, Any] = {}
    for job, run in zip(jobs, runs, strict=True):
        by_condition[job.condition].append(run)
        setup = setup or _setup(job)
    conditions = {}
    for condition in experiment.conditions:
        against = experiment.against(condition)
        mine = _good(by_condition[condition.name])
        conditions[condition.name] = {
            "label": condition.label,
            "set": list(condition.set),
            "against": against,
            "failed": [
                {"seed": r["seed"], "why": r["failed"]}
                for r in by_condition[condition.name]
                if r["failed"]
            ],
            "seeds": [r["seed"] for r in mine],
            "parameters": mine[0]["parameters"] if mine else None,
            "active_parameters": mine[0]["active_parameters"] if mine else None,
            "summary": _summary(mine),
            "profiles": _profiles(mine),
            "difference": _differences(mine, _good(by_condition[against])) if against else {},
            "runs": [
                {key: r[key] for key in ("seed", "seconds", "threads", "metrics")} for r in mine
            ],
        }
    return {"command": command, "setup": setup, "conditions": conditions}


def _good(runs: Iterable[Run]) -> list[Run]:
    return [run for run in runs if not run["failed"]]


def _setup(job: Job) -> dict[str, Any]:
    """Sizes that hold for every run, from the recipe that was trained."""
    recipe = job.recipe()
    sizes, step_tokens = recipe.model, recipe.step_tokens
    return {
        "layers": sizes.num_hidden_layers,
        "num_experts": sizes.num_experts,
        "top_k": sizes.top_k,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "vocab_size": recipe.tokenizer.vocab_size if recipe.tokenizer.path is None else None,
        "context": recipe.data.context,
        "sequences": recipe.train.sequences,
        "micro_batches": recipe.train.micro_batches,
        "step_tokens": step_tokens,
        "steps": recipe.num_steps,
        "tokens": recipe.num_steps * step_tokens,
        "learning_rate": recipe.train.learning_rate,
        "heldout_tokens": recipe.data.heldout_tokens,
        "traced_tokens": job.trace.limit,
        "tail": TAIL,
        "cv_chance": cv_by_chance(step_tokens, sizes.num_experts, sizes.top_k),
        "cv_most": math.sqrt(sizes.num_experts / sizes.top_k - 1),
        "max_violation_most": sizes.num_experts / sizes.top_k - 1,
    }


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean and interval over seeds of every metric that was measured."""
    names = dict.fromkeys(name for run in runs for name in run["metrics"])
    made = {}
    for name in names:
        made[name] = t_interval(_known(run["metrics"].get(name) for run in runs))
    return made


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _profiles(runs: Sequence[Run]) -> dict[str, Any]:
    """Curves: the points of every seed, and mean and interval at each."""
    made: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for name in run["profiles"]):
        curves = [run["profiles"][name] for run in runs]
        x = curves[0]["x"]
        assert all(curve["x"] == x for curve in curves), f"{name}: runs differ in x"
        points = [t_interval(_known(v)) for v in zip(*(c["y"] for c in curves), strict=True)]
        made[name] = {"x": x, "seeds": [curve["y"] for curve in curves]} | {
            key: [point[key] for point in points] for key in ("mean", "low", "high")
        }
    return made


def _differences(runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    """Condition minus reference, paired by seed."""
    of_seed = {run["seed"]: run for run in reference}
    pairs = [(run, of_seed[run["seed"]]) for run in runs if run["seed"] in of_seed]
    names = dict.fromkeys(
        n for one, other in pairs for n in one["metrics"] if n in other["metrics"]
    )
    made = {}
    for name in names:
        both = [(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs]
        values = [a - b for a, b in both if a is not None and b is not None]
        signs = {"lower": sum(v < 0 for v in values), "higher": sum(v > 0 for v in values)}
        made[name] = t_interval(values) | signs
    return made


def read_results(path: Path) -> dict[str, Any]:
    """results.json, or an empty one."""
    if not path.is_file():
        return {"format": _FORMAT, "experiments": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_results(
    path: Path, made: Mapping[str, Any], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Put new experiments into results.json; the others in it stay as they are."""
    results = read_results(path)
    for name, experiment in made.items():
        results["experiments"][name] = {**experiment, "machine": dict(machine)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), indent=1, ensure_ascii=False, allow_nan=False)
    text = _LIST.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")
    return results
