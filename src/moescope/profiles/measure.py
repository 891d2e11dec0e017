"""One pass over a bounded choice of text for everything about experts that needs the model.

All experts of all traced layers are measured at once: contributions, outputs, the logit lens,
likeness of experts, weights. The text is the run's own sample of windows. What comes out is plain
arrays by cell; `moescope.profiles.stored` keeps them beside the run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moescope.errors import CorpusError, ModelError
from moescope.measure.forward import fitting_batch, run_batches
from moescope.measure.windows import TextWindow, WindowBatch, window_batches
from moescope.metrics.intervals import ratio_interval
from moescope.models.anatomy import MoELayer
from moescope.models.expert_calls import ExpertInputs, ExpertLayer, LayerInput
from moescope.models.loading import LoadedModel
from moescope.profiles.cells import Cells, half_of_documents
from moescope.profiles.gather import BatchRows, Candidates, LayerGather
from moescope.profiles.lens import FinalScales, Lens, find_lens
from moescope.profiles.residual import first_output
from moescope.progress import OnProgress, Progress, quiet
from moescope.words import counted

COMPARED_TOKENS = 512
"""Tokens on which all experts of a layer are run, to compare their outputs; a few more, because
each batch rounds its part up."""

NEAREST_ROWS = 8
"""Most similar experts that are kept of each."""

_MAX_CLUSTER_CELLS = 20_000_000


class MeasuredText(NamedTuple):
    """The windows that were measured: ``domains``, and tokens and documents of each, (C,)."""

    domains: list[str]
    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]


class Pushes(NamedTuple):
    """What one layer's experts add to the stream, seen through the lens, before any ranking.

    ``sums`` (2, E, D): by half of the documents; ``counts`` (2, E): assignments behind them.
    """

    sums: torch.Tensor
    counts: NDArray[np.int64]


@dataclass
class Measured:
    """Everything that one pass gave.

    Attributes:
        text: what was measured.
        figures: by name, arrays over cells, (M,) unless said; NaN where a cell served no measured
            token. ``count``, ``documents``: assignments, and document clusters with one;
            ``by_domain`` (C, M): count. ``weight``: mean w where chosen. ``contribution``,
            ``contribution_low``, ``contribution_high``: mean ‖w·E(x)‖ over the tokens that chose
            the expert (REAP, with the weights as multiplied), 95 % interval over documents;
            ``contribution_by_domain`` (C, M); ``contribution_share``: of the layer's sum of
            ‖w·E(x)‖. ``activation``: mean ‖E(x)‖ (EAN); ``activation_share``: of the layer's sum.
            ``peak``: largest |component| of E(x) over all tokens read; ``counted_peak``: over
            counted ones. ``output`` (M, D): mean w·E(x). ``nearest``, ``cosine`` (M, 8),
            ``cosine_halves`` (2, M, 8): numbers of the most similar experts of the layer, their
            mean cosine on identical inputs, and that of each half of the documents.
        compared: by layer slot, tokens on which experts were compared.
        norms: name of a stacked tensor → Frobenius norm by cell; NaN where a layer has none.
        absent: what could not be measured, and why.
        lens, pushes: the lens and its sums by layer slot; without a lens the reason is in
            ``absent``.
        candidates: highest contributions, by layer slot.
    """

    text: MeasuredText
    figures: dict[str, NDArray[Any]]
    compared: list[int]
    norms: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    lens: Lens | None = None
    pushes: dict[int, Pushes] = field(default_factory=dict)
    candidates: list[Candidates] = field(default_factory=list)


def measure(
    loaded: LoadedModel,
    windows: Sequence[TextWindow],
    cells: Cells,
    domains: Sequence[str],
    on_progress: OnProgress = quiet,
) -> Measured:
    """Measure all experts of the traced layers.

    Raises:
        ModelError: single outputs of an architecture do not add up (see `LayerGather`).
        CorpusError: no window.
    """
    if not windows:
        raise CorpusError("there is no text to measure: no window of the corpus has a token")
    layers = loaded.anatomy.select(tuple(n.layer_idx for n in cells.layers))
    places = _Places(windows, domains, cells.total)
    lens, reason = _lens_or_reason(loaded, layers)
    paths = {} if lens is None else {n: f for n, f in lens.paths.items() if isinstance(f, float)}
    gathers = [
        LayerGather(loaded.model, n, places.clusters, paths.get(n.layer_idx)) for n in layers
    ]
    _run(loaded, windows, places, gathers, lens, on_progress)
    made = _finish(gathers, places)
    _add_norms(made, loaded, layers, cells)
    made.lens = lens
    if lens is None:
        made.absent["lens"] = reason
    for gather, layer in zip(gathers, cells.layers, strict=True):
        path = None if lens is None else lens.paths[layer.layer_idx]
        if isinstance(path, str):
            made.absent[f"lens L{layer.layer_idx}"] = path
        elif path is not None:
            made.pushes[layer.slot] = Pushes(gather.push_2ED, gather.half_2E)
        made.candidates.append(gather.candidates)
    return made


def _lens_or_reason(loaded: LoadedModel, layers: Sequence[MoELayer]) -> tuple[Lens | None, str]:
    try:
        return find_lens(loaded, layers), ""
    except ModelError as error:
        return None, str(error)


class _Places:
    """Documents of the windows: domain, half, cluster; and a number for each of their tokens."""

    def __init__(self, windows: Sequence[TextWindow], domains: Sequence[str], cells: int) -> None:
        self.domains = list(domains)
        known = sorted({(self.domains.index(w.domain), w.doc) for w in windows})
        index = {key: i for i, key in enumerate(known)}
        domain_of = [d for d, _ in known]
        half = half_of_documents([doc for _, doc in known], domain_of)
        limit = max(8, _MAX_CLUSTER_CELLS // (cells * max(len(self.domains), 1)))
        cluster, self.cluster_domain = _clusters(np.asarray(domain_of, np.int64), limit)
        doc_W = np.asarray([index[self.domains.index(w.domain), w.doc] for w in windows], np.int64)
        self.half_W, self.cluster_W = half[doc_W], cluster[doc_W]
        self.start_W = np.cumsum([0, *(len(w.token_ids) for w in windows)])
        tokens = np.asarray([w.num_tokens for w in windows], np.int64)
        domain_W = np.asarray(domain_of, np.int64)[doc_W]
        self.text = MeasuredText(
            self.domains,
            np.bincount(domain_W, tokens, len(self.domains)).astype(np.int64),
            np.bincount(domain_of, minlength=len(self.domains)),
        )

    @property
    def clusters(self) -> int:
        """N."""
        return int(self.cluster_domain.size)

    def rows(self, batch: WindowBatch, scale: torch.Tensor | None, share: float) -> BatchRows:
        """What the rows of a batch are; ``share`` of the counted ones are compared, evenly."""
        width = batch.token_ids.shape[1]

        def each(values_W: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(values_W[batch.rows], width)

        counted = batch.counted.reshape(-1)
        own = np.flatnonzero(counted)
        wanted = min(own.size, int(np.ceil(own.size * share)))
        picked = own[np.linspace(0, own.size - 1, wanted).astype(np.int64)] if wanted else own[:0]
        return BatchRows(
            read=batch.attention_mask.reshape(-1),
            counted=counted,
            cluster=each(self.cluster_W),
            half=each(self.half_W),
            place=each(self.start_W[:-1]) + np.tile(np.arange(width), len(batch.rows)),
            scale=scale,
            compared=picked,
        )


def _clusters(
    domain_N: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster of each document, and domain of each cluster: one document each, up to a limit.

    Documents come by domain; those beyond the limit join the clusters of their domain in turn.
    """
    turn = (np.arange(domain_N.size) - np.searchsorted(domain_N, domain_N)) % limit
    _, first, cluster = np.unique(domain_N * limit + turn, return_index=True, return_inverse=True)
    return cluster.astype(np.int64), domain_N[first]


def _run(
    loaded: LoadedModel,
    windows: Sequence[TextWindow],
    places: _Places,
    gathers: list[LayerGather],
    lens: Lens | None,
    on_progress: OnProgress,
) -> None:
    model, layers = loaded.model, [g.layer for g in gathers]
    total = sum(w.num_tokens for w in windows)
    wide = sum(n.hidden_size for n in layers) * next(model.parameters()).element_size()
    tokens, done = fitting_batch(wide), 0
    work = f"{counted(sum(n.num_experts for n in layers), 'expert')} on {total:,} tokens"

    def add(batch: WindowBatch, given: dict[int, LayerInput]) -> None:
        nonlocal done
        whole = together.take()
        scale = None if scales is None else scales.take()
        rows = places.rows(batch, scale, COMPARED_TOKENS / max(total, 1))
        for gather in gathers:
            number = gather.layer.layer_idx
            gather.add(given[number], rows, whole.get(number))
        done += int(batch.counted.sum())
        on_progress(Progress("measuring all experts", done, total, "tokens", work=work))

    reading = contextlib.nullcontext() if lens is None else FinalScales(model, lens)
    with _Together(model, layers) as together, reading as scales:
        run_batches(
            loaded, window_batches(windows, tokens, loaded.pad_id), ExpertInputs(model, layers),
            add, setting="dtype",
        )  # fmt: skip


class _Together:
    """Keeps what the experts of each layer put out together in the first pass."""

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer]) -> None:
        self._kept: dict[int, torch.Tensor] = {}
        self._model, self._layers = model, layers
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        def keep(number: int) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                self._kept[number] = first_output(output)

            return hook

        for layer in self._layers:
            experts = self._model.get_submodule(layer.site.experts)
            self._handles.append(experts.register_forward_hook(keep(layer.layer_idx)))
        return self

    def take(self) -> dict[int, torch.Tensor]:
        """By layer number; nothing after the first time, for then the experts run unread."""
        self.__exit__()
        kept, self._kept = self._kept, {}
        return kept

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def _finish(gathers: list[LayerGather], places: _Places) -> Measured:
    parts: dict[str, list[NDArray[Any]]] = {}
    for gather in gathers:
        for name, values in _layer_figures(gather, places).items():
            parts.setdefault(name, []).append(values)
    figures = {name: np.concatenate(values, axis=-1) for name, values in parts.items()}
    nearest, cosine, halves = zip(*map(_nearest, gathers), strict=True)
    figures["nearest"], figures["cosine"] = np.concatenate(nearest), np.concatenate(cosine)
    figures["cosine_halves"] = np.concatenate(halves, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        outputs = [g.output_ED.cpu().numpy() / g.sums.total().chosen[:, None] for g in gathers]
    figures["output"] = np.concatenate(outputs).astype(np.float32)
    compared = [int(g.compared_2EE.sum(0).max()) for g in gathers]
    return Measured(places.text, figures, compared)


def _layer_figures(gather: LayerGather, places: _Places) -> dict[str, NDArray[Any]]:
    sums, total = gather.sums, gather.sums.total()
    of_domain = [places.cluster_domain == d for d in range(len(places.domains))]
    by_domain, added = (
        np.stack([v[m].sum(0) for m in of_domain]) for v in (sums.chosen, sums.added)
    )
    low, high = ratio_interval(sums.added, sums.chosen.astype(np.float64), places.cluster_domain)
    weight, activation, contribution = total.means()
    with np.errstate(divide="ignore", invalid="ignore"):
        per_domain = added / by_domain
        shares = [v / v.sum() for v in (total.added, total.output)]
    return {
        "count": total.chosen,
        "documents": (sums.chosen > 0).sum(0),
        "by_domain": by_domain,
        "weight": weight,
        "contribution": contribution,
        "contribution_low": low,
        "contribution_high": high,
        "contribution_by_domain": per_domain,
        "contribution_share": shares[0],
        "activation": activation,
        "activation_share": shares[1],
        "peak": gather.peak_E,
        "counted_peak": gather.counted_peak_E,
    }


def _nearest(
    gather: LayerGather,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The experts of the layer whose outputs on identical inputs point the same way."""
    size = gather.layer.num_experts
    sums, counts = (np.stack([v.sum(0), *v]) for v in (gather.cosine_2EE, gather.compared_2EE))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = sums / counts  # of both halves together, then of each
    ranked = np.where(np.isfinite(cosines[0]), cosines[0], -np.inf)
    np.fill_diagonal(ranked, -np.inf)
    rows = min(NEAREST_ROWS, size)
    best = np.argsort(-ranked, axis=1, kind="stable")[:, :rows]
    found = np.isfinite(np.take_along_axis(ranked, best, 1))
    nearest = np.full((size, NEAREST_ROWS), -1, np.int64)
    nearest[:, :rows] = np.where(found, best, -1)
    shown = np.full((3, size, NEAREST_ROWS), np.nan)
    shown[..., :rows] = np.where(found, np.take_along_axis(cosines, best[None], 2), np.nan)
    return nearest, shown[0], shown[1:]


def _add_norms(
    made: Measured, loaded: LoadedModel, layers: Sequence[MoELayer], cells: Cells
) -> None:
    """Frobenius norm of each expert's part of every stacked tensor, and of its router row."""
    for layer, place in zip(layers, cells.layers, strict=True):
        experts, cut = ExpertLayer(loaded.model, layer), cells.of_layer(place)
        found: list[tuple[str, torch.Tensor]] = []
        try:
            found += experts.weights()
        except ModelError as error:
            made.absent[f"weights L{layer.layer_idx}"] = str(error)
        try:
            found.append(("router row", experts.router_rows()))
        except ModelError as error:
            made.absent[f"router row L{layer.layer_idx}"] = str(error)
        for name, tensor in found:
            column = made.norms.setdefault(name, np.full(cells.total, np.nan))
            column[cut] = torch.stack([part.float().norm() for part in tensor]).cpu().numpy()
