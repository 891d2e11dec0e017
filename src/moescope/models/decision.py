"""One router's decision under the edits of its layer: logits before, choice and weights after.

Everything between is the stock router's own code. Used by `moescope.models.editing` only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.overrides import TorchFunctionMode

from moescope.errors import ModelError
from moescope.models.anatomy import MoELayer, Scoring
from moescope.models.capture import read_router_output
from moescope.models.edits import Edit
from moescope.models.window import PassWindow

__all__ = ["Decision", "LayerEdits", "refuse_copy"]

_SELECTION_BIASES = ("e_score_correction_bias", "expert_bias", "balancing_biases")
_TOP_K_NAMES = ("top_k", "num_experts_per_tok", "moe_top_k")
_NO_RATIO = ("PhimoeTopKRouter", "ZayaRouter")
_NEAR_BEST = "PhimoeTopKRouter"  # its softmax is over the near-best experts, not over all


@dataclass
class LayerEdits:
    """The edits in force on one layer, and how often its router was asked in this pass."""

    layer: MoELayer
    window: PassWindow
    edits: list[Edit] = field(default_factory=list)
    calls: int = 0

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

    def cells(self, edits: Sequence[Edit], like_TE: torch.Tensor) -> torch.Tensor:
        """Which experts these edits name at which rows, (T, E) bool."""
        cells_TE = torch.zeros(like_TE.shape, dtype=torch.bool, device=like_TE.device)
        for edit in edits:
            cells_TE[:, self.ids(edit, like_TE.device)] |= self.rows(edit, like_TE)
        return cells_TE


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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decide as the stock router does, with the edits in force."""
        self._state.calls += 1
        masks = self._state.of("mask")
        beside = [edit for edit in masks if not edit.renormalize]
        with self._other_top_k():
            output, chosen = self._decide(masks, args, kwargs)
            self._check(chosen)
            edited = chosen
            if beside:
                _, before = self._decide([e for e in masks if e.renormalize], args, kwargs)
                edited = self._keep_others(chosen, before, beside)
        edited = self._multiply(self._force(edited))
        return output if edited is chosen else self._write(output, edited)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """A copy would stay edited for good."""
        refuse_copy()

    # -- before the choice

    def _decide(
        self, masks: Sequence[Edit], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, _Chosen]:
        """What the stock router makes of logits edited by the biases and by these masks."""

        def edit(logits: torch.Tensor) -> torch.Tensor:
            return self._edit_logits(logits, masks)

        with self._no_way_back(masks) as copies:
            args = tuple(copies.get(id(arg), arg) for arg in args)  # a few blocks hand it over
            kwargs = {name: copies.get(id(arg), arg) for name, arg in kwargs.items()}
            if self._by_block:
                logits = edit(args[0])
                output = self._stock(logits, *args[1:], **kwargs)
                return output, self._read(output, logits)
            if not masks and not self._state.of("bias"):
                output = self._stock(*args, **kwargs)
                return output, self._read(output, None)
            width = self._state.layer.num_experts
            with _LogitsMode(width, edit) as mode:
                output = self._stock(*args, **kwargs)
        if mode.seen != 1:
            raise ModelError(
                f"{self._name} makes {mode.seen} linear maps onto {width} numbers, expected one; "
                "which of them are its logits cannot be told, so it takes no mask and no bias"
            )
        return output, self._read(output, None)

    def _edit_logits(self, logits: torch.Tensor, masks: Sequence[Edit]) -> torch.Tensor:
        rows_TE = logits.reshape(-1, logits.shape[-1])
        change_TE = torch.zeros_like(_wide(rows_TE))
        for edit in sorted(self._state.of("bias"), key=lambda edit: edit.value):
            named_TE = self._state.cells([edit], rows_TE)
            change_TE = torch.where(named_TE, change_TE + edit.value, change_TE)
        biased = (_wide(rows_TE) + change_TE).to(rows_TE.dtype)
        rows_TE = torch.where(change_TE != 0, biased, rows_TE)
        rows_TE = rows_TE.masked_fill(self._state.cells(masks, rows_TE), float("-inf"))
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
    def _no_way_back(self, masks: Sequence[Edit]) -> Iterator[dict[int, torch.Tensor]]:
        """No return by the selection bias: masked copies take its place; yields them by its id."""
        held = [
            (store, name, tensor)
            for module in self._block.modules()
            for store in (module._buffers, module._parameters)
            for name, tensor in store.items()
            if masks and tensor is not None and name in _SELECTION_BIASES
        ]
        if held and any(e.positions is not None for e in masks):
            raise ModelError(
                f"{self._name} chooses by a selection bias, which holds for all tokens of a pass, "
                "so an expert cannot be masked at some positions only; use zero or bias, or leave "
                "the position out"
            )
        copies = {id(tensor): tensor.detach().clone() for _, _, tensor in held}
        for copy in copies.values():
            for edit in masks:
                copy.view(-1)[self._state.ids(edit, copy.device)] = float("-inf")
        try:
            for store, name, tensor in held:
                store[name] = copies[id(tensor)]  # type: ignore[assignment]
            yield copies
        finally:
            for store, name, tensor in held:
                store[name] = tensor  # type: ignore[assignment]

    # -- after the choice

    def _read(self, output: Any, logits: torch.Tensor | None) -> _Chosen:
        """Rows of what came out; weights and logits still carry gradients."""
        if logits is not None:
            weights, ids = (t.reshape(-1, t.shape[-1]) for t in output)
            return _Chosen(logits.reshape(-1, logits.shape[-1]), ids, weights, ids)
        seen = read_router_output(self._router, output)
        if type(self._router).__name__ == "Llama4Router":
            scores, alive = (t.reshape(-1, t.shape[-1]) for t in output)
            return _Chosen(alive, seen.topk_ids, scores.gather(-1, seen.topk_ids), seen.topk_ids)
        alive, weights, ids = (t.reshape(-1, t.shape[-1]) for t in output[:3])
        return _Chosen(alive, ids, weights, seen.topk_ids)

    def _write(self, output: Any, chosen: _Chosen) -> Any:
        if type(self._router).__name__ == "Llama4Router":
            scores = torch.zeros_like(output[0]).reshape(-1, output[0].shape[-1])
            scores = scores.scatter(1, chosen.ids, chosen.weights.to(scores.dtype))
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
                    "decides (the token itself, for instance); use zero"
                )

    def _keep_others(self, chosen: _Chosen, before: _Chosen, masks: Sequence[Edit]) -> _Chosen:
        """Weights as ``before`` these masks, beside the experts that they took out.

        A token that had chosen none of these is left alone, a choice that stays keeps its weight,
        and a newcomer weighs its share of the whole softmax.
        """
        layer, weights = self._state.layer, chosen.weights
        masked_TE = self._state.cells(masks, chosen.logits)
        hit_T1 = masked_TE.gather(-1, before.real_ids).any(-1, keepdim=True)
        ids = torch.where(hit_T1, chosen.ids, before.ids)
        real_ids = torch.where(hit_T1, chosen.real_ids, before.real_ids)
        own_scale = layer.scoring == "softmax" and not layer.normalized
        if own_scale and type(self._router).__name__ != _NEAR_BEST:
            shares_TE = torch.softmax(_wide(before.logits), -1) * masked_TE
            weights = (_wide(weights) * (1 - shares_TE.sum(-1, keepdim=True))).to(weights.dtype)
            same_TKK = chosen.real_ids[:, :, None] == before.real_ids[:, None, :]
            old = (same_TKK * before.weights[:, None, :]).sum(-1)
            weights = torch.where(same_TKK.any(-1), old, weights)
        weights = torch.where(hit_T1, weights, before.weights)
        return chosen._replace(ids=ids, weights=weights, real_ids=real_ids)

    def _force(self, chosen: _Chosen) -> _Chosen:
        edits = self._state.of("force")
        if not edits:
            return chosen
        if type(self._router).__name__ in _NO_RATIO:
            raise ModelError(
                f"{self._name}: the weights of a token do not follow from its scores alone, so a "
                "forced expert has no weight; use bias instead"
            )
        held_TE = self._state.cells(edits, chosen.logits)
        gain_E = getattr(self._router, "per_expert_scale", None)
        for expert in held_TE.any(0).nonzero().flatten().tolist():
            chosen = _bring_in(expert, held_TE, chosen, self._state.layer, gain_E)
        return chosen

    def _multiply(self, chosen: _Chosen) -> _Chosen:
        """Zeros that hand their share on, then other zeros, then factors: no order but this."""
        weights, zeros = chosen.weights, self._state.of("zero")
        if zeros:
            hit = self._hit([edit for edit in zeros if edit.renormalize], chosen)
            left = _same_sum(weights.masked_fill(hit, 0.0), weights)
            weights = torch.where(hit.any(-1, keepdim=True), left, weights)
            hit = self._hit([edit for edit in zeros if not edit.renormalize], chosen)
            weights = weights.masked_fill(hit, 0.0)
        factor = torch.ones_like(_wide(weights))
        for edit in sorted(self._state.of("scale"), key=lambda edit: edit.value):
            factor = torch.where(self._hit([edit], chosen), factor * edit.value, factor)
        if self._state.of("scale"):
            scaled = (_wide(weights) * factor).to(weights.dtype)
            weights = torch.where(factor != 1, scaled, weights)
        return chosen if weights is chosen.weights else chosen._replace(weights=weights)

    def _hit(self, edits: Sequence[Edit], chosen: _Chosen) -> torch.Tensor:
        """Which of the choices these edits name, (T, K) bool."""
        hit = torch.zeros(chosen.ids.shape, dtype=torch.bool, device=chosen.ids.device)
        for edit in edits:
            named = torch.isin(chosen.ids, self._state.ids(edit, chosen.ids.device))
            hit = hit | (named & self._state.rows(edit, chosen.ids))
        return hit


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


def refuse_copy() -> NoReturn:
    """Say why an edited model can be neither copied nor pickled."""
    raise ModelError(
        "an edited model cannot be copied or pickled, for the copy would stay edited; leave the "
        "edited block first"
    )


def _scores(logits: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What a token's weights are proportional to, (T, E), in float32 at least."""
    z = _wide(logits)
    if scoring == "softmax":
        return torch.softmax(z, -1)
    if scoring == "sigmoid":
        return torch.sigmoid(z)
    return F.softplus(z).sqrt() if scoring == "sqrtsoftplus" else z


def _bring_in(
    expert: int,
    held_TE: torch.Tensor,
    chosen: _Chosen,
    layer: MoELayer,
    gain_E: torch.Tensor | None,
) -> _Chosen:
    """Put one expert in the place of the choice of least weight that is not held itself."""
    ids, scores = chosen.ids, _scores(chosen.logits, layer.scoring)
    gain = torch.ones_like(scores[0]) if gain_E is None else _wide(gain_E)
    weights = _wide(chosen.weights) / gain[ids]  # Gemma 4: one more factor for each expert
    top = weights.argmax(-1, keepdim=True)
    unit = weights.gather(-1, top) / scores.gather(-1, ids.gather(-1, top))
    own = scores[:, expert : expert + 1] * unit
    rank = _wide(chosen.weights).masked_fill(held_TE.gather(-1, ids), float("inf"))
    weakest = rank.argmin(-1, keepdim=True)
    new_weights = weights.scatter(-1, weakest, own)
    if layer.normalized:
        new_weights = _same_sum(new_weights, weights)
    new_ids = ids.scatter(-1, weakest, torch.full_like(weakest, expert, dtype=ids.dtype))
    new_weights = (new_weights * gain[new_ids]).to(chosen.weights.dtype)
    change = held_TE[:, expert : expert + 1] & ~(ids == expert).any(-1, keepdim=True)
    ids = torch.where(change, new_ids, ids)
    weights = torch.where(change, new_weights, chosen.weights)
    return chosen._replace(ids=ids, weights=weights, real_ids=ids)


def _same_sum(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Scale each row of ``new`` to the sum of that row of ``old``; rows of zeros stay."""
    total = _wide(new).sum(-1, keepdim=True)
    whole = total.where(total > 0, torch.ones_like(total))
    return (_wide(new) * (_wide(old).sum(-1, keepdim=True) / whole)).to(new.dtype)


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 at least: sums and ratios of half precision would be rounded twice."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
