"""A Markdown page and a figure for each experiment, from results.json and experiments.yaml.

No number is typed here: every figure comes out of the results, and every sentence whose truth
depends on a figure is made by rule from an interval. The same results give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from tools.experiment_figures import write_figure
from tools.experiment_plan import Experiment
from tools.experiment_words import MEASURES, PROFILES, Measure, apart, difference, estimate, verdict

from moescope.errors import BadInputError

__all__ = ["write_page"]

_TEMPLATE = Path(__file__).with_name("experiment_page.md.j2")
_COLUMN = 105
_MOST_COLUMNS = 5
_PAST = " An interval may reach past what is possible, such as a share below 0."


def write_page(name: str, experiment: Experiment, result: Mapping[str, Any], folder: Path) -> Path:
    """Write NAME.md and NAME.svg.

    Args:
        name: of the experiment.
        experiment: its words.
        result: its part of results.json.
        folder: where to.

    Raises:
        BadInputError: results of other conditions than the experiment has, or an unknown measure.
        MissingExtraError: matplotlib is not installed.
    """
    expected = [condition.name for condition in experiment.conditions]
    if list(result["conditions"]) != expected:
        raise BadInputError(
            f"results.json has the conditions {', '.join(result['conditions'])} of {name}, but "
            f"experiments.yaml has {', '.join(expected)}; run: python tools/experiments.py"
        )
    for known, used in (
        (MEASURES, experiment.metrics),
        (PROFILES, (*experiment.tables, *experiment.figure.profiles)),
    ):
        if unknown := [n for n in used if n not in known]:
            raise BadInputError(f"{name}: no measure {unknown[0]!r}; there are {', '.join(known)}")
    titles = {profile: PROFILES[profile].label for profile in experiment.figure.profiles}
    percent = any(PROFILES[p].percent for p in experiment.figure.profiles)
    write_figure(experiment.figure, result["conditions"], titles, percent, folder / f"{name}.svg")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    path = folder / f"{name}.md"
    path.write_text(template.render(_words(name, experiment, result)), encoding="utf-8")
    return path


def _words(name: str, experiment: Experiment, result: Mapping[str, Any]) -> dict[str, Any]:
    conditions, setup = result["conditions"], result["setup"]
    metrics = [m for m in experiment.metrics if any(m in c["summary"] for c in conditions.values())]
    return {
        "title": experiment.title,
        "question": _wrapped(experiment.question),
        "command": result["command"],
        "recipe": experiment.recipe,
        "setup": _wrapped(_setup(result)),
        "conditions": _conditions_table(conditions),
        "seeds": _wrapped(f"Mean over seeds [95 % t-interval]. {_seeds(conditions)}{_PAST}"),
        "failures": _failures(conditions),
        "measures": _measures(conditions, metrics, setup),
        "summary": _parts(_summary_table, conditions, metrics),
        "tables": [_profile_table(conditions, p) for p in experiment.tables],
        "figure": {
            "file": f"{name}.svg",
            "alt": f"{experiment.figure.y} by {experiment.figure.x}, for each condition",
            "caption": _wrapped(experiment.figure.caption),
        },
        "differences": _parts(_difference_table, conditions, metrics),
        "shows": _bullets(*_shows(experiment, result)),
        "not_shown": _bullets(
            *experiment.not_shown,
            "Intervals are over seeds (first weights, order of the text, noise). Other text, sizes "
            "or machines are not in them.",
            _many(conditions, metrics),
        ),
    }


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        " ".join(text.split()),
        _COLUMN,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _bullets(*lines: str) -> str:
    return "\n".join(_wrapped(f"- {line}", "  ") for line in lines)


def _parts(table: Callable[..., str], conditions: Mapping[str, Any], names: Sequence[str]) -> str:
    """A wide table as some narrow ones."""
    count = -(-len(names) // _MOST_COLUMNS)
    size = -(-len(names) // count)
    return "\n\n".join(table(conditions, names[i : i + size]) for i in range(0, len(names), size))


def _setup(result: Mapping[str, Any]) -> str:
    setup, conditions = result["setup"], result["conditions"].values()
    sizes = sorted({c["parameters"] for c in conditions if c["parameters"]})
    seconds = sorted(run["seconds"] for c in conditions for run in c["runs"])
    parameters = " or ".join(f"{size:,}" for size in sizes) or "unknown"
    vocabulary = f", a vocabulary of {setup['vocab_size']:,}" if setup["vocab_size"] else ""
    sentences = [
        f"{setup['layers']} layers, {setup['num_experts']} experts, top-{setup['top_k']}, hidden "
        f"size {setup['hidden_size']}, expert size {setup['intermediate_size']}{vocabulary}: "
        f"{parameters} parameters.",
        f"{setup['steps']:,} steps of {setup['step_tokens']:,} tokens, {setup['tokens']:,} in all: "
        f"{_count(setup['micro_batches'], 'micro-batch', 'es')} of "
        f"{_count(setup['sequences'], 'sequence')} of {setup['context']} tokens.",
        f"Peak learning rate {setup['learning_rate']:g}.",
    ]
    if seconds:
        machine = result["machine"]
        threads = sorted({run["threads"] for c in conditions for run in c["runs"]})
        each = " or ".join(_count(number, "thread") for number in threads)
        sentences.append(
            f"Training took {seconds[0]:.0f} to {seconds[-1]:.0f} s a run ({each} of "
            f"{machine['cores']} cores, torch {machine['torch']}); what else ran on the machine is "
            "not known."
        )
    return " ".join(sentences)


def _count(number: int, name: str, plural: str = "s") -> str:
    return f"{number} {name}{'' if number == 1 else plural}"


def _seeds(conditions: Mapping[str, Any]) -> str:
    counts = sorted({len(c["seeds"]) for c in conditions.values()})
    if len(counts) == 1:
        return f"n = {counts[0]} for every condition."
    return "n by condition: " + ", ".join(
        f"{c['label']} {len(c['seeds'])}" for c in conditions.values()
    ) + "."  # fmt: skip


def _failures(conditions: Mapping[str, Any]) -> list[str]:
    return [
        f"- {c['label']}, seed {f['seed']}: broke down and is left out ({f['why']})."
        for c in conditions.values()
        for f in c["failed"]
    ]


def _measures(
    conditions: Mapping[str, Any], metrics: Sequence[str], setup: Mapping[str, Any]
) -> str:
    """What each column is, and the figures to hold them against."""
    lines = [f"**{MEASURES[m].label}**: {MEASURES[m].about}." for m in metrics]
    if "cv" in metrics:
        lines.append(
            f"Batches are those logged in the last {100 * setup['tail']:g} % of the steps, with "
            f"{setup['step_tokens']:,} tokens each; figures of layers are means of the layers. "
            f"Chance gives a CV of {setup['cv_chance']:.3f}; the most is {setup['cv_most']:.2f}, "
            f"and {setup['max_violation_most']:g} for MaxVio."
        )
    unigram = next(
        (u["mean"] for c in conditions.values() for u in [c["summary"].get("unigram_loss")] if u),
        None,
    )
    if unigram is not None:
        lines.append(f"Token shares of the training text alone give a loss of {unigram:.3f}.")
    lines.append(
        f"Held-out loss reads {setup['heldout_tokens']:,} tokens of each domain at most, the "
        f"trace of the saved model {setup['traced_tokens']:,}."
    )
    return _bullets(*lines)


def _head(measure: Measure) -> str:
    return measure.label + (", %" if measure.percent else "")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], align: str = "---:") -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    names = list(head)
    rule = f"| --- |{f' {align} |' * (len(names) - 1)}"
    return "\n".join([line(names), rule, *map(line, rows)])


def _conditions_table(conditions: Mapping[str, Any]) -> str:
    rows = (
        [
            c["label"],
            ", ".join(f"`{s}`" for s in c["set"]) or "none",
            conditions[c["against"]]["label"] if c["against"] else "–",
        ]
        for c in conditions.values()
    )
    return _table(["condition", "settings over the base recipe", "compared with"], rows, "---")


def _summary_table(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    return _table(
        ["condition", *(_head(MEASURES[m]) for m in metrics)],
        (
            [c["label"], *(estimate(c["summary"].get(m), MEASURES[m]) for m in metrics)]
            for c in conditions.values()
        ),
    )


def _difference_table(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    rows = []
    for c in conditions.values():
        if not c["against"]:
            continue
        cells = [
            difference(found, MEASURES[m]) if found and found["mean"] is not None else "–"
            for m in metrics
            for found in [c["difference"].get(m)]
        ]
        rows.append([f"{c['label']} − {conditions[c['against']]['label']}", *cells])
    return _table(["condition", *(_head(MEASURES[m]) for m in metrics)], rows)


def _profile_table(conditions: Mapping[str, Any], name: str) -> dict[str, str]:
    measure = PROFILES[name]
    having = [c for c in conditions.values() if name in c["profiles"]]
    rows = []
    for c in having:
        p = c["profiles"][name]
        points = zip(p["mean"], p["low"], p["high"], strict=True)
        cells = [estimate({"mean": m, "low": lo, "high": hi}, measure) for m, lo, hi in points]
        rows.append([c["label"], *cells])
    head = ["condition", *(str(x) for x in (having[0]["profiles"][name]["x"] if having else []))]
    return {"title": f"{measure.label}:", "body": _table(head, rows)}


def _shows(experiment: Experiment, result: Mapping[str, Any]) -> Iterable[str]:
    """A line for each condition: references as they are, the others against theirs."""
    conditions = result["conditions"]
    for c in conditions.values():
        label = f"**{c['label']}**"
        if not c["against"]:
            found = [
                f"{MEASURES[m].label} {estimate(c['summary'].get(m), MEASURES[m])}"
                + (" %" if MEASURES[m].percent else "")
                for m in experiment.headline
            ]
            yield f"{label} (reference): {', '.join(found)}."
            continue
        said = [verdict(c["difference"].get(m), MEASURES[m]) for m in experiment.headline]
        yield f"{label} against {conditions[c['against']]['label']}: {'; '.join(said)}."


def _many(conditions: Mapping[str, Any], metrics: Sequence[str]) -> str:
    """How many differences there are, and how many would seem apart by chance."""
    found = [
        c["difference"][m] for c in conditions.values() for m in metrics if m in c["difference"]
    ]
    tested = [f for f in found if f["low"] is not None and (f["lower"] or f["higher"])]
    count = sum(apart(f) for f in tested)
    if not tested:
        return "With one seed there are no intervals, so nothing is told apart."
    return (
        f"{len(tested)} differences with an interval each, not corrected for their number: "
        f"{count} leave out 0, about {0.05 * len(tested):.1f} would by chance if nothing "
        "differed. Few seeds make wide intervals: not told apart is not the same."
    )
