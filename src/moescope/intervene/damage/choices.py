"""Which experts a text chooses, and the controls that are drawn by it: what comes before any edit.

The load of an expert is its share of all choices (tokens × K) of its layer, over the counted tokens
of the text that damage is measured on. What was counted and drawn is kept in the journal, so that a
resumed measurement has the same controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.axes import ExpertRef
from moescope.measure.controls import Controls, draw_controls
from moescope.measure.forward import run_batches
from moescope.measure.journal import Journal
from moescope.measure.windows import TextWindow, WindowBatch, window_batches
from moescope.models.anatomy import MoELayer
from moescope.models.capture import Routing, RoutingCapture
from moescope.models.loading import LoadedModel

_CONTROL_STREAM = 1
"""Keeps the random numbers of the controls apart from those of the resampling."""


class Prepared(NamedTuple):
    """Trials before they are run: the plan first, then its controls.

    ``controls``: None where none were asked for. ``chosen`` (J, W): choices that fall on the
    experts of each trial; ``total`` (W,): all choices of the plan's layers, by window.
    ``layer_loads``: share of each layer's choices that fall on the plan's experts. ``plan_counts``:
    choices of each of the plan's experts, in its order. ``by_load``: controls were matched in load.
    """

    controls: Controls | None
    chosen: NDArray[np.int64]
    total: NDArray[np.int64]
    layer_loads: dict[int, float]
    plan_counts: NDArray[np.int64]
    by_load: bool = True

    @property
    def matched_loads(self) -> NDArray[np.float64]:
        """Load of each trial over the plan's, on the text that controls were matched on.

        1 for all where load was not matched.
        """
        if self.controls is None or not self.by_load:
            return np.ones(len(self.chosen))
        return np.concatenate([[1.0], 1 / self.controls.ratios])


def prepare(
    loaded: LoadedModel,
    windows: Sequence[TextWindow],
    plan: tuple[ExpertRef, ...],
    journal: Journal,
    *,
    controls: int,
    by_load: bool,
    matched_on: NDArray[np.bool_],
    seed: int,
    batch_tokens: int,
) -> Prepared:
    """Count choices and draw controls, or read both from the journal.

    ``by_load``: controls match the load, else only the number of experts in each layer.
    ``matched_on`` (W,): windows whose choices make the load. Without ``controls`` none are drawn.

    Raises:
        BadInputError: the plan leaves too few experts for controls.
    """
    record = journal.find("prepared")
    if record is None:
        layers = loaded.anatomy.select(tuple(sorted({r.layer_idx for r in plan})))
        counts = count_choices(loaded, windows, layers, batch_tokens)
        drawn = None
        if controls:
            matched = {n: c[matched_on].sum(0) for n, c in counts.items()}
            rng = np.random.default_rng([seed, _CONTROL_STREAM])
            drawn = draw_controls(plan, matched, controls, rng, by_load=by_load)
        record = journal.add("prepared", **_to_record(plan, drawn, counts))
    return _from_record(record)._replace(by_load=by_load)


def _to_record(
    plan: tuple[ExpertRef, ...], drawn: Controls | None, counts: dict[int, NDArray[np.int64]]
) -> dict[str, Any]:
    trials = [plan, *(() if drawn is None else drawn.plans)]
    chosen = [sum(counts[r.layer_idx][:, r.expert] for r in refs) for refs in trials]
    mine = {n: [r.expert for r in plan if r.layer_idx == n] for n in counts}
    return {
        "chosen": [np.asarray(c).tolist() for c in chosen],
        "total": np.sum([c.sum(1) for c in counts.values()], axis=0).tolist(),
        "layer_loads": {n: float(c[:, mine[n]].sum() / c.sum()) for n, c in counts.items()},
        "plan_counts": [int(counts[r.layer_idx][:, r.expert].sum()) for r in plan],
        "controls": None
        if drawn is None
        else {
            "plans": [[str(r) for r in refs] for refs in drawn.plans],
            "ratios": drawn.ratios.tolist(),
            "worst": drawn.worst.tolist(),
            "possible": drawn.possible,
        },
    }


def _from_record(record: dict[str, Any]) -> Prepared:
    stored = record["controls"]
    controls = None
    if stored is not None:
        controls = Controls(
            tuple(tuple(map(ExpertRef.parse, refs)) for refs in stored["plans"]),
            np.asarray(stored["ratios"]),
            np.asarray(stored["worst"]),
            int(stored["possible"]),
        )
    return Prepared(
        controls,
        np.asarray(record["chosen"], np.int64),
        np.asarray(record["total"], np.int64),
        {int(n): share for n, share in record["layer_loads"].items()},
        np.asarray(record["plan_counts"], np.int64),
    )


def count_choices(
    loaded: LoadedModel,
    windows: Sequence[TextWindow],
    layers: Sequence[MoELayer],
    batch_tokens: int,
) -> dict[int, NDArray[np.int64]]:
    """How often the counted tokens of each window chose each expert, (W, E) by layer number.

    One pass over the text without the output head.
    """
    counts = {m.layer_idx: np.zeros((len(windows), m.num_experts), np.int64) for m in layers}

    def count(batch: WindowBatch, routing: dict[int, Routing]) -> None:
        row, column = np.nonzero(batch.counted)
        for number, seen in routing.items():
            chosen = seen.topk_ids.reshape(*batch.token_ids.shape, -1).cpu().numpy()
            np.add.at(counts[number], (batch.rows[row][:, None], chosen[row, column]), 1)

    reader = RoutingCapture(loaded.model, [layer.site for layer in layers])
    run_batches(loaded, window_batches(windows, batch_tokens, loaded.pad_id), reader, count)
    return counts
