"""Run batches through a model and hand out what each MoE layer did with them.

An `Engine` takes the batches of a pool and yields a `BatchResult` for each. `ResidentEngine`
holds the whole model in memory. Another engine may take the batches layer by layer: all that the
rest of the program asks for is in the protocol. It knows nothing of runs or metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.corpus import Batch
from moescope.errors import ModelError, lacks_memory
from moescope.memory import keep_memory, within_memory
from moescope.models.anatomy import MoELayer
from moescope.models.capture import EnoughSeen, Routing, RoutingCapture
from moescope.models.experts import fast_experts
from moescope.models.loading import LoadedModel
from moescope.words import said_by

_LOGIT_CELLS = 1 << 28
_DEFAULT_BATCH_TOKENS = 8192


class BatchResult(NamedTuple):
    """One batch after the model saw it.

    ``routing``: by layer number, rows = batch × sequence, padding included. ``pred_id`` and ``nll``
    (rows,): most probable next token, and negative log-likelihood in nats of the next token of the
    row (NaN at the end of a row); None when the LM head was not run.
    """

    batch: Batch
    routing: dict[int, Routing]
    pred_id: NDArray[np.int64] | None
    nll: NDArray[np.float32] | None


class GenerationResult(NamedTuple):
    """Greedy continuations: ``tokens`` (B, N); ``steps``: routing of each decoding step, B rows."""

    tokens: NDArray[np.int64]
    steps: list[dict[int, Routing]]


class Engine(Protocol):
    """What a trace asks of whatever runs the model."""

    @property
    def batch_tokens(self) -> int:
        """Token budget of a batch that suits this engine."""

    @property
    def pool_tokens(self) -> int:
        """Tokens of a pool that suit this engine."""

    def run(self, batches: Iterable[Batch]) -> Iterator[BatchResult]:
        """Run the batches of a pool; results in any order, one for each batch."""

    def generate(self, prompts: NDArray[np.int64], num_tokens: int) -> GenerationResult:
        """Continue prompts of equal length (B, S) greedily by up to ``num_tokens``."""


class ResidentEngine:
    """The whole model in memory, one forward pass per batch.

    What routing does not need is left out: without predictions the LM head, the experts of the last
    layer that is read, and all layers after it. The first batch runs through the whole model all
    the same, so that a router which is called more than once is found out.

    Args:
        loaded: the model.
        layers: the MoE layers to read.
        predictions: run the LM head as well.
        batch_tokens: token budget of a batch; by default 8,192, less when the logits over the
            vocabulary would take more than about a gigabyte.
    """

    pool_tokens = 32_768

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[MoELayer],
        *,
        predictions: bool,
        batch_tokens: int | None = None,
    ) -> None:
        self._loaded = loaded
        self._sites = [layer.site for layer in layers]
        self._predictions = predictions
        self._checked = predictions
        if loaded.device == "cpu":
            keep_memory()
        vocabulary = loaded.vocab_size
        affordable = _LOGIT_CELLS // vocabulary if predictions else _DEFAULT_BATCH_TOKENS
        self.batch_tokens = batch_tokens or max(256, min(_DEFAULT_BATCH_TOKENS, affordable))
        self._device = next(loaded.model.parameters()).device

    def run(self, batches: Iterable[Batch]) -> Iterator[BatchResult]:
        """One forward pass per batch, in order."""
        for batch in batches:
            yield self._run_batch(batch)

    @torch.inference_mode()
    def _run_batch(self, batch: Batch) -> BatchResult:
        model: Any = self._loaded.model
        forward = model if self._predictions else model.base_model
        ids = torch.as_tensor(batch.token_ids, device=self._device)
        mask = torch.as_tensor(batch.attention_mask, device=self._device).long()
        stop = self._checked and not self._predictions
        with fast_experts(model), RoutingCapture(model, self._sites, stop=stop) as capture:
            output = _call(forward, ids, mask)
            routing = capture.take(expected_rows=ids.numel())
        self._checked = True
        pred_id = nll = None
        if self._predictions:
            pred_id, nll = predict(output.logits, ids, mask)
        return BatchResult(batch, routing, pred_id, nll)

    def generate(self, prompts: NDArray[np.int64], num_tokens: int) -> GenerationResult:
        """Greedy decoding with the model's own cache; prompts must not need padding."""
        model: Any = self._loaded.model
        ids = torch.as_tensor(prompts, device=self._device)
        with (
            fast_experts(model),
            RoutingCapture(model, self._sites) as capture,
            torch.inference_mode(),
        ):
            try:
                output = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=num_tokens,
                    do_sample=False,
                    num_beams=1,
                    use_cache=True,
                    pad_token_id=self._loaded.pad_id,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                )
            except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
                if lacks_memory(error):
                    raise
                raise ModelError(
                    f"this model cannot generate here ({said_by(error, 160)}); run "
                    "without `generate`"
                ) from error
            steps = capture.take_steps()[1:]
        return GenerationResult(output[:, ids.shape[1] :].cpu().numpy(), steps)


def _call(forward: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    try:
        with within_memory(ids.numel(), "batch_tokens or context"):
            return forward(input_ids=ids, attention_mask=mask, use_cache=False)
    except EnoughSeen:
        return None


def predict(
    logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Most probable next token, and negative log-likelihood of the next one, of each row.

    Args:
        logits: (B, S, V).
        ids: (B, S).
        mask: (B, S), 0 on padding.

    Returns:
        ``pred_id`` and ``nll`` in nats, both (B·S,); NaN where a row has no next token.
    """
    target, known = next_tokens(ids, mask)
    pred, nll = score(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), known.reshape(-1))
    return pred.cpu().numpy(), nll.cpu().numpy()


def next_tokens(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The token after each, and whether there is one; both (B, S)."""
    known = torch.roll(mask, -1, dims=1).bool()
    known[:, -1] = False
    return torch.roll(ids, -1, dims=1), known


def score(
    rows: torch.Tensor, target: torch.Tensor, known: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best token and negative log-likelihood of ``target``, both (N,), from logits (N, V)."""
    pred = torch.empty(rows.shape[0], dtype=torch.long, device=rows.device)
    nll = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    for start in range(0, rows.shape[0], 1024):
        part = rows[start : start + 1024].float()
        stop = start + part.shape[0]
        pred[start:stop] = part.argmax(-1)
        log_probs = part.gather(-1, target[start:stop, None])[:, 0] - part.logsumexp(-1)
        nll[start:stop] = -log_probs
    nll[~known] = torch.nan
    return pred, nll
