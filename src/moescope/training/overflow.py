"""The textbook case of capacity on a real model: which tokens of a text overflow, where they go."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.errors import BadInputError
from moescope.models import AnyModel, as_model
from moescope.trace.routes import route
from moescope.training.capacity import Choice, Overflow, expert_capacity, explain


@dataclass(frozen=True)
class LayerOverflow:
    """One layer's queue for one text.

    Attributes:
        layer: the model's own number. capacity: assignments that each expert takes.
        num_experts: E. top_k: choices that were seated for each token.
        rows: what each token wanted and got.
    """

    layer: int
    capacity: int
    num_experts: int
    top_k: int
    rows: list[Choice]

    @property
    def dropped(self) -> int:
        """Choices that no expert computes."""
        return sum(expert is None for row in self.rows for expert in row.got)

    @property
    def rerouted(self) -> int:
        """Choices that another expert computes."""
        return sum(
            g is not None and g != w
            for row in self.rows
            for w, g in zip(row.wanted, row.got, strict=True)
        )


def explain_overflow(
    model: AnyModel,
    text: str,
    *,
    layer: int | None = None,
    capacity: int | None = None,
    factor: float = 1.25,
    overflow: Overflow = "drop",
    top_k: int | None = None,
) -> list[LayerOverflow]:
    """Route a text through a model, then seat its tokens under a capacity.

    The model itself runs without a limit; the question is what a limit would do to the choices that
    its router made. Later layers are shown as they are without drops in earlier ones.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        text: one text; its tokens queue in order.
        layer: one MoE layer, or all.
        capacity: assignments of each expert; by ``factor`` unless given.
        factor: of even routing, int(T · factor · K / E), at least 1.
        overflow: drop, or reroute to the expert with room that the router finds most probable (a
            bias that a router adds for selection only is not seen).
        top_k: seat only this many first choices of a token (1: the textbook's top-1).

    Raises:
        BadInputError: an empty text, an unknown layer, a capacity below 1, a top_k out of range.
    """
    if capacity is not None and capacity < 1:
        raise BadInputError(f"`capacity` {capacity}: an expert takes at least 1 token")
    loaded = as_model(model)
    chosen = loaded.anatomy.select(None if layer is None else (layer,))
    routes = route(loaded, text)
    made = []
    for each in chosen:
        facts = routes[each.layer_idx]
        count = each.top_k if top_k is None else top_k
        if not 1 <= count <= each.top_k:
            raise BadInputError(
                f"`top_k` {count}: layer {each.layer_idx} gives a token {each.top_k} experts; "
                f"choose from 1 to {each.top_k}"
            )
        limit = capacity
        if limit is None:
            limit = expert_capacity(len(routes.tokens), each.num_experts, count, factor, minimum=1)
        rows = explain(
            torch.from_numpy(facts.topk_ids[:, :count]),
            torch.from_numpy(facts.probs),
            limit,
            routes.tokens,
            each.num_experts,
            overflow,
        )
        made.append(LayerOverflow(each.layer_idx, limit, each.num_experts, count, rows))
    return made
