"""A similarity for a paper: heat maps and maps of outputs as PDF and PNG, drawn with matplotlib.

Experts stand in the order of their clusters. Fonts are embedded as TrueType.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.report.figures import (
    _COLORS,
    _DIVERGING,
    _SEQUENTIAL,
    _WIDTH,
    _plain,
    draw_figures,
    expert_ticks,
    require_matplotlib,
)
from moescope.similarity.answers import METHOD_NAMES
from moescope.similarity.result import Similarity
from moescope.similarity.tables import clustered_order

_MOST_DOMAINS = 8


def write_similarity_figures(made: Similarity, folder: str | Path) -> list[Path]:
    """Draw, for each layer, its matrices and its maps.

    Args:
        made: from `compare_experts` or `open_similarity`.
        folder: where to: new, empty, or one that this wrote before.

    Returns:
        The paths written: ``similarity-L5.pdf``, ``map-pca-L5.pdf`` and so on, each as PNG too.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    drawings: dict[str, Callable[[Any], bool]] = {}
    for layer in (row["layer"] for row in made.about["layers"]):
        drawings[f"similarity-L{layer}"] = partial(_draw_matrices, made=made, layer=layer)
        for about in (m for m in made.about["maps"] if m["layer"] == layer):
            drawings[f"map-{about['map']}-L{layer}"] = partial(_draw_map, made=made, about=about)
    return draw_figures(drawings, folder)


def _draw_matrices(figure: Any, made: Similarity, layer: int) -> bool:
    """One panel for each method, all in the order of the first method's clusters."""
    computed = [r for r in made.about["summary"] if r["layer"] == layer and r["mean"] is not None]
    if not computed:
        return False
    columns = min(2, len(computed))
    rows = -(-len(computed) // columns)
    side = _WIDTH / columns
    figure.set_size_inches(side * columns, rows * side * 0.94)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    order = clustered_order(made.matrix(layer, computed[0]["method"]))
    for axis, row in zip(axes, computed, strict=False):
        matrix = made.matrix(layer, row["method"])[np.ix_(order, order)]
        np.fill_diagonal(matrix, np.nan)
        low, high = float(np.nanmin(matrix)), float(np.nanmax(matrix))
        limit = max(abs(low), abs(high)) or 1.0
        plain = row["method"] == "cka"
        image = axis.imshow(
            matrix, cmap=_SEQUENTIAL if plain else _DIVERGING,
            vmin=low if plain else -limit, vmax=high if plain else limit,
        )  # fmt: skip
        expert_ticks(axis, order)
        axis.set_title(f"{METHOD_NAMES[row['method']]}, mean {row['mean']:.3f}", loc="left")
        figure.colorbar(image, ax=axis, shrink=0.8)
    for axis in axes[len(computed) :]:
        axis.set_visible(False)
    first = METHOD_NAMES[computed[0]["method"]]
    figure.supxlabel(f"expert of layer {layer}, in the order of clusters by {first}", fontsize=8)
    return True


def _draw_map(figure: Any, made: Similarity, about: dict[str, Any]) -> bool:
    """The same points twice: coloured by expert, and by domain."""
    table = made.maps.to_pandas()
    part = table[(table["layer"] == about["layer"]) & (table["map"] == about["map"])]
    figure.set_size_inches(_WIDTH, _WIDTH * 0.56)
    by_expert, by_domain = figure.subplots(1, 2)
    _by_expert(figure, by_expert, part)
    domains = [d["name"] for d in made.about["text"]["domains"]]
    for n, name in enumerate(domains[:_MOST_DOMAINS]):
        own = part[part["domain"] == name]
        by_domain.scatter(own["x"], own["y"], s=2, lw=0, color=_COLORS[n], label=_plain(name))
    rest = part[~part["domain"].isin(domains[:_MOST_DOMAINS])]
    if len(rest):
        by_domain.scatter(rest["x"], rest["y"], s=2, lw=0, color="0.7", label="others")
    by_domain.set_title("by domain", loc="left")
    figure.legend(*by_domain.get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  markerscale=3)  # fmt: skip
    limits = _square(part["x"].to_numpy(), part["y"].to_numpy())
    for n, axis in enumerate((by_expert, by_domain)):
        axis.set(xlim=limits[0], ylim=limits[1], aspect="equal")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(_axis_words(about, 0))
        if n == 0:
            axis.set_ylabel(_axis_words(about, 1))
    return True


def _square(*axes: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Limits of equal width that hold all but the outermost hundredth at each end of each axis.

    A few far points would otherwise hide the rest.
    """
    ends = [np.quantile(values, [0.01, 0.99]) for values in axes]
    reach = 0.56 * max(high - low for low, high in ends) or 1.0
    return [
        (float((low + high) / 2 - reach), float((low + high) / 2 + reach)) for low, high in ends
    ]


def _by_expert(figure: Any, axis: Any, part: Any) -> None:
    experts: NDArray[np.int64] = part["expert"].to_numpy()
    drawn = axis.scatter(part["x"], part["y"], s=2, lw=0, c=experts, cmap="turbo")
    axis.set_title("by expert", loc="left")
    figure.colorbar(drawn, ax=axis, shrink=0.7, label="expert")


def _axis_words(about: dict[str, Any], axis: int) -> str:
    shares = about["explained"]
    if not shares:
        return f"UMAP {axis + 1}"
    share = shares[axis]
    return f"PC {axis + 1}" + ("" if share is None else f" ({100 * share:.1f} % of variance)")
