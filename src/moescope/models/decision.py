"""One router's decision under the edits of its layer: logits before, choice and weights after.

Everything between is the stock router's own code. Used by `moescope.models.editing` only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.overrides import TorchFunctionMode

from moescope.errors import ModelError
from moescope.models.anatomy import MoELayer, Scoring
from moescope.models.capture import read_router_output
from moescope.models.edits import Edit

__all__ = ["Decision", "LayerEdits", "PassWindow"]

_SELECTION_BIAS = re.compile(r"(?:^|\.)(?:e_score_correction_bias|expert_bias|balancing_biases)$")
_TOP_K_NAMES = ("top_k", "num_experts_per_tok", "moe_top_k")
_NO_RATIO = ("PhimoeTopKRouter", "ZayaRouter")


@dataclass
class PassWindow:
    """Which columns of the sequences the running pass holds: batch × length from ``start``."""

    batch: int = 0
    length: int = 0
    start: int = 0

    def rows(self, positions: tuple[int, ...], num_rows: int) -> torch.Tensor:
        """Which of the batch × length rows stand at these columns, (num_rows,) bool.

        Raises:
            ModelError: the router sees other rows than the pass has tokens.
        """
        if self.batch * self.length != num_rows:
            raise ModelError(
                f"the router saw {num_rows} rows in a pass of {self.batch} × {self.length} tokens; "
                "positions cannot be told, so leave the position out"
            )
        columns = torch.arange(self.start, self.start + self.length)
        return torch.isin(columns, torch.tensor(positions)).repeat(self.batch)


@dataclass
class LayerEdits:
    """The edits in force on one layer."""

    layer: MoELayer
    window: PassWindow
    edits: list[Edit] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Edit]:
        """The edits of these kinds, in the order in which they were given."""
        return [edit for edit in self.edits if edit.kind in kinds]

    def ids(self, edit: Edit, device: torch.device) -> torch.Tensor:
        """Numbers of the edit's experts in this layer."""
        here = [ref.expert for ref in edit.experts if ref.layer_idx == self.layer.layer_idx]
        return torch.tensor(here, device=device, dtype=torch.long)

    def rows(self, edit: Edit, like: torch.Tensor) -> torch.Tensor:
        """Which rows the edit concerns, (T, 1) bool."""
        if edit.positions is None:
            return torch.ones((like.shape[0], 1), dtype=torch.bool, device=like.device)
        return self.window.rows(edit.positions, like.shape[0]).to(like.device)[:, None]


class _Chosen(NamedTuple):
    """What a router put out, as rows. ``real_ids`` gives a skip expert its own number."""

    logits: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    real_ids: torch.Tensor


class Decision:
    """Called in place of a router's ``forward`` (or of a block's ``route_tokens_to_experts``)."""

    def __init__(
        self,
        state: LayerEdits,
        router: nn.Module,
        block: nn.Module,
        stock: Callable[..., Any],
        *,
        by_block: bool,
    ) -> None:
        self._state, self._router, self._block = state, router, block
        self._stock, self._by_block = stock, by_block
        self._name = f"{state.layer.site.router} ({type(router).__name__})"
        self._own_logits: torch.Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decide as the stock router does, with the edits in force."""
        with self._other_top_k(), self._no_way_back():
            output, logits = self._decide(args, kwargs)
        chosen = self._read(output, logits)
        self._check(chosen)
        edited = self._force(self._keep_shares(chosen))
        edited = self._multiply(edited)
        return output if edited is chosen else self._write(output, edited)

    # -- before the choice

    def _decide(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, torch.Tensor | None]:
        """What the stock router makes of edited logits; the logits too where a block decides."""
        if self._by_block:
            logits = self._edit_logits(args[0])
            return self._stock(logits, *args[1:], **kwargs), logits
        if not self._state.of("mask", "bias"):
            return self._stock(*args, **kwargs), None
        width = self._state.layer.num_experts
        with _LogitsMode(width, self._edit_logits) as mode:
            output = self._stock(*args, **kwargs)
        if mode.seen != 1:
            raise ModelError(
                f"{self._name} makes {mode.seen} linear maps onto {width} numbers, expected one; "
                "which of them are its logits cannot be told, so it takes no mask and no bias"
            )
        return output, None

    def _edit_logits(self, logits: torch.Tensor) -> torch.Tensor:
        rows_TE = self._own_logits = logits.reshape(-1, logits.shape[-1])
        for edit in self._state.of("mask", "bias"):
            change = torch.zeros_like(rows_TE[0])
            amount = float("-inf") if edit.kind == "mask" else edit.value
            change[self._state.ids(edit, logits.device)] = amount
            rows_TE = torch.where(self._state.rows(edit, rows_TE), rows_TE + change, rows_TE)
        return rows_TE.reshape(logits.shape)

    @contextlib.contextmanager
    def _other_top_k(self) -> Iterator[None]:
        wanted = self._state.of("top_k")
        stock_k = self._state.layer.top_k
        holders = [
            (module, name)
            for module in (self._router, self._block)
            for name in _TOP_K_NAMES
            if wanted and getattr(module, name, None) == stock_k
        ]
        for module, name in holders:
            setattr(module, name, int(wanted[-1].value))
        try:
            yield
        finally:
            for module, name in holders:
                setattr(module, name, stock_k)

    @contextlib.contextmanager
    def _no_way_back(self) -> Iterator[None]:
        """A masked expert must not come back by its selection bias."""
        masks = self._state.of("mask")
        named = (
            pair
            for module in (self._router, self._block)
            for pair in (*module.named_buffers(), *module.named_parameters())
            if masks
        )
        biases = {id(t): t for name, t in named if _SELECTION_BIAS.search(name)}.values()
        if biases and any(e.positions is not None for e in masks):
            raise ModelError(
                f"{self._name} chooses by a selection bias, which holds for all tokens of a pass, "
                "so an expert cannot be masked at some positions only; use zero or bias, or leave "
                "the position out"
            )
        kept = [t.detach().clone() for t in biases]
        for tensor in biases:
            for edit in masks:
                tensor.data.view(-1)[self._state.ids(edit, tensor.device)] = float("-inf")
        try:
            yield
        finally:
            for tensor, old in zip(biases, kept, strict=True):
                tensor.data.copy_(old)

    # -- after the choice

    def _read(self, output: Any, logits: torch.Tensor | None) -> _Chosen:
        if logits is not None:
            weights, ids = (t.reshape(-1, t.shape[-1]) for t in output)
            return _Chosen(logits.reshape(-1, logits.shape[-1]), ids, weights, ids)
        seen = read_router_output(self._router, output)
        if type(self._router).__name__ == "ZayaRouter":
            raw = output[2].reshape(seen.topk_ids.shape)
            return _Chosen(seen.logits, raw, seen.topk_weights, seen.topk_ids)
        return _Chosen(seen.logits, seen.topk_ids, seen.topk_weights, seen.topk_ids)

    def _write(self, output: Any, chosen: _Chosen) -> Any:
        if type(self._router).__name__ == "Llama4Router":
            scores = torch.zeros_like(output[0]).reshape(-1, output[0].shape[-1])
            scores.scatter_(1, chosen.ids, chosen.weights.to(scores.dtype))
            return scores.reshape(output[0].shape), output[1]
        first = 0 if self._by_block else 1
        parts = list(output)
        parts[first] = chosen.weights.reshape(parts[first].shape)
        parts[first + 1] = chosen.ids.reshape(parts[first + 1].shape)
        return tuple(parts)

    def _check(self, chosen: _Chosen) -> None:
        """Refuse where the router did not do what an edit asked of it."""
        for edit in self._state.of("top_k")[-1:]:
            if chosen.ids.shape[-1] != int(edit.value):
                raise ModelError(
                    f"{self._name} chose {chosen.ids.shape[-1]} experts where top_k = "
                    f"{edit.value:g} was asked for: its number is built in"
                )
        for edit in self._state.of("mask"):
            back = torch.isin(chosen.real_ids, self._state.ids(edit, chosen.ids.device))
            if bool((back & self._state.rows(edit, chosen.ids)).any()):
                raise ModelError(
                    f"{self._name} still chose a masked expert: something other than its logits "
                    "decides (the token itself, or groups with too few experts left); use zero"
                )

    def _keep_shares(self, chosen: _Chosen) -> _Chosen:
        """Weights as if masked experts were still in the softmax: times 1 − their share."""
        layer, weights = self._state.layer, chosen.weights
        if layer.scoring != "softmax" or layer.normalized:
            return chosen
        for edit in self._state.of("mask"):
            if edit.renormalize or self._own_logits is None:
                continue
            shares = torch.softmax(self._own_logits.float(), -1)
            masked = shares[:, self._state.ids(edit, shares.device)].sum(-1, keepdim=True)
            kept = (weights.float() * (1 - masked)).to(weights.dtype)
            weights = torch.where(self._state.rows(edit, weights), kept, weights)
        return chosen if weights is chosen.weights else chosen._replace(weights=weights)

    def _force(self, chosen: _Chosen) -> _Chosen:
        edits, layer = self._state.of("force"), self._state.layer
        if edits and type(self._router).__name__ in _NO_RATIO:
            raise ModelError(
                f"{self._name}: the weights of a token do not follow from its scores alone, so a "
                "forced expert has no weight; use bias instead"
            )
        for edit in edits:
            forced = self._state.ids(edit, chosen.ids.device)
            rows = self._state.rows(edit, chosen.ids)
            for expert in forced.tolist():
                chosen = _bring_in(expert, forced, rows, chosen, layer.scoring, layer.normalized)
        return chosen

    def _multiply(self, chosen: _Chosen) -> _Chosen:
        weights = chosen.weights
        for edit in self._state.of("scale", "zero"):
            hit = torch.isin(chosen.ids, self._state.ids(edit, weights.device))
            hit = hit & self._state.rows(edit, weights)
            if edit.kind == "scale":
                if edit.value != 1.0:
                    weights = torch.where(hit, weights * edit.value, weights)
                continue
            left = weights.masked_fill(hit, 0.0)
            if edit.renormalize:
                left = torch.where(hit.any(-1, keepdim=True), _same_sum(left, weights), left)
            weights = left
        return chosen if weights is chosen.weights else chosen._replace(weights=weights)


class _LogitsMode(TorchFunctionMode):
    """Edits the result of the one linear map onto ``width`` numbers."""

    def __init__(self, width: int, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.seen, self._width, self._edit = 0, width, edit

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear and result.shape[-1] == self._width:
            self.seen += 1
            return self._edit(result)
        return result


def _scores(logits: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What a token's weights are proportional to, (T, E) float32."""
    z = logits.float()
    if scoring == "softmax":
        return torch.softmax(z, -1)
    if scoring == "sigmoid":
        return torch.sigmoid(z)
    return F.softplus(z).sqrt() if scoring == "sqrtsoftplus" else z


def _bring_in(
    expert: int,
    forced: torch.Tensor,
    rows_T1: torch.Tensor,
    chosen: _Chosen,
    scoring: Scoring,
    normalized: bool,
) -> _Chosen:
    """Put one expert in the place of the weakest choice that is not forced itself."""
    ids, weights = chosen.ids, chosen.weights
    scores = _scores(chosen.logits, scoring)
    top = weights.float().argmax(-1, keepdim=True)
    unit = weights.float().gather(-1, top) / scores.gather(-1, ids.gather(-1, top))
    own = scores[:, expert : expert + 1] * unit
    rank = weights.float().masked_fill(torch.isin(ids, forced), float("inf"))
    weakest = rank.argmin(-1, keepdim=True)
    new_weights = weights.float().scatter(-1, weakest, own).to(weights.dtype)
    if normalized:
        new_weights = _same_sum(new_weights, weights)
    new_ids = ids.scatter(-1, weakest, torch.full_like(weakest, expert, dtype=ids.dtype))
    change = rows_T1 & ~(ids == expert).any(-1, keepdim=True)
    ids, weights = torch.where(change, new_ids, ids), torch.where(change, new_weights, weights)
    return chosen._replace(ids=ids, weights=weights, real_ids=ids)


def _same_sum(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Scale each row of ``new`` to the sum of that row of ``old``; rows of zeros stay."""
    total = new.float().sum(-1, keepdim=True)
    factor = old.float().sum(-1, keepdim=True) / total.where(total > 0, torch.ones_like(total))
    return (new.float() * factor).to(new.dtype)
