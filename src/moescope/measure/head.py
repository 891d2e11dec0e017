"""Single passes of a model over one batch: the plain one, and from the middle under an edit.

The head (hidden states → logits over the vocabulary) is often the dearest part of a pass, so it is
given only the tokens that are scored. Which tokens an edit can change at all is decided here too.
It knows nothing of what is tried and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moescope.errors import ModelError
from moescope.measure.forward import batch_inputs
from moescope.measure.scoring import PlainScores
from moescope.measure.windows import WindowBatch
from moescope.models.anatomy import MoELayer
from moescope.models.edits import Edit
from moescope.models.expert_calls import ExpertInputs, LayerInput
from moescope.models.loading import LoadedModel
from moescope.models.resume import Resumable


@dataclass(frozen=True)
class PlainPass:
    """One batch as the unedited model sees it.

    Attributes:
        batch: the windows.
        resumable: holds what came out of the layers.
        rows: flat places (row × length + column) of the n scored tokens, ascending.
        scores: the plain prediction at these tokens.
        raw: the logits as the model gave them.
        seen: input and routing of the MoE layers concerned.
    """

    batch: WindowBatch
    resumable: Resumable
    rows: torch.Tensor
    scores: PlainScores
    raw: torch.Tensor
    seen: dict[int, LayerInput]

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and their length."""
        rows, length = self.batch.token_ids.shape
        return int(rows), int(length)


class Head:
    """Gives the output head only the tokens that are wanted.

    Models whose head cannot be reached give logits for all tokens, of which the wanted are taken.
    """

    def __init__(self, model: nn.Module) -> None:
        ask: Any = getattr(model, "get_output_embeddings", lambda: None)
        self._module: nn.Module | None = ask()

    @contextlib.contextmanager
    def only(self, rows: torch.Tensor, total: int) -> Iterator[None]:
        """Within the block the head sees these of ``total`` flat places."""
        if self._module is None:
            yield
            return

        def choose(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if not args or args[0].numel() != total * args[0].shape[-1]:
                return None
            return (args[0].reshape(total, -1)[rows][None], *args[1:])

        with self._module.register_forward_pre_hook(choose):
            yield

    def logits(
        self, run: Callable[[], torch.Tensor], rows: torch.Tensor, total: int
    ) -> torch.Tensor:
        """Logits (n, V) of a pass at n of its ``total`` flat places."""
        with self.only(rows, total):
            made = run()
        return pick(made, rows, total)


def pick(logits: torch.Tensor, rows: torch.Tensor, total: int) -> torch.Tensor:
    """Logits (n, V), whether the head saw n tokens or all.

    Raises:
        ModelError: it saw another number.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.shape[0] == rows.numel():
        return flat
    if flat.shape[0] != total:
        raise ModelError(
            f"the model gave logits for {flat.shape[0]} tokens of a batch of {total}; its "
            "predictions cannot be matched with the text"
        )
    return flat[rows]


def scored_tokens(batch: WindowBatch) -> NDArray[np.int64]:
    """Flat places of the tokens that count and whose next token, which is predicted, counts too."""
    scored = np.zeros_like(batch.counted)
    scored[:, :-1] = batch.counted[:, :-1] & batch.counted[:, 1:]
    return np.flatnonzero(scored)


def plain_pass(
    loaded: LoadedModel,
    head: Head,
    batch: WindowBatch,
    layers: Sequence[MoELayer],
    starts: Sequence[int],
) -> PlainPass:
    """Run the unedited model and keep what passes from ``starts`` need.

    Raises:
        ModelError: its logits are not finite.
        CoverageError: a layer did not run exactly once.
    """
    ids, mask = batch_inputs(loaded, batch)
    rows = torch.as_tensor(scored_tokens(batch), device=ids.device)
    resumable = Resumable(loaded.model, layers[0].site.block)
    with ExpertInputs(loaded.model, layers) as inputs, head.only(rows, ids.numel()):
        raw = resumable.keep(ids, mask, starts)
        seen = inputs.take(expected_rows=ids.numel())
    target = ids.roll(-1, dims=1).reshape(-1)[rows]
    scores = PlainScores(pick(raw, rows, ids.numel()), target)
    if not bool(torch.isfinite(scores.ce).all()):
        raise ModelError(
            "the plain model predicts some tokens with a loss that is not a finite number; its "
            "damage cannot be measured (try `dtype=float32`)"
        )
    return PlainPass(batch, resumable, rows, scores, raw, seen)


def affected(plain: PlainPass, edits: Sequence[Edit]) -> torch.Tensor:
    """Which tokens (B, S) the edits can change; all, unless every edit acts where it is chosen.

    Those that chose an edited expert, and everything after them in the window; in the last decoder
    layer, after which tokens no longer see each other, only they themselves.
    """
    shape = plain.shape
    if not all(edit.only_where_chosen for edit in edits):
        return torch.ones(shape, dtype=torch.bool, device=plain.rows.device)
    wanted: dict[int, set[int]] = {}
    for ref in (r for edit in edits for r in edit.experts):
        wanted.setdefault(ref.layer_idx, set()).add(ref.expert)
    chosen = torch.zeros(shape, dtype=torch.bool, device=plain.rows.device)
    for layer, experts in wanted.items():
        ids = plain.seen[layer].routing.topk_ids
        listed = torch.tensor(sorted(experts), device=ids.device)
        chosen |= torch.isin(ids, listed).any(-1).reshape(shape).to(chosen.device)
    if set(wanted) == {plain.resumable.num_layers - 1}:
        return chosen
    return chosen.cummax(dim=1).values
