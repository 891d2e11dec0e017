"""What the routers did with one text, and two texts side by side: where their routes part.

A text is tokenized as the model would see it and traced in one forward pass. Two are aligned token
by token, which shows what a changed word does to the routing of the words after it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.axes import require_layers
from moescope.errors import BadInputError
from moescope.models.accept import AnyModel, as_model
from moescope.models.capture import RoutingCapture
from moescope.run.facts import LayerFacts
from moescope.trace.facts import layer_facts
from moescope.words import counted

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 64
"""Tokens that a notebook shows."""


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
    one, other = (route(loaded, text) for text in (left, right))
    rows = [_row(one, other, i, j) for i, j in _align(one.tokens, other.tokens)]
    prefix = [_prefix(row) for row in rows]
    differing = (n for n, row in enumerate(rows) if row.shared and min(row.shared) < 1.0)
    return RouteComparison([*one.layers], rows, next(differing, None), prefix)


@dataclass(frozen=True, repr=False)
class Routes:
    """What every router did with the T tokens of one text, as they were really used.

    ``routes[3]`` is what layer 3 did, by the model's own number: arrays ``logits`` and ``probs`` of
    shape (T, E), ``topk_ids`` and ``topk_weights`` of shape (T, K) by descending weight, and those
    of shape (T,) that `moescope.run.facts.LayerFacts` lists. ``logits`` are what the router puts
    out, which is probabilities in families that return those.

    Attributes:
        tokens: the text of each token, those that the tokenizer adds too.
        token_ids: (T,), their numbers.
        layers: number of an MoE layer → its arrays.
    """

    tokens: list[str]
    token_ids: NDArray[np.int64]
    layers: dict[int, LayerFacts]

    def __getitem__(self, layer: int) -> LayerFacts:
        """The arrays of a layer.

        Raises:
            BadInputError: no MoE layer has this number.
        """
        require_layers((layer,), tuple(self.layers), "this model")
        return self.layers[layer]

    def __repr__(self) -> str:
        first = next(iter(self.layers.values()))
        sizes = f"{first.probs.shape[1]} experts, {first.topk_ids.shape[1]} per token"
        layers = counted(len(self.layers), "MoE layer")
        return f"<Routes: {len(self.tokens)} tokens, {layers} × {sizes}>"

    def _repr_html_(self) -> str:
        firsts = {f"layer {n}": facts.topk_ids[:, 0] for n, facts in self.layers.items()}
        rows = [f"<th>{escape(repr(self))}</th>" + "".join(f"<th>{name}</th>" for name in firsts)]
        for number, token in enumerate(self.tokens[:_SHOWN]):
            cells = "".join(f"<td>E{ids[number]}</td>" for ids in firsts.values())
            rows.append(f"<td>{escape(repr(token))}</td>{cells}")
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"

    def to_pandas(self, *, every: bool = False) -> pd.DataFrame:
        """One row for each token, layer and expert.

        Args:
            every: all E experts of a layer rather than the K that were chosen.

        Returns:
            A data frame: ``position``, ``token``, ``layer``, ``rank`` (0: the expert with the
            largest weight; −1: not chosen), ``expert``, ``weight`` (as the expert was called with;
            0 where it was not), ``prob`` (of the router's whole distribution; chance 1/E) and
            ``logit``, ordered by position, layer and rank, or by expert where ``every``.
        """
        import pandas as pd

        parts = []
        for layer, facts in self.layers.items():
            (T, E), K = facts.probs.shape, facts.topk_ids.shape[1]
            rank_TE, weight_TE = np.full((T, E), -1), np.zeros((T, E), np.float32)
            np.put_along_axis(rank_TE, facts.topk_ids, np.arange(K)[None], 1)
            np.put_along_axis(weight_TE, facts.topk_ids, facts.topk_weights, 1)
            ids = np.tile(np.arange(E), (T, 1)) if every else facts.topk_ids
            columns = {
                "rank": rank_TE,
                "weight": weight_TE,
                "prob": facts.probs,
                "logit": facts.logits,
            }
            taken = {k: np.take_along_axis(v, ids, 1).reshape(-1) for k, v in columns.items()}
            position = np.repeat(np.arange(T), ids.shape[1])
            token = np.asarray(self.tokens, object)[position]
            where = {"position": position, "token": token, "layer": layer}
            parts.append(pd.DataFrame({**where, "expert": ids.reshape(-1), **taken}))
        names = ["position", "token", "layer", "rank", "expert", "weight", "prob", "logit"]
        order = ["position", "layer", "expert" if every else "rank"]
        return pd.concat(parts)[names].sort_values(order, ignore_index=True)


def route(model: AnyModel, text: str) -> Routes:
    """What every router does with a text: logits, probabilities, chosen experts and weights.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`, such as of `wrap_model`.
        text: one text.

    Returns:
        `Routes`, arrays by layer; ``.to_pandas()`` gives a data frame.

    Raises:
        BadInputError: the text is empty, longer than the model's context, or no text.
        ModelError: the model cannot be loaded or read.

    Example::

        routes = route("allenai/OLMoE-1B-7B-0924", "The plan covers therapy")
        routes[3].probs[:, 7]                           # of L3E7, at every token
        routes.to_pandas().query("rank == 0")           # the first choices
    """
    loaded = as_model(model)
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
    facts = {}
    for layer in loaded.anatomy.layers:
        r = routing[layer.layer_idx]
        taken = r.logits, r.topk_ids.long(), r.topk_weights
        facts[layer.layer_idx] = layer_facts(*taken, layer.scoring)
    pieces = [loaded.tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    return Routes(pieces, np.asarray(ids), facts)


def _align(left: list[str], right: list[str]) -> list[tuple[int | None, int | None]]:
    pairs: list[tuple[int | None, int | None]] = []
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        both = min(b - a, d - c) if left[a:b] == right[c:d] else 0
        pairs += [(a + n, c + n) for n in range(both)]
        pairs += [(n, None) for n in range(a + both, b)]
        pairs += [(None, n) for n in range(c + both, d)]
    return pairs


def _row(left: Routes, right: Routes, i: int | None, j: int | None) -> AlignedToken:
    one, other = (
        None if n is None else [f.topk_ids[n].tolist() for f in side.layers.values()]
        for side, n in ((left, i), (right, j))
    )
    shared = None
    if one is not None and other is not None:
        shared = [len(set(a) & set(b)) / len(a) for a, b in zip(one, other, strict=True)]
    return AlignedToken(
        None if i is None else left.tokens[i],
        None if j is None else right.tokens[j],
        one,
        other,
        shared,
    )


def _prefix(row: AlignedToken) -> int | None:
    if row.left_ids is None or row.right_ids is None:
        return None
    pairs = zip(row.left_ids, row.right_ids, strict=True)
    return next((n for n, (a, b) in enumerate(pairs) if a[0] != b[0]), len(row.left_ids))
