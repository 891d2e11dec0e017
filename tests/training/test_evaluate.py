"""The held-out loss: every predicted token of a domain weighs the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.training.conftest import RecipeWriter
from torch.nn import functional as F  # noqa: N812

from moescope.training.evaluate import evaluate
from moescope.training.network import build_network
from moescope.training.objective import Workers
from moescope.training.recipe_file import load_recipe


def test_batches_of_unlike_size_weigh_by_their_tokens(write_recipe: RecipeWriter) -> None:
    """Five windows two at a time: the last batch has one, and a mean of means would count it twice.

    The text of the windows differs, so that their losses do.
    """
    network = build_network(load_recipe(write_recipe()), 100, 0, torch.device("cpu"))
    with torch.no_grad():
        network.head()[:7] *= 30  # ids below 7 are far from even
    rng = np.random.default_rng(0)
    windows = {
        "long": np.concatenate([rng.integers(7, 100, (4, 17)), rng.integers(0, 7, (1, 17))]),
        "short": rng.integers(0, 100, (1, 17)),
    }
    held = evaluate(network, Workers(1), windows, 2)
    assert held.tokens == {"long": 5 * 16, "short": 16}
    for name, rows in windows.items():
        ids = torch.from_numpy(rows)
        with torch.no_grad():
            logits = network.model(ids[:, :-1]).logits
        each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        assert held.losses[name] == pytest.approx(float(each.mean()), rel=1e-5)
        if name == "long":
            means = each.reshape(5, 16).mean(1)
            of_batches = torch.stack([means[:2].mean(), means[2:4].mean(), means[4]]).mean()
            assert abs(float(of_batches) - held.losses[name]) > 0.01
