"""What the experts of a layer put out for the tokens that chose them, and the sums of it.

Load, gate mass, EAN, REAP and contribution are quotients of four sums over the tokens that chose an
expert: 1, w, ‖E(x)‖ and ‖w·E(x)‖. They are counted here, for profiles and for scores alike. It
knows torch and experts, no text and no edits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.models.expert_calls import ExpertLayer


class Served(NamedTuple):
    """The M rows that chose one expert.

    ``row`` and ``slot`` (M,): where in the (R, K) choices. ``output`` (M, D): E(x). ``added``
    (M, D): what goes into the layer's output, w·E(x), or E(w·x) where a family multiplies the
    input.
    """

    expert: int
    row: torch.Tensor
    slot: torch.Tensor
    output: torch.Tensor
    added: torch.Tensor


class Choices(NamedTuple):
    """Of R rows with K choices each, all (R, K): experts, w, ‖E(x)‖ and ‖w·E(x)‖."""

    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    output: NDArray[np.float32]
    added: NDArray[np.float32]

    def take(self, rows: NDArray[np.bool_]) -> Choices:
        """Some of the rows."""
        return Choices(self.ids[rows], *(values[rows] for values in self[1:]))


def measure_choices(
    call: ExpertLayer,
    hidden_RD: torch.Tensor,
    ids_RK: torch.Tensor,
    weights_RK: torch.Tensor,
    each: Callable[[Served], None] = lambda _: None,
) -> Choices:
    """Run each expert of a layer on the rows that chose it.

    ``each`` is called with every expert that was chosen.
    """
    ids, weights = ids_RK.long(), weights_RK.float()
    output, added = torch.zeros_like(weights), torch.zeros_like(weights)
    for expert in range(call.layer.num_experts):
        row, slot = torch.nonzero(ids == expert, as_tuple=True)
        if not row.numel():
            continue
        given, weight = hidden_RD[row], weights[row, slot, None]
        plain = call(expert, given).float()
        made = call(expert, given * weight.to(given.dtype)) if call.weighs_input else plain * weight
        served = Served(expert, row, slot, plain, made.float())
        output[row, slot] = served.output.norm(dim=-1)
        added[row, slot] = served.added.norm(dim=-1)
        each(served)
    return Choices(*(t.cpu().numpy() for t in (ids, weights, output, added)))


class ExpertSums(NamedTuple):
    """Sums by group of rows (documents, domains) and expert, each (G, E).

    ``chosen``: choices. ``weight``: Σ w. ``output``: Σ ‖E(x)‖. ``added``: Σ ‖w·E(x)‖.
    """

    chosen: NDArray[np.int64]
    weight: NDArray[np.float64]
    output: NDArray[np.float64]
    added: NDArray[np.float64]

    @classmethod
    def zeros(cls, groups: int, experts: int) -> Self:
        """Nothing yet."""
        return cls(np.zeros((groups, experts), np.int64), *np.zeros((3, groups, experts)))

    def add(self, group_R: NDArray[np.int64], choices: Choices) -> None:
        """Add rows, each to its group."""
        key = (group_R[:, None] * self.chosen.shape[1] + choices.ids).reshape(-1)
        self.chosen.reshape(-1)[:] += np.bincount(key, minlength=self.chosen.size)
        for sums, values in zip(self[1:], choices[1:], strict=True):
            sums.reshape(-1)[:] += np.bincount(key, values.reshape(-1), sums.size)

    def total(self) -> ExpertSums:
        """All groups together, each (E,)."""
        return ExpertSums(*(values.sum(0) for values in self))

    def means(self) -> tuple[NDArray[np.float64], ...]:
        """Mean w, mean ‖E(x)‖ (EAN) and mean ‖w·E(x)‖ (REAP) where chosen; NaN where never."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return tuple(values / self.chosen for values in self[1:])
