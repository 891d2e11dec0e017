"""The sorted experts give what the stock ones give, and a pass can end when all is seen."""

import pytest
import torch
from tests.support.tiny import COMPOSITE_MODEL_TYPES, MOE_MODEL_TYPES, tiny_model

from moescope.models import find_anatomy
from moescope.models.anatomy import REFUSED
from moescope.models.capture import EnoughSeen, RoutingCapture
from moescope.models.experts import fast_experts, run_sorted

SUPPORTED = [t for t in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES) if t not in REFUSED]
IDS = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(1))


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def seen_with(model: torch.nn.Module, sites: list, *, stop: bool) -> dict:  # type: ignore[type-arg]
    with torch.inference_mode(), RoutingCapture(model, sites, stop=stop) as capture:
        if stop:
            with pytest.raises(EnoughSeen):
                model.base_model(input_ids=IDS, use_cache=False)
        else:
            model.base_model(input_ids=IDS, use_cache=False)
        return capture.take(IDS.numel())


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_every_architecture_puts_out_the_same_and_shows_the_same_when_it_ends_early(
    model_type: str,
) -> None:
    model = tiny_model(model_type)
    before = logits_of(model)
    with fast_experts(model) as switched:
        fast = logits_of(model)
    torch.testing.assert_close(fast, before, rtol=2e-4, atol=2e-5)
    experts = [m for m in model.modules() if hasattr(m, "_is_expert_parallel")]
    assert switched == bool(experts)
    sites = [layer.site for layer in find_anatomy(model, model.config).layers]
    ran: list[bool] = []
    last = model.get_submodule(sites[-1].experts)
    handle = last.register_forward_hook(lambda *_: ran.append(True))
    whole = seen_with(model, sites, stop=False)
    assert ran
    ran.clear()
    seen = seen_with(model, sites, stop=True)
    handle.remove()
    assert ran == []  # the experts of the last layer did not run
    assert list(seen) == [site.layer_idx for site in sites]
    for number, routing in whole.items():
        for name, tensor in routing._asdict().items():
            assert torch.equal(getattr(seen[number], name), tensor), (number, name)
    assert torch.equal(logits_of(model), before)  # and it is as it was


def test_it_is_the_sorted_function_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*given):  # type: ignore[no-untyped-def]
        calls.append(given[1].shape)
        return run_sorted(*given)

    monkeypatch.setattr("moescope.models.experts.run_sorted", counted)
    model = tiny_model("olmoe")
    with fast_experts(model):
        logits_of(model)
    assert calls == [(22, 32)] * 4


@pytest.mark.parametrize("model_type", ["olmoe", "gpt_oss", "mixtral", "nemotron_h"])
def test_it_is_the_sum_written_out_in_float64(model_type: str) -> None:
    """Gated, with bias and transposed, and without a gate."""
    model = tiny_model(model_type).double()
    layer = find_anatomy(model, model.config).layers[0]
    experts = model.get_submodule(layer.site.experts)
    draw = torch.Generator().manual_seed(0)
    width = experts.down_proj.shape[2 if experts.is_transposed else 1]
    hidden = torch.randn(9, width, generator=draw, dtype=torch.float64)
    ids = torch.stack([torch.randperm(8, generator=draw)[:3] for _ in range(9)])
    weights = torch.rand(9, 3, generator=draw, dtype=torch.float64)
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    expected = torch.zeros_like(hidden)
    for t in range(9):
        for k in range(3):
            e = int(ids[t, k])
            up, down = getattr(experts, first)[e], experts.down_proj[e]
            inner = hidden[t] @ (up if experts.is_transposed else up.T)
            if experts.has_bias:
                inner = inner + getattr(experts, f"{first}_bias")[e]
            inner = (
                experts._apply_gate(inner[None])[0] if experts.has_gate else experts.act_fn(inner)
            )
            out = inner @ (down if experts.is_transposed else down.T)
            if experts.has_bias:
                out = out + experts.down_proj_bias[e]
            expected[t] += weights[t, k] * out
    torch.testing.assert_close(run_sorted(experts, hidden, ids, weights), expected)


def test_a_number_past_the_last_expert_adds_nothing() -> None:
    model = tiny_model("olmoe")
    experts = model.get_submodule(find_anatomy(model, model.config).layers[0].site.experts)
    hidden, weights = torch.randn(5, 32), torch.rand(5, 2)
    ids = torch.tensor([[0, 8], [8, 8], [3, 4], [8, 7], [2, 9]])
    made = run_sorted(experts, hidden, ids, weights)
    inside = ids < 8
    again = run_sorted(experts, hidden, ids.clamp(max=7), weights * inside)
    torch.testing.assert_close(made, again)
    assert (made[1] == 0).all()
    assert (made[2] != 0).any()


def test_half_precision_is_summed_in_float32() -> None:
    model = tiny_model("olmoe").bfloat16()
    experts = model.get_submodule(find_anatomy(model, model.config).layers[0].site.experts)
    hidden = torch.randn(200, 32).bfloat16()
    ids = torch.stack([torch.randperm(8) for _ in range(200)])
    weights = torch.full((200, 8), 0.125).bfloat16()
    made = run_sorted(experts, hidden, ids, weights)
    outputs = []
    for e in range(8):
        alone = run_sorted(experts, hidden, torch.full((200, 1), e), torch.ones(200, 1))
        outputs.append(alone.float() * 0.125)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, sum(outputs).bfloat16())  # one rounding, at the end


def test_what_it_does_not_take_is_left_alone() -> None:
    model = tiny_model("olmoe")
    experts = model.get_submodule(find_anatomy(model, model.config).layers[0].site.experts)
    experts._is_expert_parallel = True
    before = model.config._experts_implementation
    with fast_experts(model) as switched:
        assert not switched
        assert model.config._experts_implementation == before


def test_the_config_is_given_back_after_an_error() -> None:
    model = tiny_model("mixtral")
    before, inside = model.config._experts_implementation, []

    def fails() -> None:
        with fast_experts(model):
            inside.append(model.config._experts_implementation)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert inside == ["moescope_sorted"]
    assert model.config._experts_implementation == before
