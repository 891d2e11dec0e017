"""Two-dimensional maps of what the experts of a layer put out, and how far to trust them.

A point is what one expert added for one token: its output times the weight that the router gave
it, for a (token, expert) pair that really occurred. A map squeezes thousands of dimensions into
two, so beside it stands what holds in the full space: how often the nearest points share their
expert, domain or token, against what chance gives. It knows arrays; text is for others.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from moescope.errors import MissingExtraError
from moescope.metrics.rates import rate_interval
from moescope.models.expert_calls import ExpertLayer
from moescope.similarity.inputs import LayerSample, even_shares
from moescope.similarity.options import MapKind

Floats = NDArray[np.float64]

NEIGHBOURS = 10
"""Nearest points that `neighbour_shares` looks at."""

_UMAP_NEIGHBOURS = 15
_UMAP_DISTANCE = 0.1
_FEWEST_POINTS = 5
_ROWS = 512


class WeightedOutputs(NamedTuple):
    """P points: ``outputs`` (P, D) = weight·expert(x); ``token``, ``expert``, ``weight`` (P,)."""

    outputs: NDArray[np.float32]
    token: NDArray[np.int64]
    expert: NDArray[np.int64]
    weight: NDArray[np.float32]


class PlaneMap(NamedTuple):
    """``xy`` (P, 2), and what made it: shares of the variance (PCA) or parameters (UMAP)."""

    kind: MapKind
    xy: Floats
    explained: tuple[float, float] | None
    parameters: dict[str, Any]


def sample_outputs(
    experts: ExpertLayer, inputs: LayerSample, points: int, seed: int
) -> WeightedOutputs:
    """Outputs of the experts on tokens that were really given to them, times their weights.

    Every expert gets the same number of points, drawn at random from its tokens; one that was
    chosen for fewer gives all, and the others more. So how dense a map is says nothing of load.
    """
    layer = experts.layer
    rng = np.random.default_rng([seed, 7, layer.layer_idx])
    given = [np.argwhere(inputs.topk_ids == e) for e in range(layer.num_experts)]
    parts = []
    for expert, share in enumerate(even_shares(points, [len(g) for g in given])):
        if share:
            drawn = given[expert][np.sort(rng.choice(len(given[expert]), share, replace=False))]
            parts.append(_weighted(experts, expert, inputs, drawn))
    if not parts:
        empty = np.zeros(0, np.int64)
        return WeightedOutputs(np.zeros((0, 1), np.float32), empty, empty, empty.astype(np.float32))
    columns = [np.concatenate(c) for c in zip(*parts, strict=True)]
    finite = np.isfinite(columns[0]).all(1)
    return WeightedOutputs(*(c[finite] for c in columns))


def _weighted(
    experts: ExpertLayer, expert: int, inputs: LayerSample, drawn: NDArray[np.int64]
) -> WeightedOutputs:
    token, choice = drawn.T
    rows = torch.cat([inputs.rows(int(t), int(t) + 1) for t in token])
    weight = inputs.topk_weights[token, choice]
    made = experts(expert, rows).float().cpu().numpy() * weight[:, None]
    return WeightedOutputs(
        made.astype(np.float32), token, np.full(token.size, expert, np.int64), weight
    )


def draw_map(kind: MapKind, outputs_PD: NDArray[np.float32], seed: int) -> PlaneMap | None:
    """A map of that kind; None with fewer than 5 points.

    Raises:
        MissingExtraError: UMAP is wanted and not installed.
    """
    if len(outputs_PD) < _FEWEST_POINTS:
        return None
    return pca_map(outputs_PD) if kind == "pca" else umap_map(outputs_PD, seed)


def pca_map(outputs_PD: NDArray[np.float32]) -> PlaneMap:
    """The plane in which the points vary most, exactly.

    ``explained``: share of the whole variance along each axis. An axis points to where its
    largest loading is positive, so the same points give the same map.
    """
    centred = outputs_PD.astype(np.float64) - outputs_PD.mean(0, dtype=np.float64)
    count, width = centred.shape
    wide = width > count
    square = centred @ centred.T if wide else centred.T @ centred
    total = float(np.trace(square))
    if total <= 0:
        return PlaneMap("pca", np.zeros((count, 2)), (float("nan"), float("nan")), {})
    size = len(square)
    values, vectors = scipy.linalg.eigh(square, subset_by_index=[max(0, size - 2), size - 1])
    axes = (centred.T @ vectors if wide else vectors)[:, ::-1]
    axes = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-300)
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    xy = np.zeros((count, 2))
    xy[:, : axes.shape[1]] = centred @ axes
    shares = [max(0.0, float(v)) / total for v in values[::-1]] + [0.0]
    return PlaneMap("pca", xy, (shares[0], shares[1]), {})


def require_umap() -> None:
    """Refuse early where UMAP cannot be drawn.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    if find_spec("umap") is None:
        raise MissingExtraError("umap-learn", "maps", "a UMAP map")


def umap_map(outputs_PD: NDArray[np.float32], seed: int) -> PlaneMap:
    """UMAP with its usual parameters and fixed random numbers.

    Raises:
        MissingExtraError: umap-learn is not installed.
    """
    require_umap()
    umap: Any = import_module("umap")  # slow to import, and not always there

    parameters: dict[str, Any] = {
        "n_neighbors": min(_UMAP_NEIGHBOURS, len(outputs_PD) - 1), "min_dist": _UMAP_DISTANCE,
        "metric": "euclidean", "random_state": seed % 2**32,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small graphs and of its use of one thread
        xy = umap.UMAP(n_jobs=1, **parameters).fit_transform(outputs_PD)
    return PlaneMap("umap", np.asarray(xy, np.float64), None, parameters)


def neighbour_shares(
    spaces: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[np.int64]],
    document_P: NDArray[np.int64],
    neighbours: int = NEIGHBOURS,
) -> list[dict[str, Any]]:
    """Of the nearest points of other documents, how many share a point's label?

    Args:
        spaces: name → coordinates (P, …) in which nearness is Euclidean distance.
        labels: name → label of each point.
        document_P: document of each point; points of the same one are no neighbours.
        neighbours: how many nearest points.

    Returns:
        For each space and label ``share`` with its 95 % interval over documents, and ``chance``:
        the share among all points of other documents. Points with fewer such points than
        ``neighbours`` are left out; ``points`` says how many count.
    """
    names = list(labels)
    columns = np.stack([labels[n] for n in names], axis=1)
    documents, cluster = np.unique(document_P, return_inverse=True)
    found = []
    for space, xy in spaces.items():
        same, chance, used = _same_labels(xy, columns, document_P, neighbours)
        counts = np.zeros((documents.size, len(names)), np.int64)
        np.add.at(counts, cluster[used], same[used])
        looked_at = np.bincount(cluster[used], minlength=documents.size) * neighbours
        ends = rate_interval(counts, looked_at, families=[1] * len(names))
        for i, name in enumerate(names):
            share = float(counts[:, i].sum() / looked_at.sum()) if used.any() else float("nan")
            found.append({
                "space": space, "label": name, "share": share, "ci_low": float(ends.low[i]),
                "ci_high": float(ends.high[i]), "points": int(used.sum()),
                "chance": float(chance[used, i].mean()) if used.any() else float("nan"),
            })  # fmt: skip
    return found


def _same_labels(
    xy: NDArray[Any], labels_PM: NDArray[np.int64], document_P: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], Floats, NDArray[np.bool_]]:
    """Neighbours with the same label (P, M), their share among all others, which points count."""
    points = torch.as_tensor(np.ascontiguousarray(xy), dtype=torch.float64)
    count = len(points)
    same, chance = np.zeros(labels_PM.shape, np.int64), np.zeros(labels_PM.shape)
    used = np.zeros(count, np.bool_)
    squares = points.square().sum(1)
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        distance = squares[rows, None] + squares[None] - 2 * points[rows] @ points.T
        others = document_P[rows, None] != document_P[None]
        distance[torch.as_tensor(~others)] = torch.inf
        used[rows] = others.sum(1) >= k
        near = distance.topk(min(k, count), largest=False).indices.numpy()
        alike = labels_PM[rows, None] == labels_PM[None]
        same[rows] = np.take_along_axis(alike, near[:, :, None], axis=1).sum(1)
        chance[rows] = (alike & others[:, :, None]).sum(1) / others.sum(1).clip(1)[:, None]
    return same, chance, used
