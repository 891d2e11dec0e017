"""Which architectures have the same code for routers and experts, so that one stands for all.

transformers writes each architecture's classes out in full, many of them word for word. What
moescope does at the router and the experts meets the same code in all of a group, so the fast tests
take its first; the slow ones take every one. `tests/models/test_alike.py` holds the groups against
transformers' source.
"""

import inspect
from collections.abc import Iterable
from types import CodeType
from typing import Any

import pytest
import torch
from tests.support.multimodal import any_config
from torch import nn

from moescope.models import find_anatomy
from moescope.models.classes import auto_class

ALIKE: dict[str, tuple[str, ...]] = {
    "aria_text": ("aria",),
    "deepseek_ocr2": ("unlimited_ocr",),
    "deepseek_v3": (
        "bailing_hybrid", "deepseek_v32", "dots1", "dots3_note", "dots3_note_text", "exaone_moe",
        "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "kimi_linear", "solar_open",
    ),
    "gemma4_text": ("gemma4",),
    "granitemoe": ("granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
    "hy_v4": ("glm5_next",),
    "inkling2_text": ("inkling2",),
    "inkling_text": ("inkling_mm_model",),
    "llama4_text": ("llama4",),
    "mellum": ("qwen3_omni_moe_thinker",),
    "minimax_m3_vl_text": ("minimax_m3_vl",),
    "mistral3": ("mistral4",),
    "mixtral": ("minimax",),
    "olmoe": ("flex_olmo",),
    "qwen3_5_moe_text": ("qwen3_5_moe",),
    "qwen3_moe": ("internvl",),
    "qwen3_next": ("qwen4_exp", "qwen4_exp_text"),
}  # fmt: skip
"""The first of each group, and those that are like it."""

TWINS = {twin: first for first, twins in ALIKE.items() for twin in twins}


def one_of_each(types: Iterable[str]) -> list[object]:
    """The types as parameters of a test; those that another one stands for are slow."""
    kept = list(types)
    return [pytest.param(t, marks=pytest.mark.slow) if TWINS.get(t) in kept else t for t in kept]


def code_of(model_type: str) -> set[tuple[object, ...]]:
    """What routes and computes experts in each MoE layer, and how the anatomy describes it."""
    config = any_config(model_type)
    with torch.device("meta"):
        model = auto_class("tiny", config).from_config(config)
    return {
        (*(_code(model.get_submodule(path)) for path in (site.block, site.router, site.experts)),
         layer.scoring, layer.normalized, layer.selection_bias)
        for layer in find_anatomy(model, model.config).layers if (site := layer.site)
    }  # fmt: skip


def _code(module: nn.Module) -> tuple[object, ...]:
    """All methods but the constructor, inherited ones too, and the layout of its weights."""
    methods = {
        name: _instructions(inspect.unwrap(method).__code__, method.__doc__)
        for base in reversed(type(module).__mro__)
        if base.__module__.startswith("transformers.models")
        for name, method in vars(base).items()
        if inspect.isfunction(method) and name != "__init__"
    }
    layout = [getattr(module, n, None) for n in ("has_gate", "has_bias", "is_transposed")]
    return (*sorted(methods.items()), *layout)


def _instructions(code: CodeType, docs: str | None = None) -> tuple[Any, ...]:
    """What a function does: no docstring, no annotations, no line numbers."""
    values = [value for value in code.co_consts if value is None or value != docs]
    inner = [_instructions(v) if isinstance(v, CodeType) else repr(v) for v in values]
    return code.co_code, code.co_names, code.co_varnames, *inner
