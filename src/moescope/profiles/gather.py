"""What one layer's experts do to the tokens that they serve, summed batch by batch.

`LayerGather` is given what the experts of a layer received and decided (`LayerInput`), runs each
expert on its own tokens once more (`moescope.measure.expert_sums`), and adds up what profiles show
besides: directions, peaks, likeness, the highest contributions. The first batch is checked: the
single outputs, weighted, must add up to what the experts put out together, or nothing is measured.
It knows torch and experts, no text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moescope.errors import ModelError
from moescope.measure.expert_sums import Choices, ExpertSums, Served, measure_choices
from moescope.models.anatomy import MoELayer
from moescope.models.expert_calls import ExpertLayer, LayerInput

CANDIDATES = 128
"""Highest contributions that are kept of each expert, before contexts that repeat are dropped."""

_REPLAY_ERROR = 2e-2


class BatchRows(NamedTuple):
    """The rows of one batch, B × S of them.

    ``read``: not padding; ``counted``: stands for the document's own text; ``cluster``: document
    cluster; ``half``: half of the documents, 0 or 1; ``place``: number of the token in the list of
    all windows' tokens; ``scale``: frozen r_t of the lens, or None; ``compared``: rows on which
    every expert is run, to compare them.
    """

    read: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    cluster: NDArray[np.int64]
    half: NDArray[np.int64]
    place: NDArray[np.int64]
    scale: torch.Tensor | None
    compared: NDArray[np.int64]

    def cut(self, rows: NDArray[np.int64], index: torch.Tensor) -> BatchRows:
        """Some rows; ``index`` is the same on the model's device. None of them is compared."""
        scale = None if self.scale is None else self.scale[index]
        kept: list[Any] = [*(values[rows] for values in self[:5]), scale, self.compared[:0]]
        return BatchRows(*kept)


class Candidates(NamedTuple):
    """The highest contributions of each expert: parallel arrays, by expert, descending."""

    expert: NDArray[np.int64]
    place: NDArray[np.int64]
    contribution: NDArray[np.float32]
    weight: NDArray[np.float32]


class LayerGather:
    """Sums over the tokens of one layer's experts.

    Args:
        model: the model.
        layer: one of its MoE layers.
        clusters: number of document clusters, N.
        path: factor of the lens from the experts' output to the stream; None leaves the lens out.

    Attributes:
        sums: by cluster.
        peak_E: largest |component| of E(x) over all tokens read, BOS and the like included;
            ``counted_peak_E``: over counted ones.
        output_ED: sum of w·E(x). push_2ED: by half, the sum of r_t·factor·w·E(x).
        half_2E: assignments by half.
        cosine_2EE, compared_2EE: by half, sums of cosines of two experts' outputs on one input,
            and how many.
    """

    def __init__(
        self, model: nn.Module, layer: MoELayer, clusters: int, path: float | None
    ) -> None:
        self.layer = layer
        self._experts = ExpertLayer(model, layer)
        self._path = path
        device = next(model.parameters()).device
        size, hidden = layer.num_experts, layer.hidden_size
        self.sums = ExpertSums.zeros(clusters, size)
        self.peak_E, self.counted_peak_E = np.zeros(size), np.zeros(size)
        self.half_2E = np.zeros((2, size), np.int64)
        self.output_ED = torch.zeros(size, hidden, device=device)
        self.push_2ED = torch.zeros(2, size, hidden, device=device)
        self.cosine_2EE, self.compared_2EE = np.zeros((2, size, size)), np.zeros((2, size, size))
        none, real = np.zeros(0, np.int64), np.zeros(0, np.float32)
        self.candidates = Candidates(none, none, real, real)

    def add(self, given: LayerInput, rows: BatchRows, together: torch.Tensor | None) -> None:
        """Add one batch.

        Args:
            given: input and routing of every row.
            rows: what the rows are.
            together: what the experts put out for the batch; checked the first time.

        Raises:
            ModelError: single outputs do not add up to ``together``.
        """
        read = np.flatnonzero(rows.read)
        index = torch.as_tensor(read, device=given.hidden.device)
        hidden, routing = given.hidden[index], given.routing
        chosen = routing.topk_ids[index], routing.topk_weights[index]
        if together is not None:
            rows_given = (-1, given.hidden.shape[0], self.layer.hidden_size)
            self._check(hidden, chosen, together.float().reshape(rows_given).sum(0)[index])
        cut = rows.cut(read, index)
        choices = measure_choices(self._experts, hidden, *chosen, self._served_by(cut))
        self._add_sums(choices.take(cut.counted), cut)
        self._compare(given.hidden, rows)

    def _served_by(self, rows: BatchRows) -> Callable[[Served], None]:
        """Adds an expert's outputs to the sums that keep their direction."""
        counted = torch.as_tensor(rows.counted, device=self.output_ED.device)
        half = torch.as_tensor(rows.half, device=self.output_ED.device)

        def add(served: Served) -> None:
            e, at, added = served.expert, served.row, served.added
            mine = counted[at]
            self._peaks(e, served.output, mine)
            own = mine.float()
            self.output_ED[e] += own @ added
            if rows.scale is not None and self._path is not None:
                factor = own * rows.scale[at] * self._path
                by_half = torch.stack([factor * (half[at] == h) for h in (0, 1)])
                self.push_2ED[:, e] += by_half @ added

        return add

    def _peaks(self, e: int, plain: torch.Tensor, counted: torch.Tensor) -> None:
        largest = plain.abs().amax(dim=-1)
        self.peak_E[e] = max(self.peak_E[e], float(largest.max()))
        if bool(counted.any()):
            self.counted_peak_E[e] = max(self.counted_peak_E[e], float(largest[counted].max()))

    def _add_sums(self, choices: Choices, rows: BatchRows) -> None:
        """Add the choices of the rows that count."""
        cluster, half, place = (v[rows.counted] for v in (rows.cluster, rows.half, rows.place))
        self.sums.add(cluster, choices)
        size, top_k, ids = self.layer.num_experts, choices.ids.shape[1], choices.ids.reshape(-1)
        key = np.repeat(half, top_k) * size + ids
        self.half_2E += np.bincount(key, minlength=2 * size).reshape(2, -1)
        lengths, weights = choices.added.reshape(-1), choices.weight.reshape(-1)
        new = Candidates(ids, np.repeat(place, top_k), lengths, weights)
        self.candidates = _highest(self.candidates, new)

    def _compare(self, hidden: torch.Tensor, rows: BatchRows) -> None:
        """Cosines of all experts' outputs on a few rows, whoever was chosen for them."""
        if not rows.compared.size:
            return
        given = hidden[torch.as_tensor(rows.compared, device=hidden.device)]
        made = torch.stack([self._experts(e, given).float() for e in range(self.layer.num_experts)])
        length = made.norm(dim=-1, keepdim=True)
        alive = (length[..., 0] > 0).float()
        unit = made / length.clamp_min(1e-30)
        for h in (0, 1):
            mine = torch.as_tensor(rows.half[rows.compared] == h, device=hidden.device)
            part = unit[:, mine].flatten(1)
            self.cosine_2EE[h] += (part @ part.T).cpu().numpy()
            self.compared_2EE[h] += (alive[:, mine] @ alive[:, mine].T).cpu().numpy()

    def _check(
        self,
        hidden: torch.Tensor,
        chosen: tuple[torch.Tensor, torch.Tensor],
        expected: torch.Tensor,
    ) -> None:
        """Σ_k w·E(x) against what the experts put out; tries out where the weight goes in."""
        call, errors = self._experts, []
        for weighs_input in (call.weighs_input, not call.weighs_input):
            call.weighs_input = weighs_input
            errors.append(self._gap(hidden, chosen, expected))
            if errors[-1] <= _REPLAY_ERROR:
                return
        raise ModelError(
            f"layer {self.layer.layer_idx}: the outputs of single experts do not add up to what "
            f"the experts put out together (relative error {min(errors):.3f}); their contributions "
            "cannot be measured in this architecture"
        )

    def _gap(
        self,
        hidden: torch.Tensor,
        chosen: tuple[torch.Tensor, torch.Tensor],
        expected: torch.Tensor,
    ) -> float:
        total = torch.zeros_like(expected)

        def add(served: Served) -> None:
            total.index_add_(0, served.row, served.added)

        measure_choices(self._experts, hidden, *chosen, add)
        gap = total - expected
        gap = gap - gap.mean(0)  # a bias that is added once, for no expert in particular
        return float(gap.norm() / expected.norm().clamp_min(1e-30))


def _highest(kept: Candidates, new: Candidates) -> Candidates:
    """The highest `CANDIDATES` contributions of each expert among both."""
    columns: list[Any] = [
        np.concatenate([getattr(kept, name), getattr(new, name)]) for name in Candidates._fields
    ]
    joined = Candidates(*columns)
    order = np.lexsort((joined.place, -joined.contribution, joined.expert))
    expert = joined.expert[order]
    first = np.searchsorted(expert, expert, side="left")
    order = order[np.arange(order.size) - first < CANDIDATES]
    return Candidates(*(values[order] for values in columns))
