"""The quick way to a trial's damage, and the naive way that it is held against.

Four things are left out of a pass, each only where trying showed that nothing changes:

- layers below the lowest edited one: what came out of them is kept (`Resumable`);
- that layer too, where the edit only weakens experts of one layer: what they contributed is known
  from the plain pass and is taken off the layer's output (single precision and above);
- windows and tokens that the edit cannot reach (`affected`);
- the output head at tokens that are not scored.

It knows one batch at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from moescope.errors import ModelError
from moescope.measure.head import Head, PlainPass, affected, pick
from moescope.measure.scoring import TokenDamage, compare
from moescope.models.editing import edited
from moescope.models.edits import Edit
from moescope.models.expert_calls import ExpertLayer
from moescope.models.loading import LoadedModel

_NOISE = 2e-6
"""Mean change, in nats per token, that rounding may make in single precision."""

_SAME = 1e-3
"""Mean difference of the two ways, over the mean change, up to which they count as the same."""

_UNTOUCHED = 0.05
"""Mean change of tokens that cannot change, over that of the others, up to which they are skipped;
in half precision rounding alone moves them."""


class Quick(NamedTuple):
    """``reached``: which scored tokens can change; ``damage``: theirs; ``work``: what was run."""

    reached: torch.Tensor
    damage: TokenDamage
    work: dict[str, Any]


def lowest_layer(edits: Sequence[Edit]) -> int:
    """The lowest decoder layer that these edits change."""
    return min(ref.layer_idx for edit in edits for ref in edit.experts)


class QuickWay:
    """Passes of one model that leave out what an edit cannot change.

    Attributes:
        full: layers from which no pass can start on this model.
        takes_off: contributions may be taken off a layer's output.
        skips: tokens that an edit cannot reach are not computed.
    """

    def __init__(self, loaded: LoadedModel, head: Head) -> None:
        self._loaded, self._head = loaded, head
        self._layers = {m.layer_idx: m for m in loaded.anatomy.layers}
        self.full: set[int] = set()
        self.takes_off = loaded.dtype in ("float32", "float64")
        self.skips = True

    def starts(self, trials: Sequence[Sequence[Edit]]) -> list[int]:
        """Where passes under these edits begin, so that a plain pass can keep what they need."""
        lowest = {lowest_layer(edits) for edits in trials}
        return sorted(lowest | {self._start(edits) for edits in trials})

    def _start(self, edits: Sequence[Edit]) -> int:
        layer = lowest_layer(edits)
        wanted = layer + 1 if self._weakens_one_layer(edits) else layer
        return 0 if wanted in self.full else wanted

    def _weakens_one_layer(self, edits: Sequence[Edit]) -> bool:
        layers = {ref.layer_idx for edit in edits for ref in edit.experts}
        return (
            self.takes_off
            and len(layers) == 1
            and layers.isdisjoint(n - 1 for n in self.full)
            and all(_factor(edit) is not None for edit in edits)
        )

    def measure(self, plain: PlainPass, edits: Sequence[Edit]) -> Quick:
        """The damage of these edits to the tokens that they can reach.

        Raises:
            ModelError: under them the model's predictions are not numbers.
        """
        rows, length = plain.shape
        reached = torch.arange(len(plain.rows), device=plain.rows.device)
        if self.skips:
            reached = torch.nonzero(affected(plain, edits).reshape(-1)[plain.rows])[:, 0]
        places = plain.rows[reached]
        windows, window_of = torch.unique(places // length, return_inverse=True)
        start = self._start(edits)
        work = {
            "layer_tokens": (plain.resumable.num_layers - start) * len(windows) * length,
            "head_tokens": len(reached),
            "windows_run": len(windows),
            "full_pass": start == 0 < lowest_layer(edits),
        }
        if not len(reached):
            return Quick(reached, compare(plain.scores, plain.scores.logits[:0]), work)
        some = windows if len(windows) < rows else None
        with self._edited(plain, edits, windows):
            logits = self._head.logits(
                lambda: plain.resumable.run(start, some),
                window_of * length + places % length,
                len(windows) * length,
            )
        return Quick(reached, _finite(compare(plain.scores, logits, reached), edits), work)

    @contextlib.contextmanager
    def _edited(
        self, plain: PlainPass, edits: Sequence[Edit], windows: torch.Tensor
    ) -> Iterator[None]:
        if not self._weakens_one_layer(edits):
            with edited(self._loaded, edits):
                yield
            return
        layer = lowest_layer(edits)
        change = self._change(plain, edits, layer)[windows]

        def add(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + change, *output[1:])
            return output + change

        with plain.resumable.layers[layer].register_forward_hook(add):
            yield

    def _change(self, plain: PlainPass, edits: Sequence[Edit], layer: int) -> torch.Tensor:
        """What the edits add to the output of the layer, (B, S, D): (factor − 1) · w · E(x)."""
        hidden, routing = plain.seen[layer]
        experts = ExpertLayer(self._loaded.model, self._layers[layer])
        factors: dict[int, float] = {}
        for edit in edits:
            for ref in edit.experts:
                factors[ref.expert] = factors.get(ref.expert, 1.0) * (_factor(edit) or 0.0)
        change = torch.zeros_like(hidden)
        for expert, factor in factors.items():
            weight = (routing.topk_weights * (routing.topk_ids == expert)).sum(-1)
            rows = torch.nonzero(weight)[:, 0]
            if len(rows):
                change[rows] += (factor - 1) * weight[rows, None] * experts(expert, hidden[rows])
        return change.reshape(*plain.shape, -1)

    # -- held against the naive way

    def reach(self, plain: PlainPass, edits: Sequence[Edit]) -> int:
        """How many tokens of the batch these edits can change."""
        return int(affected(plain, edits).sum())

    def try_starts(self, plain: PlainPass, starts: Sequence[int]) -> None:
        """Note the layers from which a pass of this model gives other numbers than a whole one."""
        for start in starts:
            with self._head.only(plain.rows, plain.batch.token_ids.size):
                if start and not plain.resumable.check(plain.raw, start):
                    self.full.add(start)

    def try_out(self, plain: PlainPass, edits: Sequence[Edit]) -> dict[str, Any]:
        """Measure one trial both ways; give up here what the naive way does not bear out.

        Returns:
            Seconds of the naive way, and how far the quick one is from it (nats per token).
        """
        began = time.perf_counter()
        naive = self.naive(plain, edits)
        seconds = time.perf_counter() - began
        moved = naive.ce_change.abs()
        if self._weakens_one_layer(edits):
            self.takes_off = self._can_take_off(plain, edits, naive)
        quick, off = self._against(plain, edits, naive)
        untouched = torch.ones_like(off, dtype=torch.bool)
        untouched[quick.reached] = False
        if bool(untouched.any()):
            others = moved[~untouched].mean() if len(quick.reached) else moved.new_zeros(())
            if not _small(moved[untouched].mean(), others, _UNTOUCHED):
                self.skips = False
                quick, off = self._against(plain, edits, naive)
        return {
            "seconds": seconds,
            "batch_tokens": int(plain.batch.token_ids.size),
            "mean_difference": float(off.mean()),
            "max_difference": float(off.max()),
            "mean_change": float(moved.mean()),
        }

    def naive(self, plain: PlainPass, edits: Sequence[Edit]) -> TokenDamage:
        """The damage to all scored tokens, by one pass through everything."""
        with edited(self._loaded, edits):
            logits = plain.resumable.run(0)
        made = compare(plain.scores, pick(logits, plain.rows, plain.batch.token_ids.size))
        return _finite(made, edits)

    def _can_take_off(self, plain: PlainPass, edits: Sequence[Edit], naive: TokenDamage) -> bool:
        """Does a layer put out the sum of what its experts contribute and the rest?"""
        try:
            _, off = self._against(plain, edits, naive)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False  # what the layer puts out has another form
        return _small(off.mean(), naive.ce_change.abs().mean(), _SAME)

    def _against(
        self, plain: PlainPass, edits: Sequence[Edit], naive: TokenDamage
    ) -> tuple[Quick, torch.Tensor]:
        quick = self.measure(plain, edits)
        ours = torch.zeros_like(naive.ce_change)
        ours[quick.reached] = quick.damage.ce_change
        return quick, (ours - naive.ce_change).abs()


def _finite(damage: TokenDamage, edits: Sequence[Edit]) -> TokenDamage:
    if not all(bool(torch.isfinite(values).all()) for values in damage):
        raise ModelError(
            f"under the edit {'; '.join(map(str, edits))} the model predicts tokens with a loss "
            "that is not a finite number; use a milder edit"
        )
    return damage


def _factor(edit: Edit) -> float | None:
    return edit.factor if edit.positions is None else None


def _small(mean: torch.Tensor, beside: torch.Tensor, share: float) -> bool:
    return float(mean) <= max(_NOISE, share * float(beside))
