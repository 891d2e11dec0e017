"""Read what routers and experts really exchange while a model runs.

`RoutingCapture` attaches two hooks to each MoE layer: one on the router (its logits) and one on
the call of the experts (the ids and weights that are really used). Nothing is computed again from
logits. Where a family passes its routing another way, `_READERS` says how it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from moescope.errors import CoverageError, ModelError
from moescope.models.anatomy import Site
from moescope.words import counted


class Routing(NamedTuple):
    """What one MoE layer did with the T rows of one forward pass, padding rows included.

    ``logits`` (T, E): the router's first output. ``topk_ids`` (T, K): experts that ran.
    ``topk_weights`` (T, K): the weights that were multiplied.
    """

    logits: torch.Tensor
    topk_ids: torch.Tensor
    topk_weights: torch.Tensor


class _Tap:
    """The two hooks of one layer; refilled at every forward pass."""

    def __init__(self, site: Site, model: nn.Module, seen: Callable[[], None]) -> None:
        self.site = site
        self._seen = seen
        self.routings: list[Routing] = []
        self._logits: torch.Tensor | None = None
        router = model.get_submodule(site.router)
        experts = model.get_submodule(site.experts)
        if type(router).__name__ in _READERS:
            self.handles = [router.register_forward_hook(self._read_whole)]
            return
        self.handles = [
            router.register_forward_hook(self._read_logits),
            experts.register_forward_pre_hook(self._read_call, with_kwargs=True),
        ]

    def _read_whole(self, module: nn.Module, _args: Any, output: Any) -> None:
        self.routings.append(read_router_output(module, output))
        self._seen()

    def _read_logits(self, _module: nn.Module, _args: Any, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        self._logits = logits.detach().reshape(-1, logits.shape[-1])

    def _read_call(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[1] if len(args) > 1 else kwargs["top_k_index"]
        weights = args[2] if len(args) > 2 else kwargs["top_k_weights"]
        if self._logits is None:
            raise CoverageError(
                f"layer {self.site.layer_idx}: the experts {self.site.experts} ran before the "
                f"router {self.site.router} was seen; routing cannot be attributed"
            )
        top_k = ids.shape[-1]
        self.routings.append(
            Routing(
                self._logits, ids.detach().reshape(-1, top_k), weights.detach().reshape(-1, top_k)
            )
        )
        self._logits = None
        self._seen()


class EnoughSeen(Exception):
    """Every layer was read: the rest of the forward pass is not needed."""


class RoutingCapture:
    """Context manager that records the routing of chosen layers.

    Example::

        with RoutingCapture(model, sites) as capture:
            model(input_ids)
            routing = capture.take()      # {layer_idx: Routing}

    Args:
        model: the model that will run.
        sites: the layers to read.
        stop: end the forward pass by `EnoughSeen` as soon as every layer has been read, before the
            experts of the last one run. A layer that is called twice goes unnoticed then.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], *, stop: bool = False) -> None:
        self._model = model
        self._sites = sites
        self._stop = stop
        self._taps: list[_Tap] = []

    def __enter__(self) -> Self:
        self._taps = [_Tap(site, self._model, self._after_one) for site in self._sites]
        return self

    def _after_one(self) -> None:
        if self._stop and all(tap.routings for tap in self._taps):
            raise EnoughSeen

    def __exit__(self, *_: object) -> None:
        for tap in self._taps:
            for handle in tap.handles:
                handle.remove()
        self._taps = []

    def take(self, expected_rows: int | None = None) -> dict[int, Routing]:
        """The routing of the one forward pass since the last take, by layer number.

        Args:
            expected_rows: batch × sequence length; a router that saw another number is an error.

        Raises:
            CoverageError: a router was not called, was called twice, or saw other rows.
        """
        result = {}
        for tap in self._taps:
            calls = self._drain(tap)
            if len(calls) != 1:
                raise CoverageError(
                    f"layer {tap.site.layer_idx}: router {tap.site.router} was seen {len(calls)} "
                    "times in one forward pass, expected once; its counts would be wrong"
                )
            rows = calls[0].topk_ids.shape[0]
            if calls[0].logits.shape[0] != rows or rows != (expected_rows or rows):
                raise CoverageError(
                    f"layer {tap.site.layer_idx}: router {tap.site.router} saw "
                    f"{counted(rows, 'row')}, expected {expected_rows}; its counts would be wrong"
                )
            result[tap.site.layer_idx] = calls[0]
        return result

    def take_steps(self) -> list[dict[int, Routing]]:
        """The routing of every forward pass since the last take, in order.

        Raises:
            CoverageError: the layers were called different numbers of times.
        """
        calls = {tap.site.layer_idx: self._drain(tap) for tap in self._taps}
        counts = {len(c) for c in calls.values()}
        if len(counts) != 1 or counts == {0}:
            raise CoverageError(
                f"routers were called {sorted(counts)} times in the same passes, expected the same "
                "number for every layer"
            )
        return [{layer: c[i] for layer, c in calls.items()} for i in range(counts.pop())]

    @staticmethod
    def _drain(tap: _Tap) -> list[Routing]:
        calls, tap.routings = tap.routings, []
        return calls


def read_router_output(router: nn.Module, output: Any) -> Routing:
    """Logits, ids and weights from what a router returned.

    Most return ``(logits, weights, ids, …)``; the families in `_READERS` have forms of their own.

    Raises:
        ModelError: it returned something else, as routers of remote code do.
    """
    return _READERS.get(type(router).__name__, _read_contract)(output)


def _read_contract(output: Any) -> Routing:
    if not _is_contract(output):
        parts = output if isinstance(output, tuple) else (output,)
        raise ModelError(
            f"it answers with ({', '.join(map(_describe, parts))}), expected logits (tokens, "
            "experts), weights (tokens, k) and whole-numbered ids (tokens, k) in this order; "
            "change what its code returns, or use the type that transformers has for this model"
        )
    logits, weights, ids = (t.detach() for t in output[:3])
    shape = (-1, ids.shape[-1])
    return Routing(logits.reshape(-1, logits.shape[-1]), ids.reshape(shape), weights.reshape(shape))


def _is_contract(output: Any) -> bool:
    """Logits, weights and ids, told by their kinds and sizes."""
    if not isinstance(output, tuple | list) or len(output) < 3:
        return False
    logits, weights, ids = output[:3]
    if not all(isinstance(t, torch.Tensor) and t.dim() > 1 for t in (logits, weights, ids)):
        return False
    kinds = [t.is_floating_point() for t in (logits, weights, ids)]
    rows = [t.numel() // t.shape[-1] for t in (logits, ids)]
    return kinds == [True, True, False] and rows[0] == rows[1] and weights.numel() == ids.numel()


def _describe(part: Any) -> str:
    if not isinstance(part, torch.Tensor):
        return type(part).__name__
    return f"{str(part.dtype).removeprefix('torch.')} of {'×'.join(map(str, part.shape))}"


def _read_zaya(output: Any) -> Routing:
    """Zaya writes its skip expert as expert 0 with weight 0: give it back its own number, E − 1."""
    routing = _read_contract(output)
    skipped = (routing.topk_weights == 0) & (routing.topk_ids == 0)
    skip_id = routing.logits.shape[-1] - 1
    return routing._replace(topk_ids=routing.topk_ids.masked_fill(skipped, skip_id))


def _read_llama4(output: Any) -> Routing:
    """Llama 4's router returns sigmoid scores with zeros for the experts not chosen."""
    scores, logits = (t.detach().reshape(-1, t.shape[-1]) for t in output)
    top_k = int((scores > 0).sum(-1).max())
    weights, ids = scores.topk(top_k, dim=-1)
    return Routing(logits, ids, weights)


def _read_jetmoe(output: Any) -> Routing:
    """JetMoE's router returns assignments grouped by expert: undo the grouping."""
    index_sorted, batch_index, gates, expert_size, logits = output
    top_k = index_sorted.numel() // logits.shape[0]
    experts = torch.repeat_interleave(
        torch.arange(len(expert_size), device=logits.device),
        torch.as_tensor(expert_size, device=logits.device),
    )
    ids = torch.empty(logits.shape[0] * top_k, dtype=torch.long, device=logits.device)
    weights = torch.empty(ids.shape, dtype=gates.dtype, device=logits.device)
    ids[index_sorted], weights[index_sorted] = experts, gates.detach()
    shape = (logits.shape[0], top_k)
    if not torch.equal(batch_index, index_sorted.div(top_k, rounding_mode="trunc")):
        raise CoverageError("JetMoE's router returned an order of assignments that is not known")
    return Routing(logits.detach(), ids.view(shape), weights.view(shape))


_READERS: dict[str, Callable[[Any], Routing]] = {
    "Llama4Router": _read_llama4,
    "ZayaRouter": _read_zaya,
    "JetMoeTopKGating": _read_jetmoe,
}
