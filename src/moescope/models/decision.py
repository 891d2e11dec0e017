"""One router's decision under the edits of its layer: logits before, choice and weights after.

Everything between is the stock router's own code; what an edit does is its kind's. Used by
`moescope.models.editing` only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from moescope.errors import ModelError
from moescope.models.capture import read_router_output
from moescope.models.edits import KINDS, Edit, by_kind
from moescope.models.edits.edit import Chosen, LayerEdits


class Decision:
    """Called in place of a router's ``forward`` (or of a block's ``route_tokens_to_experts``)."""

    def __init__(self, at: LayerEdits, stock: Callable[..., Any], *, by_block: bool) -> None:
        self._at, self._stock, self._by_block = at, stock, by_block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Decide as the stock router does, with the edits in force."""
        at = self._at
        at.calls += 1

        def decide(without: Sequence[Edit]) -> Chosen:
            return self._decide([e for e in at.edits if e not in without], args, kwargs)[1]

        at.decide = decide
        output, chosen = self._decide(at.edits, args, kwargs)
        for kind, edits in by_kind(at.edits):
            kind.check_choice(edits, chosen, at)
        changed = chosen
        for kind, edits in by_kind(at.edits):
            changed = kind.on_choice(edits, changed, at)
        del at.decide  # it holds what the router was called with
        return output if changed is chosen else self._write(output, changed)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """A copy would stay edited for good."""
        refuse_copy()

    def _decide(
        self, edits: Sequence[Edit], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Chosen]:
        """What the stock router makes of logits under these edits."""
        at, kinds = self._at, list(by_kind(edits))

        def edit(logits: torch.Tensor) -> torch.Tensor:
            rows_TE = logits.reshape(-1, logits.shape[-1])
            for kind, own in kinds:
                rows_TE = kind.on_logits(own, rows_TE, at)
            return rows_TE.reshape(logits.shape)

        with ExitStack() as stack:
            copies: dict[int, torch.Tensor] = {}
            for kind, own in kinds:
                copies |= stack.enter_context(kind.around(own, at))
            args = tuple(copies.get(id(arg), arg) for arg in args)  # a few blocks hand it over
            kwargs = {name: copies.get(id(arg), arg) for name, arg in kwargs.items()}
            if self._by_block:
                logits = edit(args[0])
                output = self._stock(logits, *args[1:], **kwargs)
                return output, self._read(output, logits)
            if not any(kind.changes_logits for kind, _ in kinds):
                output = self._stock(*args, **kwargs)
                return output, self._read(output, None)
            width = at.layer.num_experts
            with _LogitsMode(width, edit) as mode:
                output = self._stock(*args, **kwargs)
        if mode.seen != 1:
            refused = " and no ".join(kind.kind for kind in KINDS if kind.changes_logits)
            raise ModelError(
                f"{at.name} makes {mode.seen} linear maps onto {width} numbers, expected one; "
                f"which of them are its logits cannot be told, so it takes no {refused}"
            )
        return output, self._read(output, None)

    def _read(self, output: Any, logits: torch.Tensor | None) -> Chosen:
        """Rows of what came out; weights and logits still carry gradients."""
        if logits is not None:
            weights, ids = (t.reshape(-1, t.shape[-1]) for t in output)
            return Chosen(logits.reshape(-1, logits.shape[-1]), ids, weights, ids)
        seen = read_router_output(self._at.router, output)
        if type(self._at.router).__name__ == "Llama4Router":
            scores, alive = (t.reshape(-1, t.shape[-1]) for t in output)
            return Chosen(alive, seen.topk_ids, scores.gather(-1, seen.topk_ids), seen.topk_ids)
        alive, weights, ids = (t.reshape(-1, t.shape[-1]) for t in output[:3])
        return Chosen(alive, ids, weights, seen.topk_ids)

    def _write(self, output: Any, chosen: Chosen) -> Any:
        if type(self._at.router).__name__ == "Llama4Router":
            scores = torch.zeros_like(output[0]).reshape(-1, output[0].shape[-1])
            scores = scores.scatter(1, chosen.ids, chosen.weights.to(scores.dtype))
            return scores.reshape(output[0].shape), output[1]
        first = 0 if self._by_block else 1
        parts = list(output)
        parts[first] = chosen.weights.reshape(parts[first].shape)
        parts[first + 1] = chosen.ids.reshape(parts[first + 1].shape)
        return tuple(parts)


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
