"""Weights of eight bits and fewer: run with their scale, or refused in one line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.saved import save_tiny
from transformers.quantizers import quantizer_finegrained_fp8

from moescope.errors import MissingExtraError, ModelError
from moescope.models import ModelSpec, load_model
from moescope.models.loading import load_streamed

BOTH = pytest.mark.parametrize("load", [load_model, load_streamed], ids=["resident", "streamed"])


@pytest.fixture
def accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is used where a checkpoint is widened as it is read."""
    monkeypatch.setattr(quantizer_finegrained_fp8, "is_accelerate_available", lambda: True)


def float8(
    folder: Path,
    quantization: dict[str, Any] | None,
    block: int | None = None,
    scale: str = "weight_scale",
    without: str = "no such weight",
) -> dict[str, torch.Tensor]:
    """A model with its projections in float8; returns what their weights are.

    Args:
        folder: where it is saved.
        quantization: what its configuration says.
        block: rows and columns of a scale; one scale for all without.
        scale: what a scale is called.
        without: weights that have this in their name get none.
    """
    save_tiny("qwen3_moe", folder)
    kept, true = load_file(folder / "model.safetensors"), {}
    for key, weight in list(kept.items()):
        if weight.dim() != 2 or "proj" not in key:
            continue
        sides = [block or max(weight.shape)] * 2
        grid = [math.ceil(n / side) for n, side in zip(weight.shape, sides, strict=True)]
        rows, columns = (
            torch.arange(n) // side for n, side in zip(weight.shape, sides, strict=True)
        )
        scales = torch.zeros(grid)
        scales.index_put_((rows[:, None], columns[None]), weight.abs(), accumulate=True)
        scales = scales / 448 / 8
        wide = scales[rows[:, None], columns[None]]
        kept[key] = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        true[key] = kept[key].float() * wide
        if without not in key:
            kept[key.replace("weight", scale)] = scales if block else scales.reshape(())
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    if quantization is not None:
        path = folder / "config.json"
        stored = {**json.loads(path.read_text()), "quantization_config": quantization}
        path.write_text(json.dumps(stored))
    return true


def fp8(block: int | None) -> dict[str, Any]:
    """How transformers itself names float8 with scales."""
    size = None if block is None else [block, block]
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": size}


@BOTH
@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (None, "names no quantization that would scale it; use a copy in bfloat16"),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8"},
            "by quant_method 'modelopt', which transformers does not know; use a copy",
        ),
    ],
    ids=["no config", "modelopt"],
)
def test_float8_that_nobody_would_scale_is_refused(
    load: Any, quantization: dict[str, Any] | None, words: str, tmp_path: Path
) -> None:
    float8(tmp_path / "m", quantization)
    with pytest.raises(ModelError, match=rf"proj.weight is stored in float8_e4m3fn, .*{words}"):
        load(ModelSpec(str(tmp_path / "m")))


@BOTH
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e5m2], ids=str)
def test_stacks_of_experts_are_looked_at_too(load: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    """They are called ``gate_up_proj``, not ``….weight``."""
    folder = save_tiny("gpt_oss", tmp_path / "m")
    kept = load_file(folder / "model.safetensors")
    name = next(n for n in kept if n.endswith("experts.down_proj"))
    kept[name] = kept[name].to(dtype)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=f"{name} is stored in {kind}, but the configuration"):
        load(ModelSpec(str(folder)))


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize("block", [None, 16], ids=["one scale", "blocks"])
def test_float8_that_transformers_knows_runs_with_its_scales(
    block: int | None, tmp_path: Path
) -> None:
    """Against weights scaled here, one expert's among them."""
    true = float8(tmp_path / "m", fp8(block), block, "weight_scale_inv")
    kept = dict(load_model(ModelSpec(str(tmp_path / "m"))).model.named_parameters())
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(kept[name], true[name])
    stack = kept["model.layers.1.mlp.experts.down_proj"]
    torch.testing.assert_close(stack[3], true["model.layers.1.mlp.experts.3.down_proj.weight"])


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize("block", [None, 16], ids=["one scale", "blocks"])
def test_a_scale_under_a_name_that_is_left_out_is_refused(
    block: int | None, tmp_path: Path
) -> None:
    float8(tmp_path / "m", fp8(block), block, "weight_scale")
    words = r"down_proj.weight is stored in float8.* does not apply .*down_proj.weight_scale, which"
    with pytest.raises(ModelError, match=words):
        load_model(ModelSpec(str(tmp_path / "m")))


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize(
    "without", ["proj", "layers.1.self_attn.q_proj", "layers.3.mlp.experts.2.up_proj"]
)
def test_a_weight_without_its_scale_is_refused(without: str, tmp_path: Path) -> None:
    float8(tmp_path / "m", fp8(None), scale="weight_scale_inv", without=without)
    with pytest.raises(ModelError, match=rf"{without}.*no scale is stored beside it; fetch"):
        load_model(ModelSpec(str(tmp_path / "m")))


@pytest.mark.usefixtures("accelerate")
@pytest.mark.parametrize("block", [20, 14], ids=["scaled by other columns", "not divisible"])
def test_a_last_block_that_is_no_whole_one_is_refused(block: int, tmp_path: Path) -> None:
    """48 columns in blocks of 20 have 3 scales, which transformers takes for blocks of 16."""
    float8(tmp_path / "m", fp8(block), block, "weight_scale_inv")
    with pytest.raises(ModelError, match=r"proj.weight of shape .* widens whole blocks only; use"):
        load_model(ModelSpec(str(tmp_path / "m")))


@pytest.mark.parametrize("quantization", [fp8(None), {"quant_method": "mxfp4"}], ids=["fp8", "fp4"])
def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(
    quantization: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers import quantizer_mxfp4

    for module in (quantizer_finegrained_fp8, quantizer_mxfp4):
        monkeypatch.setattr(module, "is_accelerate_available", lambda: False)
    float8(tmp_path / "m", quantization, scale="weight_scale_inv")
    with pytest.raises(MissingExtraError, match=r"'accelerate', .*'moescope\[quantized\]'"):
        load_model(ModelSpec(str(tmp_path / "m")))
