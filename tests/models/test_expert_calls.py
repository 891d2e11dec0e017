"""Experts as functions, and what they are given, on every architecture."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.alike import one_of_each
from tests.support.replay import replay
from tests.support.tiny import MOE_MODEL_TYPES, tiny_model

from moescope.errors import BadInputError, CoverageError, ModelError
from moescope.models import MoELayer, find_anatomy
from moescope.models.anatomy import REFUSED
from moescope.models.editing import edited
from moescope.models.edits import force, mask, zero
from moescope.models.expert_calls import ExpertInputs, ExpertLayer, LayerInput

TYPES = [t for t in MOE_MODEL_TYPES if t not in REFUSED]
NO_STACK = {"dbrx", "zaya", "longcat_flash"}
NO_ROWS = {"zaya", "inkling_text"}
NOT_LINEAR = {"gemma4_text"}  # a norm comes before the rows, a softmax after them
NO_WEIGHTS = {"zaya": 1, "longcat_flash": 3}  # experts that skip, or hand their input on


class Tiny:
    def __init__(self, model_type: str) -> None:
        self.type = model_type
        self.model: Any = tiny_model(model_type)
        self.anatomy = find_anatomy(self.model, self.model.config)
        self.loaded = SimpleNamespace(model=self.model, anatomy=self.anatomy)
        self.ids = torch.randint(4, 100, (2, 8), generator=torch.Generator().manual_seed(1))
        self.mask = torch.ones_like(self.ids)
        self.mask[1, 6:] = 0
        self.inputs = self.run()

    @torch.no_grad()
    def run(self) -> dict[int, LayerInput]:
        with ExpertInputs(self.model, self.anatomy.layers) as inputs:
            self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False)
            return inputs.take(self.ids.numel())

    def total(self, layer: MoELayer, given: LayerInput) -> torch.Tensor:
        """Σ weight · expert(x), one expert after the other over all rows."""
        call, total = ExpertLayer(self.model, layer), torch.zeros_like(given.hidden)
        for e in range(layer.num_experts):
            weight = (given.routing.topk_weights * (given.routing.topk_ids == e)).sum(-1, True)
            if self.type == "llama4_text":  # weighs what goes in
                total += call(e, given.hidden * weight)
            else:
                total += call(e, given.hidden) * weight
        return total

    def replayed(self, layer: MoELayer, given: LayerInput) -> torch.Tensor:
        experts = self.model.get_submodule(layer.site.experts)
        routing = given.routing
        return replay(experts, given.hidden, routing.topk_ids, routing.topk_weights.float())


@pytest.fixture(scope="module", params=one_of_each(TYPES))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param)


def test_weighted_outputs_add_up_to_what_the_weights_give(tiny: Tiny) -> None:
    assert set(tiny.inputs) == set(tiny.anatomy.layer_numbers)
    for layer in tiny.anatomy.layers:
        given = tiny.inputs[layer.layer_idx]
        total = tiny.total(layer, given)
        assert total.abs().max() > 1e-3
        torch.testing.assert_close(total, tiny.replayed(layer, given), rtol=1e-4, atol=1e-4)


def test_an_expert_answers_rows_one_by_one_as_together(tiny: Tiny) -> None:
    layer = tiny.anatomy.layers[0]
    call, hidden = ExpertLayer(tiny.model, layer), tiny.inputs[layer.layer_idx].hidden[:3]
    apart = torch.cat([call(1, row[None]) for row in hidden])
    torch.testing.assert_close(apart, call(1, hidden), rtol=1e-4, atol=1e-5)
    assert call(1, hidden[:0]).shape == hidden[:0].shape


def test_an_expert_that_does_not_exist_is_refused(tiny: Tiny) -> None:
    """Out of range some experts would answer from memory that nobody wrote."""
    layer = tiny.anatomy.layers[0]
    call, hidden = ExpertLayer(tiny.model, layer), tiny.inputs[layer.layer_idx].hidden
    for wrong in (layer.num_experts, -1):
        with pytest.raises(BadInputError, match=f"has experts 0 to {layer.num_experts - 1}, got"):
            call(wrong, hidden)
    with pytest.raises(BadInputError, match="takes rows"):
        call(0, hidden[None])


def test_weights_are_those_of_all_experts_or_refused(tiny: Tiny) -> None:
    layer = tiny.anatomy.layers[-1]
    call = ExpertLayer(tiny.model, layer)
    if tiny.type in NO_STACK:
        with pytest.raises(ModelError, match=r"keep its \d+ experts as stacked tensors"):
            list(call.weights())
        return
    tensors = dict(call.weights())
    assert all(t.shape[0] == layer.num_experts for t in tensors.values())
    assert not any(t.requires_grad for t in tensors.values())
    size = sum(t[0].numel() for t in tensors.values())
    assert size == layer.expert_params


def test_router_rows_make_the_logits_or_are_refused(tiny: Tiny) -> None:
    layer = tiny.anatomy.layers[-1]
    call = ExpertLayer(tiny.model, layer)
    if tiny.type in NO_ROWS:
        with pytest.raises(ModelError, match="no router rows to compare"):
            call.router_rows()
        return
    rows, given = call.router_rows(), tiny.inputs[layer.layer_idx]
    assert rows.shape == (layer.num_experts, layer.hidden_size)
    if tiny.type in NOT_LINEAR:
        return
    offset = given.routing.logits - given.hidden @ rows.T  # gpt-oss adds a bias to each expert
    torch.testing.assert_close(offset, offset[:1].expand_as(offset), rtol=1e-4, atol=1e-4)


def test_experts_without_weights_do_what_their_family_says() -> None:
    hidden = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    for model_type, many in NO_WEIGHTS.items():
        model = tiny_model(model_type)
        layer = find_anatomy(model, model.config).layers[-1]
        call = ExpertLayer(model, layer)
        for e in range(layer.num_experts - many, layer.num_experts):
            expected = torch.zeros_like(hidden) if model_type == "zaya" else hidden
            assert torch.equal(call(e, hidden), expected)


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_inputs_and_routing_under_edits_are_those_that_made_the_output(model_type: str) -> None:
    tiny = Tiny(model_type)
    plain = tiny.inputs
    first, last = tiny.anatomy.layers[0], tiny.anatomy.layers[-1]
    edits = [zero(f"L{first.layer_idx}E0"), mask(f"L{last.layer_idx}E1"),
             force(f"L{last.layer_idx}E2")]  # fmt: skip
    made: dict[int, torch.Tensor] = {}
    experts = tiny.model.get_submodule(last.site.experts)
    handle = experts.register_forward_hook(lambda _m, _a, out: made.update({0: out}))
    with edited(tiny.loaded, edits):
        given = tiny.run()
    handle.remove()
    assert torch.equal(given[first.layer_idx].hidden, plain[first.layer_idx].hidden)
    assert not torch.equal(given[last.layer_idx].hidden, plain[last.layer_idx].hidden)
    total = tiny.total(last, given[last.layer_idx])
    torch.testing.assert_close(total, made[0], rtol=1e-4, atol=1e-4)


def test_outputs_in_bfloat16_stay_in_bfloat16() -> None:
    model = tiny_model("mixtral", dtype=torch.bfloat16)
    layer = find_anatomy(model, model.config).layers[0]
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    output = ExpertLayer(model, layer)(3, hidden)
    assert output.dtype == torch.bfloat16
    exact = ExpertLayer(model.float(), layer)(3, hidden.float())
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)


def test_a_pass_that_was_not_seen_or_seen_twice_is_an_error() -> None:
    tiny = Tiny("olmoe")
    with ExpertInputs(tiny.model, tiny.anatomy.layers) as inputs, torch.no_grad():
        with pytest.raises(CoverageError, match="seen 0 times"):
            inputs.take()
        tiny.model(input_ids=tiny.ids)
        with pytest.raises(CoverageError, match="saw 16 rows, expected 15"):
            inputs.take(15)
        tiny.model(input_ids=tiny.ids)
        tiny.model(input_ids=tiny.ids)
        with pytest.raises(CoverageError, match="seen 2 times"):
            inputs.take()
    experts = tiny.model.get_submodule(tiny.anatomy.layers[0].site.experts)
    assert not experts._forward_pre_hooks
