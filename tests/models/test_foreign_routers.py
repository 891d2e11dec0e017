"""Routers that transformers does not ship, as models with code of their own bring them."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
from tests.support.tiny import tiny_model
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from moescope.errors import ModelError
from moescope.models import find_anatomy

PARTS = ("logits", "weights", "ids")


def with_gate(order: Sequence[str]) -> PreTrainedModel:
    """A model whose routers give logits, weights and ids in an order of their own."""

    class Gate(MixtralTopKRouter):
        def forward(self, hidden_states: Any) -> Any:
            parts = dict(zip(PARTS, super().forward(hidden_states), strict=True))
            return tuple(parts.get(name) for name in order)

    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate.__class__ = Gate
    return model


@pytest.mark.parametrize("order", [PARTS, (*PARTS, "more")], ids=len)
def test_one_that_answers_as_most_do_is_read(order: Sequence[str]) -> None:
    model = with_gate(order)
    assert find_anatomy(model, model.config).layers[0].scoring == "softmax"


@pytest.mark.parametrize(
    ("order", "answer"),
    [
        (("ids", "weights", "logits"), "(int64 of 64×2, float32 of 64×2, float32 of 64×8)"),
        (("weights", "logits", "ids"), "(float32 of 64×2, float32 of 64×8, int64 of 64×2)"),
        (("logits", "ids", "weights"), "(float32 of 64×8, int64 of 64×2, float32 of 64×2)"),
        (("ids", "weights", "loss"), "(int64 of 64×2, float32 of 64×2, NoneType)"),
        (("ids", "weights"), "(int64 of 64×2, float32 of 64×2)"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_one_with_another_order_of_outputs_is_named_with_what_it_answers(
    order: Sequence[str], answer: str
) -> None:
    model = with_gate(order)
    words = re.escape(f"mlp.gate (Gate): it answers with {answer}, expected logits (tokens")
    with pytest.raises(ModelError, match=words + ".*; change what its code returns, or"):
        find_anatomy(model, model.config)
