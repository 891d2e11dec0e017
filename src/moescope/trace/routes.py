"""Two texts side by side: which experts each token takes, and where the routes part.

The texts are tokenized as the model would see them, aligned token by token, and traced in one
forward pass each. It shows what a changed word does to the routing of the words after it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from moescope.errors import BadInputError
from moescope.models.accept import AnyModel, as_model
from moescope.models.capture import RoutingCapture
from moescope.models.loading import LoadedModel
from moescope.run.facts import LayerFacts
from moescope.trace.facts import layer_facts

if TYPE_CHECKING:
    import pandas as pd


class AlignedToken(NamedTuple):
    """One row of the alignment.

    ``left`` and ``right``: token texts, None where a text has no such token. ``left_ids`` and
    ``right_ids``: by layer, the K experts of each by descending weight (None likewise).
    ``shared``: by layer, |A∩B|/K for tokens that both have, else None.
    """

    left: str | None
    right: str | None
    left_ids: list[list[int]] | None
    right_ids: list[list[int]] | None
    shared: list[float] | None


@dataclass(frozen=True)
class RouteComparison:
    """Aligned tokens with their experts.

    Attributes:
        layers: the model's own numbers of the MoE layers.
        rows: the alignment, in order.
        first_difference: index of the first row where a token that both texts have takes another
            set of experts in some layer, or None.
        common_prefix_layers: for every aligned token, in how many layers from the first on the
            first choice is the same.
    """

    layers: list[int]
    rows: list[AlignedToken]
    first_difference: int | None
    common_prefix_layers: list[int | None]


def compare_routes(model: AnyModel, left: str, right: str) -> RouteComparison:
    """Trace two texts and align their routes.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        left: the first text.
        right: the second text.

    Raises:
        BadInputError: a text is empty or longer than the model's context.
    """
    loaded = as_model(model)
    texts, facts = zip(*(route_text(loaded, text) for text in (left, right)), strict=True)
    layers = [m.layer_idx for m in loaded.anatomy.layers]
    rows = [_row(texts, facts, i, j) for i, j in _align(*texts)]
    prefix = [_prefix(row) for row in rows]
    differing = (n for n, row in enumerate(rows) if row.shared and min(row.shared) < 1.0)
    return RouteComparison(layers, rows, next(differing, None), prefix)


def route(model: AnyModel, text: str) -> pd.DataFrame:
    """Which experts each token of a text takes, in every MoE layer.

    Every token that the model reads is there, those that the tokenizer adds too.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        text: one text.

    Returns:
        A data frame with one row for each token, layer and rank: ``position`` and ``token`` (its
        text), ``layer`` (the model's own number), ``rank`` (0: the expert with the largest
        weight), ``expert``, ``weight`` (as the expert was called with) and ``prob`` (of the
        router's whole distribution; chance 1/E).

    Raises:
        BadInputError: the text is empty or longer than the model's context.
        ModelError: the model cannot be loaded or read.

    Example::

        route("allenai/OLMoE-1B-7B-0924", "The plan covers therapy").query("rank == 0")
    """
    import pandas as pd

    loaded = as_model(model)
    tokens, facts = route_text(loaded, text)
    parts = []
    for layer, fact in zip(loaded.anatomy.layers, facts, strict=True):
        T, K = fact.topk_ids.shape
        position = np.repeat(np.arange(T), K)
        parts.append(
            pd.DataFrame(
                {
                    "position": position,
                    "token": np.asarray(tokens, object)[position],
                    "layer": layer.layer_idx,
                    "rank": np.tile(np.arange(K), T),
                    "expert": fact.topk_ids.reshape(-1),
                    "weight": fact.topk_weights.reshape(-1),
                    "prob": np.take_along_axis(fact.probs, fact.topk_ids, 1).reshape(-1),
                }
            )
        )
    order = ["position", "layer", "rank"]
    return pd.concat(parts).sort_values(order, ignore_index=True)


def route_text(loaded: LoadedModel, text: str) -> tuple[list[str], list[LayerFacts]]:
    """The tokens of one text and what every MoE layer did with them, in one forward pass.

    Raises:
        BadInputError: the text is empty, longer than the model's context, or no text.
    """
    if not isinstance(text, str):
        raise BadInputError(f"a text is a string; got {type(text).__name__}")
    if not text.strip():
        raise BadInputError("an empty text has no route; give text in quotes")
    ids = loaded.tokenizer(text)["input_ids"]
    config = loaded.model.config
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and len(ids) > longest:
        raise BadInputError(
            f"a text of {len(ids)} tokens is past this model's context of {longest}"
        )
    sites = [m.site for m in loaded.anatomy.layers]
    batch = torch.as_tensor([ids], device=next(loaded.model.parameters()).device)
    with RoutingCapture(loaded.model, sites) as capture, torch.inference_mode():
        loaded.model.base_model(input_ids=batch, use_cache=False)  # type: ignore[operator]
        routing = capture.take(expected_rows=len(ids))
    facts = []
    for layer in loaded.anatomy.layers:
        r = routing[layer.layer_idx]
        facts.append(layer_facts(r.logits, r.topk_ids.long(), r.topk_weights, layer.scoring))
    pieces = [loaded.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    return pieces, facts


def _align(left: list[str], right: list[str]) -> list[tuple[int | None, int | None]]:
    pairs: list[tuple[int | None, int | None]] = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        both = min(b - a, d - c) if left[a:b] == right[c:d] else 0
        pairs += [(a + n, c + n) for n in range(both)]
        pairs += [(n, None) for n in range(a + both, b)]
        pairs += [(None, n) for n in range(c + both, d)]
    return pairs


def _row(
    texts: Sequence[list[str]], facts: Sequence[list[LayerFacts]], i: int | None, j: int | None
) -> AlignedToken:
    left_ids = None if i is None else [f.topk_ids[i].tolist() for f in facts[0]]
    right_ids = None if j is None else [f.topk_ids[j].tolist() for f in facts[1]]
    shared = None
    if left_ids is not None and right_ids is not None:
        shared = [len(set(a) & set(b)) / len(a) for a, b in zip(left_ids, right_ids, strict=True)]
    return AlignedToken(
        None if i is None else texts[0][i],
        None if j is None else texts[1][j],
        left_ids,
        right_ids,
        shared,
    )


def _prefix(row: AlignedToken) -> int | None:
    if row.left_ids is None or row.right_ids is None:
        return None
    pairs = zip(row.left_ids, row.right_ids, strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a[0] != b[0]), len(row.left_ids))
