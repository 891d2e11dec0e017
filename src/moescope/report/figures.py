"""Figures for a paper: the main ones of the report as PDF and PNG, drawn with matplotlib.

They use the same dict as the page, so a figure and the page never disagree. Fonts are embedded as
TrueType, PNGs have 300 dpi, and widths are those of a full text column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.errors import MissingExtraError
from moescope.files import claim, replacing
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.specialization import Q_LEVEL
from moescope.metrics.view import ALL
from moescope.report.data import report_data

_WIDTH = 6.8
_COLORS = ("#0072b2", "#c8550a", "#00815c", "#b0568f", "#7a6a00", "#3f7fbf", "#8c3b2a", "#55606b")
_SEQUENTIAL, _DIVERGING = "cividis", "PuOr_r"
_MOST_DOMAINS = 8
_TOP = 15
_STYLE = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.bbox": "tight",
}


def write_figures(run: AnalyzedRun, folder: str | Path) -> list[Path]:
    """Draw the main figures.

    Args:
        run: a finished run.
        folder: where to: new, empty, or one that this wrote before.

    Returns:
        The paths written, PDF and PNG of each figure. Figures that the run has no numbers for
        (information without a token sample, differences with one domain) are left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    data = report_data(run)
    view = data["views"][data["phases"][0]]

    def drawing(draw: Callable[[Any, Any, Any], bool]) -> Callable[[Any], bool]:
        return lambda figure: draw(figure, data, view)

    return draw_figures({name: drawing(draw) for name, draw in _FIGURES.items()}, folder)


def require_matplotlib() -> None:
    """Refuse early where figures cannot be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "figures", "drawing figures")


def draw_figures(drawings: Mapping[str, Callable[[Any], bool]], folder: str | Path) -> list[Path]:
    """Draw figures as PDF and PNG into a folder; the same figures give the same bytes.

    Args:
        drawings: by name, what draws into an empty figure; False where there is nothing to draw.
        folder: where to: new, empty, or one that this wrote before.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    paths = []
    with claim(folder, "figures") as target, mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = Figure(layout="constrained")
            if not draw(figure):
                continue
            for kind, extra in (("pdf", {"CreationDate": None}), ("png", {})):
                paths.append(target / f"{name}.{kind}")
                with replacing(paths[-1]) as temporary:
                    figure.savefig(temporary, format=kind, dpi=300, metadata=extra)
    return paths


def _grid(data: dict[str, Any], rates: list[int | None]) -> NDArray[np.float64]:
    """Cells of one group as layers × experts, NaN where a layer has fewer experts."""
    widest = max(layer["experts"] for layer in data["layers"])
    grid = np.full((len(data["layers"]), widest), np.nan)
    start = 0
    for row, layer in enumerate(data["layers"]):
        cells = rates[start : start + layer["experts"]]
        grid[row, : len(cells)] = [np.nan if v is None else v / 10_000 for v in cells]
        start += layer["experts"]
    return grid


def _label_layers(axis: Any, data: dict[str, Any]) -> None:
    numbers = [layer["layer"] for layer in data["layers"]]
    step = max(1, len(numbers) // 12)
    axis.set_yticks(range(0, len(numbers), step), [str(n) for n in numbers[::step]])
    axis.set_ylabel("layer")


def expert_ticks(axis: Any, experts: Sequence[int]) -> None:
    """Numbers of experts along both sides of a matrix, as many as there is room for."""
    ticks = range(0, len(experts), max(1, len(experts) // 8))
    for set_ticks in (axis.set_xticks, axis.set_yticks):
        set_ticks(ticks, [str(experts[t]) for t in ticks])


def _over_layers(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_xlabel("layer")
    axis.locator_params(axis="x", integer=True)


def _activation(figure: Any, data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Activation rate by layer and expert, one panel for each domain."""
    groups = view["rates"]["groups"]
    names = (groups[1:] or [ALL])[:_MOST_DOMAINS]
    grids = [_grid(data, view["rates"]["rate"][groups.index(n)]) for n in names]
    columns = 2 if len(names) > 1 else 1
    rows = -(-len(names) // columns)
    height = 0.55 + 0.11 * len(data["layers"])
    figure.set_size_inches(_WIDTH, min(9.0, rows * height + 0.5))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    top = float(np.nanquantile(np.concatenate([g.ravel() for g in grids]), 0.995)) or 1.0
    image = None
    for axis, name, grid in zip(axes.ravel(), names, grids, strict=False):
        image = axis.imshow(grid * 100, aspect="auto", cmap=_SEQUENTIAL, vmin=0, vmax=top * 100)
        axis.set_title(_plain(name), loc="left")
    for axis in axes.ravel()[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        _label_layers(axis, data)
    for axis in axes[-1]:
        axis.set_xlabel("expert")
    figure.colorbar(image, ax=axes, label="activation rate, %", shrink=0.8)
    return True


def _difference(figure: Any, data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Difference of the first two domains, cells with q < 0.05 for either marked."""
    groups = view["rates"]["groups"]
    if len(groups) < 3:
        return False
    gap = 100 * (_grid(data, view["rates"]["rate"][1]) - _grid(data, view["rates"]["rate"][2]))
    figure.set_size_inches(_WIDTH, 1.3 + 0.13 * len(data["layers"]))
    axis = figure.subplots()
    limit = max(float(np.nanquantile(np.abs(gap), 0.995)), 1.0)
    image = axis.imshow(gap, aspect="auto", cmap=_DIVERGING, vmin=-limit, vmax=limit)
    starts = np.cumsum([0, *(layer["experts"] for layer in data["layers"])])
    ways = [cells for mark in view["special"]["marks"][:2] for cells in mark.values()]
    cells = np.asarray(sorted(set().union(*ways)), int)
    row = np.searchsorted(starts, cells, side="right") - 1
    axis.scatter(cells - starts[row], row, s=5, color="black", linewidths=0)
    _label_layers(axis, data)
    axis.set_xlabel("expert")
    axis.set_title(f"{_plain(groups[1])} minus {_plain(groups[2])}; dots: q < 0.05", loc="left")
    figure.colorbar(image, ax=axis, label="difference, points")
    return True


def _special(figure: Any, _data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Lift of the top cells with intervals, and what the words alone predict."""
    from matplotlib.ticker import LogLocator, NullFormatter

    top = view["special"]["top"]
    lifts = zip(*(top[n] for n in ("lift_over_others", "lift_low", "lift_high")), strict=True)
    keep = [i for i, figures in enumerate(lifts) if all(figures)][:_TOP]
    if not keep:
        return False
    figure.set_size_inches(_WIDTH * 0.8, 0.9 + 0.19 * len(keep))
    axis = figure.subplots()
    for y, i in enumerate(keep):
        color = _COLORS[view["domains"].index(top["domain"][i]) % len(_COLORS)]
        passes = top["q"][i] is not None and top["q"][i] < Q_LEVEL
        axis.plot([top["lift_low"][i], top["lift_high"][i]], [y, y], color=color, lw=1.3)
        axis.plot(
            top["lift_over_others"][i], y, "o", ms=4, color=color, mfc=color if passes else "white"
        )
        if top["by_token"][i] and top["others"][i]:
            axis.plot(top["by_token"][i] / top["others"][i], y, "x", ms=4, color="black")
    axis.axvline(1, color="black", lw=0.8, ls="--")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(
        range(len(keep)), [f"{top['name'][i]} · {_plain(top['domain'][i])}" for i in keep]
    )
    axis.invert_yaxis()
    axis.set_xlabel("lift over the other domains, 95 % interval (×: words alone; filled: q < 0.05)")
    return True


def _information(figure: Any, _data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Four quantities by layer, each with its 95 % interval over documents."""
    info = view["information"]
    if not info["layer"]:
        return False
    figure.set_size_inches(_WIDTH, 2.1)
    parts = (("expert_token", "I(E;X)"), ("expert_domain", "I(E;D)"),
             ("expert_domain_given_token", "I(E;D|X)"),
             ("expert_domain_given_pair", "I(E;D|X, previous X)"))  # fmt: skip
    for n, (axis, (key, title)) in enumerate(zip(figure.subplots(1, 4), parts, strict=True)):
        values = _floats(info[f"i_{key}_bits"])
        ends = [_floats(info[f"i_{key}_{end}"]) for end in ("low", "high")]
        axis.fill_between(info["layer"], *ends, color="0.85", lw=0)
        axis.axhline(0, color="black", lw=0.6)
        axis.plot(info["layer"], values, "o-", ms=3, lw=1.2, color=_COLORS[n])
        _over_layers(axis, title)
    figure.axes[0].set_ylabel("bits beyond chance")
    return True


def _layers(figure: Any, _data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Balance against chance, router entropy and top-k mass, by layer and domain."""
    names = [ALL, *view["domains"][: _MOST_DOMAINS - 1]]
    asked = (("balance", "cv", "CV of load"), ("decisiveness", "router_entropy", "router entropy"),
             ("decisiveness", "topk_mass", "top-k mass"))  # fmt: skip
    panels = [panel for panel in asked if view[panel[0]]["layer"]]  # an imported run lacks some
    figure.set_size_inches(_WIDTH * max(len(panels), 2) / 3, 2.5)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (table, column, title) in zip(axes, panels, strict=True):
        for n, name in enumerate(names):
            color = "black" if n == 0 else _COLORS[(n - 1) % len(_COLORS)]
            line = _line(view[table], column, name)
            axis.plot(*line, "o-", ms=2, lw=1, color=color, label=_plain(name))
        chance = {"cv": "cv_chance", "topk_mass": "topk_mass_chance"}.get(column)
        if chance:
            line = _line(view[table], chance, ALL)
            axis.plot(*line, "--", lw=0.9, color="0.4", label="even routing")
        _over_layers(axis, title)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return True


def _line(rows: dict[str, Any], column: str, domain: str) -> tuple[list[int], NDArray[np.float64]]:
    """Layers and values of one domain."""
    own = [i for i, name in enumerate(rows["domain"]) if name == domain]
    return [rows["layer"][i] for i in own], _floats([rows[column][i] for i in own])


def _pairs(figure: Any, _data: dict[str, Any], view: dict[str, Any]) -> bool:
    """Lift of pairs over even random routing, in the layer in the middle."""
    made = view["pairs"][len(view["pairs"]) // 2]
    size = len(made["experts"])
    if size < 2:
        return False
    lift = np.full((size, size), np.nan)
    upper = np.triu_indices(size, 1)
    lift[upper] = _floats(made["lift"]) / 100
    lift[upper[::-1]] = lift[upper]
    figure.set_size_inches(_WIDTH * 0.62, _WIDTH * 0.52)
    axis = figure.subplots()
    scaled = np.log2(np.maximum(lift, 0.01) / (made["chance"] or 1.0))
    image = axis.imshow(scaled, cmap=_DIVERGING, vmin=-2, vmax=2)
    expert_ticks(axis, made["experts"])
    axis.set_xlabel(f"expert of layer {made['layer']}")
    axis.set_ylabel("expert")
    figure.colorbar(image, ax=axis, label="co-activation, log₂ of lift over chance")
    return True


_FIGURES: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], bool]] = {
    "activation": _activation,
    "difference": _difference,
    "specialised": _special,
    "information": _information,
    "layers": _layers,
    "coactivation": _pairs,
}


def _floats(values: list[Any]) -> NDArray[np.float64]:
    return np.asarray([np.nan if v is None else v for v in values], np.float64)


def _plain(name: str) -> str:
    """A name as text, not as mathematics: matplotlib reads dollar signs."""
    return name.replace("$", r"\$")[:40]
