"""The figure of an experiment, as SVG by matplotlib; the same results give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tools.experiment_plan import Figure

from moescope.errors import MissingExtraError

__all__ = ["require_matplotlib", "write_figure"]

_COLORS = ("#0072b2", "#c8550a", "#00815c", "#b0568f", "#7a6a00", "#3f7fbf", "#8c3b2a", "#55606b")
_GREY = "#9aa3ab"
_MARKERS = "osD^vP*X"
_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "moescope",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
_WIDTH = 7.2

Conditions = Mapping[str, Any]


def require_matplotlib() -> None:
    """Say at once, not after hours of training, that figures cannot be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "figures", "drawing figures")


def write_figure(
    settings: Figure, conditions: Conditions, titles: Mapping[str, str], percent: bool, path: Path
) -> None:
    """Draw the profiles of an experiment.

    Args:
        settings: panels, profiles and labels.
        conditions: from results.json.
        titles: what each profile is called.
        percent: values are shares, shown times 100.
        path: of the SVG.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    scale = 100 if percent else 1
    with mpl.rc_context(_STYLE):
        canvas = Canvas(layout="constrained")
        if settings.panels == "conditions":
            _by_condition(canvas, settings, conditions, scale)
        else:
            _by_profile(canvas, settings, conditions, titles, scale)
        drawn = io.BytesIO()
        canvas.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    path.write_bytes(drawn.getvalue())


def _by_condition(canvas: Any, settings: Figure, conditions: Conditions, scale: int) -> None:
    """A panel for each condition: its seeds, their mean, and the reference in grey."""
    name = settings.profiles[0]
    having = {key: c for key, c in conditions.items() if name in c["profiles"]}
    columns = min(4 if len(having) > 6 else 3, max(1, len(having)))
    rows = -(-len(having) // columns) or 1
    canvas.set_size_inches(_WIDTH, 0.5 + 1.6 * rows)
    axes = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (key, condition) in zip(axes.ravel(), having.items(), strict=False):
        color = _COLORS[list(conditions).index(key) % len(_COLORS)]
        profile = condition["profiles"][name]
        if condition["against"] in having:
            other = having[condition["against"]]["profiles"][name]
            axis.plot(other["x"], _scaled(other["mean"], scale), color=_GREY, linewidth=1.2)
        for seed in profile["seeds"]:
            axis.plot(profile["x"], _scaled(seed, scale), color=color, linewidth=0.6, alpha=0.6)
        axis.plot(profile["x"], _scaled(profile["mean"], scale), color=color, linewidth=1.6)
        axis.set_title(_wrapped(condition["label"]), loc="left")
        axis.set_ylim(bottom=0)
    for axis in axes.ravel()[len(having) :]:
        axis.set_visible(False)
    canvas.supxlabel(settings.x, fontsize=8)
    canvas.supylabel(settings.y + (", %" if scale == 100 else ""), fontsize=8)


def _by_profile(
    canvas: Any,
    settings: Figure,
    conditions: Conditions,
    titles: Mapping[str, str],
    scale: int,
) -> None:
    """A panel for each profile: every condition with its interval, seeds as dots."""
    canvas.set_size_inches(_WIDTH, 2.8)
    axes = canvas.subplots(1, len(settings.profiles), squeeze=False, sharex=True)[0]
    for axis, name in zip(axes, settings.profiles, strict=True):
        for place, (condition, color) in enumerate(zip(conditions.values(), _COLORS, strict=False)):
            profile = condition["profiles"].get(name)
            if profile is None:
                continue
            shift = 0.12 * (place - (len(conditions) - 1) / 2)
            x, mean = [v + shift for v in profile["x"]], _scaled(profile["mean"], scale)
            for seed in profile["seeds"]:
                axis.plot(x, _scaled(seed, scale), ".", color=color, markersize=3, alpha=0.6)
            axis.errorbar(
                x, mean, yerr=_bars(profile, scale), color=color, linewidth=1.2, elinewidth=0.8,
                capsize=2, marker=_MARKERS[place % len(_MARKERS)], markersize=4,
                label=condition["label"],
            )  # fmt: skip
            axis.set_xticks(profile["x"])
        axis.axhline(0, color=_GREY, linewidth=0.6)
        axis.set_title(titles[name], loc="left")
        axis.set_xlabel(settings.x)
    axes[0].set_ylabel(settings.y + (", %" if scale == 100 else ""))
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        canvas.legend(handles, labels, loc="outside upper left", ncols=len(handles))


def _bars(profile: Mapping[str, Any], scale: int) -> list[list[float]] | None:
    if None in profile["low"]:
        return None
    low = [scale * (m - v) for m, v in zip(profile["mean"], profile["low"], strict=True)]
    high = [scale * (v - m) for m, v in zip(profile["mean"], profile["high"], strict=True)]
    return [low, high]


def _scaled(values: list[float], scale: int) -> list[float]:
    return [scale * value for value in values]


def _wrapped(label: str, width: int = 24) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(label, width))
