"""Every Mixture-of-Experts type of the causal-LM mapping: found, read, and checked by replay."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from tests.support.alike import one_of_each
from tests.support.multimodal import MULTIMODAL_TYPES, any_config, any_model
from tests.support.replay import replay
from tests.support.tiny import (
    COMPOSITE_MODEL_TYPES,
    DEPARTURES,
    MOE_MODEL_TYPES,
    SINCE,
    tiny_model,
)
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from moescope.errors import ModelError
from moescope.models import find_anatomy
from moescope.models.anatomy import REFUSED
from moescope.models.capture import RoutingCapture
from moescope.models.classes import auto_class

CODE = Path(transformers.__file__).parent / "models"
LOOPED = "inkling2_loop"  # its text part is refused
SUPPORTED = [t for t in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES, *MULTIMODAL_TYPES)
             if t not in (*REFUSED, LOOPED)]  # fmt: skip


def _run(model: nn.Module) -> tuple[dict, dict, dict]:
    """One padded batch; returns routing, experts' inputs and experts' outputs by layer."""
    anatomy = find_anatomy(model, model.config)
    ids = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    seen, made, handles = {}, {}, []
    for layer in anatomy.layers:
        experts = model.get_submodule(layer.site.experts)

        def hook(_m, args, kwargs, output, n=layer.layer_idx):  # type: ignore[no-untyped-def]
            first = args[0] if args else kwargs["hidden_states"]
            seen[n] = first.detach().clone()
            made[n] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        handles.append(experts.register_forward_hook(hook, with_kwargs=True))
    with RoutingCapture(model, [m.site for m in anatomy.layers]) as capture, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
        routing = capture.take(expected_rows=ids.numel())
    for handle in handles:
        handle.remove()
    return routing, seen, made


@pytest.mark.parametrize("model_type", one_of_each(SUPPORTED))
def test_captured_routing_replayed_through_the_weights_gives_what_the_experts_put_out(
    model_type: str,
) -> None:
    model = any_model(model_type)
    routing, seen, made = _run(model)
    anatomy = find_anatomy(model, model.config)
    assert set(routing) == set(anatomy.layer_numbers)
    for layer in anatomy.layers:
        n, r = layer.layer_idx, routing[layer.layer_idx]
        experts = model.get_submodule(layer.site.experts)
        assert r.logits.shape[1] == layer.num_experts
        assert r.topk_ids.shape[1] == layer.top_k
        out = made[n].reshape(-1, made[n].shape[-1])
        hidden = seen[n].reshape(-1, seen[n].shape[-1])
        if type(experts).__name__ == "Llama4TextExperts":  # one copy of the input per expert
            copies = (layer.num_experts, -1, hidden.shape[-1])
            out = out.reshape(copies).sum(0)
            hidden = _llama4_input(model, layer.site.block, hidden, r)
        if type(experts).__name__ == "JetMoeMoE":
            out = out - experts.bias
        torch.testing.assert_close(
            replay(experts, hidden, r.topk_ids, r.topk_weights.float()), out.float(),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def _llama4_input(model: nn.Module, block: str, scaled: torch.Tensor, r) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Undo the scaling of the copy that belongs to each token's first choice."""
    rows = torch.arange(r.topk_ids.shape[0])
    copies = scaled.reshape(r.logits.shape[1], -1, scaled.shape[-1])
    return copies[r.topk_ids[:, 0], rows] / r.topk_weights[:, :1]


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_the_anatomy_from_the_config_alone_equals_that_of_the_model_in_memory(
    model_type: str,
) -> None:
    config = any_config(model_type)
    with torch.device("meta"):
        empty = auto_class("tiny", config).from_config(config)
    model = any_model(model_type)
    assert find_anatomy(empty, empty.config) == find_anatomy(model, model.config)


@pytest.mark.parametrize("model_type", one_of_each(SUPPORTED))
def test_the_observed_scoring_explains_the_weights_that_were_used(model_type: str) -> None:
    from moescope.models.probe import classify

    model = any_model(model_type)
    routing, _, _ = _run(model)
    if model_type == "phimoe":
        pytest.skip("sparsemixer weights follow no single scoring; stated in the anatomy")
    for layer in find_anatomy(model, model.config).layers:
        r = routing[layer.layer_idx]
        if layer.top_k > 1 and model_type != "gemma4_text":  # gemma4 scales each expert's weight
            assert classify(r) == layer.scoring


@pytest.mark.parametrize(
    ("model_type", "shared"),
    [("olmoe", ()), ("deepseek_v3", ("shared_experts",)), ("qwen2_moe", ("shared_expert",)),
     ("granitemoeshared", ("shared_mlp",)), ("gemma4_text", ("mlp",)), ("mixtral", ())],
)  # fmt: skip
def test_shared_experts_are_found_wherever_a_family_puts_them(
    model_type: str, shared: tuple[str, ...]
) -> None:
    model = tiny_model(model_type)
    for layer in find_anatomy(model, model.config).layers:
        assert tuple(p.rpartition(".")[2] for p in layer.site.shared) == shared


def test_parameter_counts_match_the_published_sizes() -> None:
    """Configurations as published; no weights are made."""
    from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen2MoeConfig

    configs = {
        (6.919, 1.282): OlmoeConfig(
            vocab_size=50304, hidden_size=2048, intermediate_size=1024, num_hidden_layers=16,
            num_attention_heads=16, num_experts=64, num_experts_per_tok=8,
        ),
        (46.70, 12.88): MixtralConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, num_local_experts=8,
        ),
        (14.32, 2.69): Qwen2MoeConfig(
            vocab_size=151936, hidden_size=2048, num_hidden_layers=24, num_attention_heads=16,
            num_key_value_heads=16, num_experts=60, num_experts_per_tok=4,
            moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
        ),
    }  # fmt: skip
    for (total, active), config in configs.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        anatomy = find_anatomy(model, config)
        assert anatomy.total_params / 1e9 == pytest.approx(total, abs=0.006)
        assert anatomy.active_params / 1e9 == pytest.approx(active, abs=0.006)


@pytest.mark.parametrize("model_type", sorted(REFUSED.keys() & set(MOE_MODEL_TYPES)))
def test_a_type_that_cannot_be_read_is_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        find_anatomy(model := tiny_model(model_type), model.config)


_EXPERTS = re.compile(r"^class \w*(?:Experts|MoE)\(", re.MULTILINE)
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)


def _classes_beside_experts() -> set[str]:
    """All classes in those files of transformers that define experts."""
    texts = [path.read_text("utf-8") for path in CODE.glob("*/modeling_*.py")]
    return {name for text in texts if _EXPERTS.search(text) for name in _CLASS.findall(text)}


def test_every_type_of_the_causal_mapping_whose_code_has_experts_is_covered() -> None:
    classes = _classes_beside_experts()
    found = {t for t, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name in classes}
    assert found == {*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES}


def test_every_type_that_also_sees_or_hears_and_whose_code_has_experts_is_covered() -> None:
    classes = _classes_beside_experts()
    found = {t for t, name in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.items() if name in classes}
    assert found - REFUSED.keys() <= {*MULTIMODAL_TYPES, *COMPOSITE_MODEL_TYPES}
    assert {"qwen3_omni_moe"} <= found & REFUSED.keys() <= {"qwen3_omni_moe", "diffusion_gemma"}


def test_all_types_of_the_oldest_version_are_covered_and_all_that_came_later() -> None:
    assert len(set(DEPARTURES) - SINCE.keys()) == 57
    assert set(DEPARTURES) - set(MOE_MODEL_TYPES) <= SINCE.keys()
