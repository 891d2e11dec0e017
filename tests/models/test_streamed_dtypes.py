"""Streamed weights have the dtypes that transformers gives them when the whole model is loaded."""

from pathlib import Path

import pytest
import torch
from tests.support.saved import save_tiny
from tests.support.tiny import COMPOSITE_MODEL_TYPES, MOE_MODEL_TYPES
from torch import nn

from moescope.models import ModelSpec, load_model
from moescope.models.anatomy import REFUSED
from moescope.models.loading import load_streamed
from moescope.models.streaming import UNSTREAMED

STREAMED = [
    t for t in (*MOE_MODEL_TYPES, *COMPOSITE_MODEL_TYPES) if t not in REFUSED | UNSTREAMED.keys()
]


def _dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {n: t.dtype for n, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("model_type", STREAMED)
def test_every_parameter_and_buffer_has_the_dtype_of_the_model_in_memory(
    model_type: str, tmp_path: Path
) -> None:
    """Also those that a family keeps in float32 whatever is asked for, such as selection biases."""
    save_tiny(model_type, tmp_path / "model")
    for dtype in ("bfloat16", "float16"):
        spec = ModelSpec(str(tmp_path / "model"), dtype=dtype)
        whole, streamed = load_model(spec), load_streamed(spec)
        for layer_idx in range(len(streamed.streamed.layers)):
            streamed.streamed.load_layer(layer_idx)
        assert _dtypes(streamed.model) == _dtypes(whole.model), dtype
        assert streamed.weights_hash == whole.weights_hash, dtype


def test_a_selection_bias_near_12_is_not_rounded_to_the_steps_of_bfloat16(tmp_path: Path) -> None:
    """bfloat16 has steps of 1/16 there: biases that differ by less would all be equal."""
    save_tiny("deepseek_v3", tmp_path / "model")
    loaded = load_streamed(ModelSpec(str(tmp_path / "model"), dtype="bfloat16"))
    loaded.streamed.load_layer(1)
    bias = next(b for n, b in loaded.model.named_buffers() if "1.mlp.gate.e_score" in n)
    assert bias.dtype == torch.float32
    assert not torch.equal(bias, bias.bfloat16().float())
