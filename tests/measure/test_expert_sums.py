"""The sums behind load, EAN, REAP and contribution, added by hand."""

import numpy as np
import pytest
import torch
from tests.support.brute_damage import loaded_of

from moescope.measure.expert_sums import Choices, ExpertSums, Served, measure_choices
from moescope.models.expert_calls import ExpertLayer


def test_sums_by_group_and_expert_by_hand() -> None:
    sums = ExpertSums.zeros(2, 3)
    sums.add(
        np.array([0, 1]),
        Choices(
            np.array([[0, 2], [2, 1]]),
            np.array([[0.75, 0.25], [0.5, 0.5]], np.float32),
            np.array([[2.0, 4.0], [8.0, 1.0]], np.float32),
            np.array([[1.5, 1.0], [4.0, 0.5]], np.float32),
        ),
    )
    assert sums.chosen.tolist() == [[1, 0, 1], [0, 1, 1]]
    assert sums.weight.tolist() == [[0.75, 0, 0.25], [0, 0.5, 0.5]]
    assert sums.output.tolist() == [[2, 0, 4], [0, 1, 8]]
    assert sums.added.tolist() == [[1.5, 0, 1], [0, 0.5, 4]]
    weight, ean, reap = sums.total().means()
    assert weight.tolist() == [0.75, 0.5, 0.375]  # (0.25 + 0.5)/2
    assert ean.tolist() == [2, 1, 6]
    assert reap.tolist() == [1.5, 0.5, 2.5]
    assert all(np.isnan(m).all() for m in ExpertSums.zeros(1, 3).total().means())


@pytest.mark.parametrize("kind", ["olmoe", "llama4_text"])
def test_every_choice_is_measured_where_the_weight_goes_in(kind: str) -> None:
    """‖w·E(x)‖, or ‖E(w·x)‖ where a family multiplies the input."""
    loaded = loaded_of(kind)
    layer = loaded.anatomy.layers[0]
    call = ExpertLayer(loaded.model, layer)
    dtype = next(loaded.model.parameters()).dtype
    hidden = torch.randn(5, layer.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 3], [3, 1]])
    weights = torch.linspace(0.1, 1.0, 10).reshape(5, 2)
    served: list[Served] = []
    made = measure_choices(call, hidden, ids, weights, served.append)
    for t in range(5):
        for k in range(2):
            one, w = hidden[t : t + 1], float(weights[t, k])
            plain = call(int(ids[t, k]), one)
            added = call(int(ids[t, k]), one * w) if kind == "llama4_text" else plain * w
            assert made.output[t, k] == pytest.approx(float(plain.norm()), rel=1e-4)
            assert made.added[t, k] == pytest.approx(float(added.norm()), rel=1e-4)
    assert [s.expert for s in served] == [0, 1, 2, 3]
    assert sorted((int(r), int(s)) for p in served for r, s in zip(p.row, p.slot, strict=True)) == [
        (t, k) for t in range(5) for k in range(2)
    ]
