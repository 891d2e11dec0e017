"""Models that also see or hear, given text alone: what their text part does by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.multimodal import MULTIMODAL_TYPES, multimodal_config, multimodal_model
from tests.support.saved import tiny_tokenizer
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moescope.errors import ModelError
from moescope.models import ModelSpec, find_anatomy, load_meta, load_model
from moescope.models.anatomy import REFUSED, MoELayer
from moescope.models.capture import RoutingCapture
from moescope.models.classes import auto_class
from moescope.models.experts import fast_experts

TYPES = [t for t in MULTIMODAL_TYPES if t != "inkling2_loop"]
IDS = torch.randint(4, 100, (2, 11), generator=torch.Generator().manual_seed(1))
LENGTHS = (11, 8)


def by_itself(model: Any, layers: tuple[MoELayer, ...], row: torch.Tensor) -> tuple[Any, Any]:
    """Logits of the text part alone, and what its experts were called with, by plain hooks."""
    calls: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for layer in layers:

        def note(_module: Any, args: Any, kwargs: Any, number: int = layer.layer_idx) -> None:
            given = [*args, *kwargs.values()]
            calls[number] = (given[1].clone(), given[2].clone())

        experts = model.get_submodule(layer.site.experts)
        handles.append(experts.register_forward_pre_hook(note, with_kwargs=True))
    hidden = model.get_decoder()(input_ids=row[None], use_cache=False).last_hidden_state
    for handle in handles:
        handle.remove()
    return model.get_output_embeddings()(hidden)[0], calls


@pytest.mark.parametrize("model_type", TYPES)
@torch.no_grad()
def test_a_padded_batch_routes_as_the_text_part_alone_routes_each_text(model_type: str) -> None:
    model: Any = multimodal_model(model_type)
    layers = find_anatomy(model, model.config).layers
    mask = torch.ones_like(IDS)
    mask[1, LENGTHS[1] :] = 0
    with fast_experts(model), RoutingCapture(model, [m.site for m in layers]) as capture:
        logits = model(input_ids=IDS, attention_mask=mask, use_cache=False).logits
        routing = capture.take(expected_rows=IDS.numel())
    assert torch.isfinite(logits).all()
    for number, length in enumerate(LENGTHS):
        alone, calls = by_itself(model, layers, IDS[number, :length])
        here = logits[number, :length]
        close = torch.allclose(here, alone, rtol=1e-4, atol=1e-4)
        assert close or torch.equal(here.argmax(-1), alone.argmax(-1))  # a factor behind the head
        rows = slice(number * IDS.shape[1], number * IDS.shape[1] + length)
        for layer in layers:
            ids, weights = calls[layer.layer_idx]
            seen = routing[layer.layer_idx]
            assert torch.equal(seen.topk_ids[rows].sort(-1).values, ids.sort(-1).values)
            order, other = seen.topk_ids[rows].argsort(-1), ids.argsort(-1)
            torch.testing.assert_close(
                seen.topk_weights[rows].gather(-1, order), weights.gather(-1, other),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip


def test_experts_for_the_tokens_of_images_are_not_taken_for_those_of_text() -> None:
    model = multimodal_model("ernie4_5_vl_moe")
    layers = find_anatomy(model, model.config).layers
    assert all(layer.site.block.endswith("mlp.text_moe") for layer in layers)
    assert all(layer.site.shared[0].endswith("mlp.shared_experts") for layer in layers)
    assert any("vision_moe" in name for name, _ in model.named_modules())


def test_a_saved_one_is_loaded_with_all_its_weights(tmp_path: Path) -> None:
    model = multimodal_model("qwen3_vl_moe")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(str(tmp_path)))
    assert type(loaded.model) is type(model)
    found = loaded.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert load_meta(ModelSpec(str(tmp_path))) == loaded.anatomy


WHOLE = sorted({"diffusion_gemma", "qwen3_omni_moe"} & set(CONFIG_MAPPING))


@pytest.mark.parametrize("model_type", WHOLE)
def test_what_has_no_pass_from_text_to_text_is_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(ModelError, match="is not supported") as error:
        auto_class("m", AutoConfig.for_model(model_type))
    assert REFUSED[model_type] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif("inkling2_loop" not in CONFIG_MAPPING, reason="a later version brings it")
def test_a_text_part_that_is_refused_is_refused_in_its_wrapping() -> None:
    with pytest.raises(ModelError, match="'inkling2_loop_text' is not supported"):
        auto_class("m", multimodal_config("inkling2_loop"))
