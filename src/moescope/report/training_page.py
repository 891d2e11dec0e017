"""The page of a training run: rewritten while the run goes on, and reloading itself until it ends.

One self-contained file like the report of a trace, with the same scripts, colours and content
security policy (see `moescope.report.page`). Data goes in as a plain dict; nothing here knows a
model, a router or a file of the run. What a reader must see even without scripts (status, numbers,
notes, recipe) is written as escaped text; the figures are drawn from embedded JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from moescope.metrics.balance import cv_by_chance
from moescope.report.about import label
from moescope.report.frames import percent, tidy
from moescope.report.page import _HERE, _LIBRARIES, _TEMPLATES, _policy, _source, embed_json
from moescope.trace.store import write_bytes

__all__ = ["POINTS", "training_page", "write_training_page"]

POINTS = 1000
"""Most points of a line; a longer run is drawn as means over equally many logged steps."""

_CELLS = 15_000
"""Most values of one measure over steps × layers, or steps × domains."""

_RECENT = 20
"""Logged steps that a card's training loss is the mean of."""

_STATUS = ("running", "finished", "stopped")
_SCRIPTS = (
    "core.js", "theme.js", "training_live.js", "controls.js", "tables.js", "heatmap.js",
    "training_chart.js", "training_loss.js", "training_routing.js", "training_steps.js", "main.js",
    "training_resume.js",
)  # fmt: skip
_STEP_COLUMNS = (
    "tokens", "loss", "load_balancing_loss", "router_z_loss", "importance_loss", "load_loss",
    "learning_rate", "gradient_norm", "tokens_per_second", "dropped_share",
)  # fmt: skip
_LAYER_COLUMNS = (
    "cv", "max_violation", "load_entropy", "router_entropy", "dead_share", "dropped_share",
    "saturation",
)  # fmt: skip

_Floats = NDArray[np.float64]


def write_training_page(data: dict[str, Any], path: str | Path) -> Path:
    """Write the page of a run so that a reader never meets half a file.

    Args:
        data: see `training_page`.
        path: where to; folders are made.

    Returns:
        The path. The same data gives the same bytes.

    Raises:
        WriteError: disk full or no permission.
    """
    target = Path(path)
    # half a surrogate pair in a file name cannot be written as UTF-8
    write_bytes(target, training_page(data).encode("utf-8", "replace"))
    return target


def training_page(data: dict[str, Any]) -> str:
    """The page that shows a training run as it stands.

    Everything but ``name`` and ``status`` may be absent or None; what is absent is not drawn, or
    the page says that it is not there yet. Not-finite numbers count as absent. Rows may repeat a
    step (a resumed run): the last one counts.

    Args:
        data: ``name``; ``status`` (running, finished, stopped); ``message``; ``refresh_seconds``;
            ``recipe`` (flat, ``section.key``); ``notes``; ``model``; ``progress``; the columns
            ``steps``, ``layers`` and ``domains``; ``loads``; ``checkpoints``; ``drops``. Losses
            are nats per token; auxiliary losses are before their weights; entropies are over
            log E; shares are in [0, 1]. With ``tokens`` in ``layers``, the tokens that a row
            counts, the CV to expect by chance is drawn too.

    Returns:
        HTML. While ``status`` is running it reloads itself every ``refresh_seconds``.

    Raises:
        ValueError: another status, or columns of unequal length.
    """
    if data["status"] not in _STATUS:
        raise ValueError(f"status is {data['status']!r}; it is one of: {', '.join(_STATUS)}")
    figures = _figures(data)
    scripts = [_source(_HERE / "vendor" / name) for name in _LIBRARIES]
    scripts += [_source(_TEMPLATES / "js" / name) for name in _SCRIPTS]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = [(_TEMPLATES / f).read_text(encoding="utf-8") for f in ("style.css", "training.css")]
    return environment.get_template("training.html.j2").render(
        name=str(data["name"]),
        status=data["status"],
        message=data.get("message"),
        refresh=figures["refresh"],
        head=_head(data),
        cards=_cards(data, figures),
        notes=[str(n) for n in data.get("notes") or ()],
        recipe=_recipe(data.get("recipe") or {}),
        checkpoints=_checkpoints(data.get("checkpoints") or ()),
        has=_present(figures),
        policy=_policy(scripts),
        style=Markup("\n".join(styles)),
        scripts=[Markup(s) for s in scripts],
        data=Markup(embed_json(tidy(figures, 6))),
    )


# What the figures are drawn from.


def _figures(data: dict[str, Any]) -> dict[str, Any]:
    model, loads = data.get("model") or {}, data.get("loads") or None
    domains = _domains(data.get("domains") or {})
    layers = model.get("layers") or (loads or {}).get("layers") or ()
    running = data["status"] == "running"
    return {
        "phases": ["training"],  # what the scripts of a report ask for: one view, its domains
        "views": {"training": {"domains": domains["names"] if domains else []}},
        "layers": [
            {"layer": n, "experts": model.get("num_experts") or 0, "top_k": model.get("top_k")}
            for n in layers
        ],
        "experts": model.get("num_experts"),
        "top_k": model.get("top_k"),
        "refresh": max(1, int(data.get("refresh_seconds") or 15)) if running else None,
        "steps": _steps(data.get("steps") or {}),
        "domains": domains,
        "routing": _routing(data.get("layers") or {}, model),
        "loads": loads,
        "drops": data.get("drops") or None,
        "checkpoints": [c.get("step") for c in data.get("checkpoints") or () if c.get("kept")],
    }


def _present(figures: dict[str, Any]) -> dict[str, bool]:
    """Which figures there is something to draw for."""
    steps, routing = figures["steps"] or {}, figures["routing"]
    aux = ("load_balancing_loss", "router_z_loss", "importance_loss", "load_loss")
    return {
        "anything": bool(steps or figures["domains"] or routing or figures["loads"]),
        "loss": "loss" in steps or figures["domains"] is not None,
        "domains": figures["domains"] is not None,
        "routing": routing is not None,
        "loads": figures["loads"] is not None,
        "aux": any(name in steps for name in aux),
        "dropped": "dropped_share" in steps,
        "drops": figures["drops"] is not None,
        "optimizer": "learning_rate" in steps or "gradient_norm" in steps,
        "throughput": "tokens_per_second" in steps,
    }


def _steps(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns that hold a number, as means over ``each`` logged steps, and where each mean lies."""
    rows = _last_rows(table.get("step") or ())
    if not rows:
        return None
    each = math.ceil(len(rows) / POINTS)
    step = _floats(table["step"])[rows]
    made: dict[str, Any] = {
        "each": each,
        "logged": len(rows),
        "step": _whole(_means(step, each)),
        "from": step[::each].astype(int),
        "to": step[[*range(each - 1, len(rows) - 1, each), len(rows) - 1]].astype(int),
    }
    for name in _STEP_COLUMNS:
        values = _column(table, name, rows)
        if values is not None:
            mean = _means(values, each)
            made[name] = _whole(np.rint(mean)) if name == "tokens" else mean
            if name == "gradient_norm" and each > 1:
                made["gradient_norm_max"] = _highest(values, each)
    return made


def _routing(table: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any] | None:
    """Measures as step × layer, with those of the last logged step unthinned."""
    steps, layers, place = _pivot(table, "layer", sorted)
    if not steps:
        return None
    each = math.ceil(len(steps) / min(POINTS, max(60, _CELLS // len(layers))))
    measures, last = {}, {}
    for name in _LAYER_COLUMNS:
        matrix = place(name)
        if matrix is not None:
            measures[name] = _means(matrix, each)
            known = np.flatnonzero(np.isfinite(matrix).any(axis=1))
            last[name] = {"step": steps[known[-1]], "values": matrix[known[-1]]}
    if not measures:
        return None
    tokens, experts, top_k = place("tokens"), model.get("num_experts"), model.get("top_k")
    counted = 0 if tokens is None else int(np.nanmedian(tokens))
    chance = cv_by_chance(counted, experts, top_k) if counted and experts and top_k else None
    return {
        "each": each, "logged": len(steps), "layers": layers, "tokens": counted,
        "cv_chance": chance,
        "step": _whole(_means(_floats(steps), each)), "measures": measures, "last": last,
    }  # fmt: skip


def _domains(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """Held-out losses as evaluation × domain, their means weighted by tokens, the latest apart."""
    steps, names, place = _pivot(table, "domain", lambda found: list(dict.fromkeys(found)))
    loss = place("loss")
    if not steps or loss is None:
        return None
    tokens, unigram = place("tokens"), place("unigram")
    each = math.ceil(len(steps) / min(POINTS, max(60, _CELLS // len(names))))
    latest = int(np.flatnonzero(np.isfinite(loss).any(axis=1))[-1])
    baseline = np.full(len(names), np.nan) if unigram is None else _latest(unigram)
    mean = _weighted(loss, tokens)
    return {
        "names": [str(n) for n in names], "each": each,
        "step": _whole(_means(_floats(steps), each)),
        "loss": _means(loss, each),
        "mean": _means(mean, each),
        "unigram": baseline,
        "last": {
            "step": steps[latest],
            "loss": loss[latest],
            "tokens": None if tokens is None else _whole(tokens[latest]),
            "mean": mean[latest],
            # over the same domains as the mean
            "unigram": _weighted(
                np.where(np.isfinite(loss), baseline, np.nan)[latest : latest + 1],
                None if tokens is None else tokens[latest : latest + 1],
            )[0],
        },
    }  # fmt: skip


# Columns to arrays.


def _floats(values: Any) -> _Floats:
    """None and what is not finite become NaN."""
    array = np.array([math.nan if v is None else v for v in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def _last_rows(steps: Any) -> list[int]:
    """The last row of every step, by step."""
    found = {step: row for row, step in enumerate(steps)}
    return [found[step] for step in sorted(found)]


def _column(table: Mapping[str, Any], name: str, rows: list[int]) -> _Floats | None:
    values = table.get(name)
    if not values:
        return None
    if len(values) != len(table["step"]):
        raise ValueError(
            f"column {name} has {len(values)} rows, expected {len(table['step'])} as in step"
        )
    array = _floats(values)[rows]
    return array if np.isfinite(array).any() else None


def _pivot(table: Mapping[str, Any], by: str, order: Any) -> tuple[list[int], list[Any], Any]:
    """Steps, groups, and a function from a column's name to its step × group array."""
    at, groups = list(table.get("step") or ()), list(table.get(by) or ())
    if len(at) != len(groups):
        raise ValueError(f"column {by} has {len(groups)} rows, expected {len(at)} as in step")
    steps, names = sorted(set(at)), list(order(set(groups) if order is sorted else groups))
    row = {s: i for i, s in enumerate(steps)}
    column = {g: i for i, g in enumerate(names)}
    where = ([row[s] for s in at], [column[g] for g in groups])

    def place(name: str) -> _Floats | None:
        values = _column(table, name, list(range(len(at))))
        if values is None:
            return None
        matrix = np.full((len(steps), len(names)), np.nan)
        matrix[where] = values
        return matrix

    return steps, names, place


def _blocks(values: _Floats, each: int) -> _Floats:
    """Rows in blocks of ``each``; the last one is filled up with NaN."""
    short = -len(values) % each
    full = np.concatenate([values, np.full((short, *values.shape[1:]), np.nan)])
    return full.reshape(-1, each, *values.shape[1:])


def _means(values: _Floats, each: int) -> _Floats:
    """Means of what is known in every block of ``each`` rows; NaN where nothing is."""
    blocks = _blocks(values, each)
    known = np.isfinite(blocks)
    with np.errstate(invalid="ignore"):
        mean: _Floats = np.where(known, blocks, 0.0).sum(axis=1) / known.sum(axis=1)
    return mean


def _whole(values: _Floats) -> list[int | float | None]:
    """Whole numbers as such, so that none of their digits is rounded away."""
    return [None if math.isnan(v) else int(v) if v.is_integer() else v for v in map(float, values)]


def _highest(values: _Floats, each: int) -> _Floats:
    blocks = _blocks(values, each)
    high: _Floats = np.where(np.isfinite(blocks), blocks, -np.inf).max(axis=1)
    return high


def _latest(matrix: _Floats) -> _Floats:
    """The last known value of every column."""
    known = np.isfinite(matrix)
    last = matrix.shape[0] - 1 - known[::-1].argmax(axis=0)
    values: _Floats = matrix[last, np.arange(matrix.shape[1])]
    return values


def _weighted(values: _Floats, tokens: _Floats | None) -> _Floats:
    """Mean over the columns, weighted by tokens; evenly where they are not given."""
    weight = np.ones_like(values) if tokens is None else np.nan_to_num(tokens, nan=0.0)
    weight = np.where(np.isfinite(values), weight, 0.0)
    with np.errstate(invalid="ignore"):
        mean: _Floats = (np.nan_to_num(values) * weight).sum(axis=1) / weight.sum(axis=1)
    return mean


# What is written as text.


def _head(data: dict[str, Any]) -> dict[str, Any]:
    """Share done, and the lines under the name."""
    progress, model = data.get("progress") or {}, data.get("model") or {}
    step, total = progress.get("step"), progress.get("total_steps")
    done, aim = (step, total) if step is not None and total else _pair(progress, "tokens")
    share = min(1.0, done / aim) if done is not None and aim else None
    facts = [
        _of("step", step, total, "{:,}".format),
        _of("tokens", *_pair(progress, "tokens"), _big),
        _said(progress.get("tokens_per_second"), lambda v: f"{_big(v)} tokens per second"),
        _said(progress.get("seconds"), lambda v: f"{_duration(v)} so far"),
    ]
    left = progress.get("seconds_left") if data["status"] == "running" else None
    facts.append(_said(left, lambda v: f"about {_duration(v)} left"))
    return {
        "share": None if share is None else f"{math.floor(1000 * share) / 10:.1f}",
        "short": None if share is None else f"{math.floor(100 * share)} %",
        "facts": [f for f in facts if f],
        "model": _model(model),
    }


def _pair(progress: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    return progress.get(name), progress.get(f"total_{name}")


def _model(model: Mapping[str, Any]) -> str:
    layers = list(model.get("layers") or ())
    active = _said(model.get("active_parameters"), lambda v: f" ({_big(v)} at work per token)")
    parts = [
        _said(model.get("architecture"), str),
        _said(model.get("parameters"), lambda v: f"{_big(v)} parameters{active or ''}"),
        f"{len(layers)} MoE layer{'s' if len(layers) > 1 else ''} "
        f"of {model.get('num_experts')} experts, {model.get('top_k')} chosen for each token"
        if layers
        else None,
    ]
    return " · ".join(p for p in parts if p)


def _cards(data: dict[str, Any], figures: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers that say whether the run is well."""
    table = data.get("steps") or {}
    rows = _last_rows(table.get("step") or ())
    cards = []

    def card(value: str, text: str, level: str = "") -> None:
        cards.append({"value": value, "label": text, "level": level})

    loss = _column(table, "loss", rows)
    if loss is not None:
        recent = loss[np.isfinite(loss)][-_RECENT:]
        card(f"{recent.mean():.3f}", f"training loss, nats per token ({_over(recent)})")
    if figures["domains"] and math.isfinite(figures["domains"]["last"]["mean"]):
        _heldout_card(figures["domains"]["last"], card)
    if figures["routing"]:
        _routing_cards(figures, card)
    dropped = _column(table, "dropped_share", rows)
    if dropped is not None:
        recent = dropped[np.isfinite(dropped)][-_RECENT:]
        card(
            percent(float(recent.mean())),
            f"of the assignments dropped in training ({_over(recent)})",
        )
    return cards


def _over(recent: _Floats) -> str:
    return f"mean of the last {len(recent)} logged steps" if len(recent) > 1 else "first step"


def _heldout_card(last: dict[str, Any], card: Any) -> None:
    text = f"held-out loss at step {last['step']:,}"
    if math.isfinite(last["unigram"]):
        gain = last["unigram"] - last["mean"]
        side = "less than" if gain >= 0 else "more than"
        text += f", {abs(gain):.3f} {side} the unigram model's {last['unigram']:.3f}"
    card(f"{last['mean']:.3f}", text)


def _routing_cards(figures: dict[str, Any], card: Any) -> None:
    layers, last = figures["routing"]["layers"], figures["routing"]["last"]
    if "max_violation" in last:
        values = last["max_violation"]["values"]
        worst = int(np.nanargmax(values))
        card(
            f"{values[worst]:.2f}",
            f"largest MaxVio, of layer {layers[worst]}: its busiest expert has "
            f"{1 + values[worst]:.2f} times an even load",
        )
    if "dead_share" in last:
        shares, experts = last["dead_share"]["values"], figures["experts"]
        known = shares[np.isfinite(shares)]
        dead = percent(float(known.mean()))
        if experts:
            dead = f"{int(np.rint(known * experts).sum()):,} of {experts * len(known):,}"
        step = last["dead_share"]["step"]
        level = "watch" if known.any() else ""
        card(dead, f"experts dead: no token of step {step:,} chose them", level)


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Sections with their keys; the folders of this machine are left out of paths."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for key, value in recipe.items():
        section, dot, name = str(key).partition(".")
        shown = label(value) if isinstance(value, str) and Path(value).is_absolute() else value
        place = sections.setdefault(section if dot else "run", [])
        place.append((name if dot else section, _plain(shown)))
    return list(sections.items())


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _checkpoints(checkpoints: Any) -> list[dict[str, str]]:
    return [
        {
            "step": _said(c.get("step"), "{:,}".format) or "–",
            "share": _said(c.get("share"), percent) or "–",
            "path": _plain(label(c.get("path")) if _absolute(c.get("path")) else c.get("path")),
            "kept": "kept" if c.get("kept") else "to resume from",
        }
        for c in checkpoints
    ]


def _absolute(path: Any) -> bool:
    return isinstance(path, str) and Path(path).is_absolute()


def _said(value: Any, form: Any) -> str | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return str(form(value))


def _of(what: str, value: Any, total: Any, form: Any) -> str | None:
    done = _said(value, form)
    if done is None:
        return None
    whole = f" of {form(total)}" if total else ""
    return f"step {done}{whole}" if what == "step" else f"{done}{whole} {what}"


def _big(count: float) -> str:
    """1234567 as '1.23 M'."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            scaled = count / (1e3 if unit == "k" else size)
            return f"{scaled:,.{max(0, 2 - int(math.log10(scaled)))}f} {unit}"
    return f"{count:,.0f}"


def _duration(seconds: float) -> str:
    """5000 as '1 h 23 min'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
