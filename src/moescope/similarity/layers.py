"""One MoE layer: its experts asked for their outputs on the same inputs, and compared.

Beside the layer's own experts a few with shuffled weights answer too: what they have in common
comes from the inputs and the shape, not from training. It knows a loaded model, and no text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from moescope.errors import ModelError
from moescope.models import LoadedModel, MoELayer
from moescope.models.expert_calls import ExpertLayer
from moescope.similarity.gram import (
    FunctionOutputs,
    TokenGroups,
    cosine_sums,
    gram_operations,
    gram_sums,
)
from moescope.similarity.inputs import LayerSample
from moescope.similarity.pair_values import (
    PairValues,
    cka_values,
    cosine_values,
    flat_cosines,
)
from moescope.similarity.shuffled import shuffled_expert

OUTPUT_METHODS = ("cosine", "cka")
"""The methods that need text."""

_CALL_TOKENS = 2048


class LayerValues(NamedTuple):
    """``values`` by method; ``missing``: method → why it could not be computed; ``notes``."""

    values: dict[str, PairValues]
    missing: dict[str, str]
    notes: list[str]


def compare_outputs(
    experts: ExpertLayer,
    inputs: LayerSample,
    groups: TokenGroups,
    methods: tuple[str, ...],
    *,
    seed: int,
    reference: int,
    budget: float,
    folder: Path | None = None,
    on_step: Callable[[str, float], None] = lambda _what, _done: None,
) -> LayerValues:
    """Cosine and linear CKA of the experts' outputs on identical inputs.

    ``reference`` experts with shuffled weights answer too. ``on_step`` is called with what is being
    done and the operations just done.
    """
    layer = experts.layer
    shuffled, notes = _who_is_shuffled(experts, min(reference, layer.num_experts), seed)
    functions = layer.num_experts + len(shuffled)
    outputs: FunctionOutputs | None = None
    values: dict[str, PairValues] = {}
    try:
        for function in range(functions):
            own = function < layer.num_experts
            expert = function if own else shuffled[function - layer.num_experts]
            if own:
                rows = _answer(experts, expert, inputs, groups.num_tokens)
            else:
                stream = np.random.SeedSequence([seed, 5, layer.layer_idx, expert])
                with shuffled_expert(experts, expert, int(stream.generate_state(1)[0])):
                    rows = _answer(experts, expert, inputs, groups.num_tokens)
            if outputs is None:
                outputs = FunctionOutputs(
                    functions, groups, rows.shape[1], budget=budget, folder=folder,
                    device=inputs.device,
                )  # fmt: skip
            outputs.add(function, rows)
            on_step("outputs", cost(experts.layer, groups.num_tokens).output)
        assert outputs is not None
        values = _compare(outputs, inputs, layer, methods, on_step)
    finally:
        if outputs is not None:
            outputs.close()
    return LayerValues(values, {}, notes)


def _compare(
    outputs: FunctionOutputs,
    inputs: LayerSample,
    layer: MoELayer,
    methods: tuple[str, ...],
    on_step: Callable[[str, float], None],
) -> dict[str, PairValues]:
    made = {}
    sizes = outputs.groups.sizes
    for method in methods:
        if method == "cosine":
            given = torch.as_tensor(inputs.given(layer.num_experts))
            cosines = cosine_sums(outputs, given, lambda n: on_step("cosine", n))
            lost = outputs.undefined(centred=False)
            made[method] = cosine_values(cosines, sizes, lost, layer.num_experts)
        elif method == "cka":
            products = gram_sums(outputs, lambda n: on_step("CKA", n))
            lost = outputs.undefined(centred=True)
            made[method] = cka_values(products, sizes, lost, layer.num_experts)
    return made


def _who_is_shuffled(experts: ExpertLayer, count: int, seed: int) -> tuple[list[int], list[str]]:
    try:
        next(experts.weights())
    except ModelError as error:
        return [], [f"no reference from shuffled experts: {error}"]
    rng = np.random.default_rng([seed, 6, experts.layer.layer_idx])
    return sorted(rng.choice(experts.layer.num_experts, count, replace=False).tolist()), []


def _answer(experts: ExpertLayer, expert: int, inputs: LayerSample, tokens: int) -> torch.Tensor:
    """The whole output of one expert, (N, D) float32."""
    rows: torch.Tensor | None = None
    for start in range(0, tokens, _CALL_TOKENS):
        stop = min(start + _CALL_TOKENS, tokens)
        part = experts(expert, inputs.rows(start, stop))
        if rows is None:
            rows = torch.empty((tokens, part.shape[-1]), dtype=torch.float32)
        rows[start:stop] = part.float().cpu()
    assert rows is not None
    return rows


def compare_parameters(
    loaded: LoadedModel, layer: MoELayer, methods: tuple[str, ...]
) -> LayerValues:
    """Cosine of the experts' weights, and of their rows in the router.

    A family that does not keep what is asked for in a form that can be compared is named in
    ``missing``.
    """
    experts = ExpertLayer(loaded.model, layer)
    values: dict[str, PairValues] = {}
    missing: dict[str, str] = {}
    for method in methods:
        try:
            if method == "weights":
                values[method] = flat_cosines(experts.weights(), layer.num_experts)
            elif method == "router":
                rows = [("router", experts.router_rows())]
                values[method] = flat_cosines(rows, layer.num_experts)
        except ModelError as error:
            missing[method] = str(error)
    return LayerValues(values, missing, [])


class Cost(NamedTuple):
    """Floating-point operations: one expert's output, all cosines, all Gram matrices, weights."""

    output: float
    cosine: float
    cka: float
    weights: float


def cost(layer: MoELayer, tokens: int, functions: int = 1, budget: float = 1e9) -> Cost:
    """About how much work a layer is, for progress."""
    width, square = layer.hidden_size, float(functions) ** 2
    return Cost(
        output=2.0 * tokens * max(layer.expert_params, width),
        cosine=2.0 * tokens * square * width,
        cka=gram_operations(tokens, functions, width, budget) if tokens else 0.0,
        weights=2.0 * float(layer.num_experts) ** 2 * layer.expert_params,
    )
