"""What one layer's experts do to the tokens that they serve, summed batch by batch.

`LayerGather` is given what the experts of a layer received and decided (`LayerInput`), runs each
expert on its own tokens once more, and adds up. The first batch is checked: the single outputs,
weighted, must add up to what the experts put out together, or nothing is measured. It knows torch
and experts, no text.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moescope.errors import ModelError
from moescope.models.anatomy import MoELayer
from moescope.models.expert_calls import ExpertLayer, LayerInput

__all__ = ["BatchRows", "Candidates", "LayerGather"]

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
        return BatchRows(
            self.read[rows],
            self.counted[rows],
            self.cluster[rows],
            self.half[rows],
            self.place[rows],
            None if self.scale is None else self.scale[index],
            self.compared[:0],
        )


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
        count_NE, contribution_NE: assignments, and the sum of ‖w·E(x)‖, by cluster.
        weight_E, activation_E: sums of w and of ‖E(x)‖.
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
        self._checked = False
        self._scaled_input = False
        device = next(model.parameters()).device
        size, hidden = layer.num_experts, layer.hidden_size
        self.count_NE = np.zeros((clusters, size), np.int64)
        self.contribution_NE = np.zeros((clusters, size))
        self.weight_E, self.activation_E = np.zeros(size), np.zeros(size)
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
        ids_RK, weights_RK = routing.topk_ids[index].long(), routing.topk_weights[index].float()
        if together is not None and not self._checked:
            rows_given = (-1, given.hidden.shape[0], self.layer.hidden_size)
            expected = together.float().reshape(rows_given).sum(0)[index]
            self._check(hidden, ids_RK, weights_RK, expected)
        cut = rows.cut(read, index)
        lengths, norms = self._run(hidden, ids_RK, weights_RK, cut)
        self._add_sums(ids_RK.cpu().numpy(), weights_RK.cpu().numpy(), lengths, norms, cut)
        self._compare(given.hidden, rows)

    def _weighted(self, e: int, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """w·E(x), or E(w·x) where a family multiplies the input."""
        if self._scaled_input:
            return self._experts(e, hidden * weight[:, None].to(hidden.dtype)).float()
        return self._experts(e, hidden).float() * weight[:, None]

    def _run(
        self,
        hidden: torch.Tensor,
        ids_RK: torch.Tensor,
        weights_RK: torch.Tensor,
        rows: BatchRows,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Each expert on its own rows; returns ‖w·E(x)‖ and ‖E(x)‖, both (R, K)."""
        lengths, norms = torch.zeros_like(weights_RK), torch.zeros_like(weights_RK)
        counted = torch.as_tensor(rows.counted, device=hidden.device)
        half = torch.as_tensor(rows.half, device=hidden.device)
        for e in range(self.layer.num_experts):
            at, k = torch.nonzero(ids_RK == e, as_tuple=True)
            if not at.numel():
                continue
            weight = weights_RK[at, k]
            plain = self._experts(e, hidden[at]).float()
            added = self._weighted(e, hidden[at], weight) if self._scaled_input else (
                plain * weight[:, None]
            )  # fmt: skip
            norms[at, k], lengths[at, k] = plain.norm(dim=-1), added.norm(dim=-1)
            mine = counted[at]
            self._peaks(e, plain, mine)
            own = mine.float()
            self.output_ED[e] += own @ added
            if rows.scale is not None and self._path is not None:
                factor = own * rows.scale[at] * self._path
                by_half = torch.stack([factor * (half[at] == h) for h in (0, 1)])
                self.push_2ED[:, e] += by_half @ added
        return lengths.cpu().numpy(), norms.cpu().numpy()

    def _peaks(self, e: int, plain: torch.Tensor, counted: torch.Tensor) -> None:
        largest = plain.abs().amax(dim=-1)
        self.peak_E[e] = max(self.peak_E[e], float(largest.max()))
        if bool(counted.any()):
            self.counted_peak_E[e] = max(self.counted_peak_E[e], float(largest[counted].max()))

    def _add_sums(
        self,
        ids_RK: NDArray[np.int64],
        weights_RK: NDArray[np.float32],
        lengths_RK: NDArray[np.float32],
        norms_RK: NDArray[np.float32],
        rows: BatchRows,
    ) -> None:
        mine = rows.counted
        ids, size = ids_RK[mine].reshape(-1), self.layer.num_experts
        top_k = ids_RK.shape[1]

        def each(values: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.repeat(values[mine], top_k)

        lengths, weights = lengths_RK[mine].reshape(-1), weights_RK[mine].reshape(-1)
        key = each(rows.cluster) * size + ids
        cells = self.count_NE.size
        self.count_NE += np.bincount(key, minlength=cells).reshape(-1, size)
        self.contribution_NE += np.bincount(key, lengths, cells).reshape(-1, size)
        self.weight_E += np.bincount(ids, weights, size)
        self.activation_E += np.bincount(ids, norms_RK[mine].reshape(-1), size)
        self.half_2E += np.bincount(each(rows.half) * size + ids, minlength=2 * size).reshape(2, -1)
        new = Candidates(ids, each(rows.place), lengths, weights)
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
        ids_RK: torch.Tensor,
        weights_RK: torch.Tensor,
        expected: torch.Tensor,
    ) -> None:
        """Σ_k w·E(x) against what the experts put out; decides where the weight goes in."""
        errors = []
        for scaled in (False, True):
            self._scaled_input = scaled
            total = torch.zeros_like(expected)
            for e in range(self.layer.num_experts):
                at, k = torch.nonzero(ids_RK == e, as_tuple=True)
                if at.numel():
                    total.index_add_(0, at, self._weighted(e, hidden[at], weights_RK[at, k]))
            gap = total - expected
            gap = gap - gap.mean(0)  # a bias that is added once, for no expert in particular
            errors.append(float(gap.norm() / expected.norm().clamp_min(1e-30)))
            if errors[-1] <= _REPLAY_ERROR:
                self._checked = True
                return
        raise ModelError(
            f"layer {self.layer.layer_idx}: the outputs of single experts do not add up to what "
            f"the experts put out together (relative error {min(errors):.3f}); their contributions "
            "cannot be measured in this architecture"
        )


def _highest(kept: Candidates, new: Candidates) -> Candidates:
    """The highest `CANDIDATES` contributions of each expert among both."""
    joined = Candidates(
        np.concatenate([kept.expert, new.expert]),
        np.concatenate([kept.place, new.place]),
        np.concatenate([kept.contribution, new.contribution]),
        np.concatenate([kept.weight, new.weight]),
    )
    order = np.lexsort((joined.place, -joined.contribution, joined.expert))
    expert = joined.expert[order]
    first = np.searchsorted(expert, expert, side="left")
    order = order[np.arange(order.size) - first < CANDIDATES]
    return Candidates(
        joined.expert[order],
        joined.place[order],
        joined.contribution[order],
        joined.weight[order],
    )
