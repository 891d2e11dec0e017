"""The page of a training run: rewritten while the run goes on, and reloading itself until it ends.

See `moescope.report.page`. Data goes in as a plain dict; nothing here knows a model, a router or a
file of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moescope.report.about import label
from moescope.report.frames import plain, tidy
from moescope.report.page import fill_page, write_page
from moescope.report.training_data import (
    Floats,
    column,
    figures_of,
    last_rows,
    present,
)
from moescope.words import counted, percent

_RECENT = 20
"""Logged steps that a card's training loss is the mean of."""

_STATUS = ("running", "finished", "stopped")
_SCRIPTS = (
    "heatmap.js", "training_live.js", "training_chart.js", "training_loss.js",
    "training_routing.js", "training_loads.js", "training_steps.js",
)  # fmt: skip


def write_training_page(data: dict[str, Any], path: str | Path) -> Path:
    """Write the page of a run so that a reader never meets half a file.

    Returns:
        The path. The same data gives the same bytes.

    Raises:
        WriteError: disk full or no permission.
    """
    return write_page(path, training_page(data))


def training_page(data: dict[str, Any]) -> str:
    """The page that shows a training run as it stands.

    Everything but ``name`` and ``status`` may be absent or None; what is absent is not drawn, or
    the page says that it is not there yet. Not-finite numbers count as absent. Rows may repeat a
    step (a resumed run): the last one counts.

    Args:
        data: ``name``; ``status`` (running, finished, stopped); ``message``; ``refresh_seconds``;
            ``recipe`` (flat, ``section.key``); ``about``, what to look for; ``notes``; ``model``;
            ``progress``; the columns ``steps``, ``layers`` and ``domains``; ``checkpoints``;
            ``drops``. Losses are nats per token; auxiliary losses are before their weights;
            entropies are over log E; shares are in [0, 1]. With ``tokens`` in ``layers``, the
            tokens that a row counts, the CV to expect by chance is drawn too, and with ``load``,
            a share of every expert, the load over the steps.

    Returns:
        HTML. While ``status`` is running it reloads itself every ``refresh_seconds``.

    Raises:
        ValueError: another status, or columns of unequal length.
    """
    if data["status"] not in _STATUS:
        raise ValueError(f"status is {data['status']!r}; it is one of: {', '.join(_STATUS)}")
    figures = figures_of(data)
    stopped = data["status"] == "stopped"
    alert = {"level": "bad", "word": "Stopped."} if stopped else {"level": "note"}
    message = data.get("message")
    return fill_page(
        "training.html.j2",
        _SCRIPTS,
        tidy(figures, 6),
        title=str(data["name"]),
        alerts=[alert | {"text": str(message)}] if message else [],
        style="training.css",
        status=data["status"],
        refresh=figures["refresh"],
        head=_head(data),
        knobs=knobs(data.get("recipe") or {}),
        about=data.get("about"),
        facts=_cards(data, figures),
        remarks=[str(n) for n in data.get("notes") or ()],
        recipe=_recipe(data.get("recipe") or {}),
        checkpoints=_checkpoints(data.get("checkpoints") or ()),
        has=present(figures),
    )


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


_WEIGHTS = ("load_balancing", "router_z", "importance", "load", "bias_update")


def knobs(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings that decide how the experts are used, in words, for the head of a page."""
    kind = recipe.get("router.kind")
    if kind is None:
        return []
    noisy = (
        "" if kind != "noisy_topk" else " with noise" if recipe["router.noise"] else ", no noise"
    )
    weights = [f"{name} {w}" for name in _WEIGHTS if (w := _weight(recipe, f"balance.{name}"))]
    factor = recipe.get("capacity.train")
    limit = f"{factor:g} of even, then {recipe['capacity.overflow']}" if factor else "no limit"
    return [
        ("router", f"{kind}{noisy}"),
        ("experts", f"{recipe['model.num_experts']}, top-{recipe['model.top_k']}"),
        ("balancing", ", ".join(weights) or "none"),
        ("capacity", "by the rule" if kind == "expert_choice" else limit),
        ("learning rate", plain(recipe["train.learning_rate"])),
        ("seed", plain(recipe["seed"])),
    ]


def _weight(recipe: Mapping[str, Any], name: str) -> str:
    """A weight or a ramp; nothing for a weight of 0."""
    if f"{name}.start" in recipe:
        return f"{recipe[f'{name}.start']:g} to {recipe[f'{name}.end']:g}"
    value = recipe.get(name)
    return f"{value:g}" if value else ""


def _pair(progress: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    return progress.get(name), progress.get(f"total_{name}")


def _model(model: Mapping[str, Any]) -> str:
    layers = list(model.get("layers") or ())
    active = _said(model.get("active_parameters"), lambda v: f" ({_big(v)} at work per token)")
    parts = [
        _said(model.get("architecture"), str),
        _said(model.get("parameters"), lambda v: f"{_big(v)} parameters{active or ''}"),
        f"{counted(len(layers), 'MoE layer')} of {model.get('num_experts')} experts, "
        f"{model.get('top_k')} chosen for each token"
        if layers
        else None,
    ]
    return " · ".join(p for p in parts if p)


def _cards(data: dict[str, Any], figures: dict[str, Any]) -> list[dict[str, str]]:
    """The numbers that say whether the run is well."""
    table = data.get("steps") or {}
    rows = last_rows(table.get("step") or ())
    cards = []

    def card(value: str, text: str, level: str = "") -> None:
        cards.append({"value": value, "label": text, "level": level})

    loss = column(table, "loss", rows)
    if loss is not None:
        recent = loss[np.isfinite(loss)][-_RECENT:]
        card(f"{recent.mean():.3f}", f"training loss, nats per token ({_over(recent)})")
    if figures["domains"] and math.isfinite(figures["domains"]["last"]["mean"]):
        _heldout_card(figures["domains"]["last"], card)
    if figures["routing"]:
        _routing_cards(figures, card)
    dropped = column(table, "dropped_share", rows)
    if dropped is not None:
        recent = dropped[np.isfinite(dropped)][-_RECENT:]
        card(
            percent(float(recent.mean())),
            f"of the assignments dropped in training ({_over(recent)})",
        )
    return cards


def _over(recent: Floats) -> str:
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
        place = sections.setdefault(section if dot else "run", [])
        place.append((name if dot else section, plain(_without_folder(value))))
    return list(sections.items())


def _without_folder(value: Any) -> Any:
    return label(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _checkpoints(checkpoints: Any) -> list[dict[str, str]]:
    return [
        {
            "step": _said(c.get("step"), "{:,}".format) or "–",
            "share": _said(c.get("share"), percent) or "–",
            "path": plain(_without_folder(c.get("path"))),
            "kept": "kept" if c.get("kept") else "to resume from",
        }
        for c in checkpoints
    ]


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
