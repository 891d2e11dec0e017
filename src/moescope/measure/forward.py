"""Windows of text through a model, batch by batch: the one loop behind every measurement.

It decides how many tokens are run at once, reads what the MoE layers did, and says in one line when
a batch does not fit into memory. On a processor the experts are computed as a trace computes them
(`moescope.models.experts`). What is made of a batch is for the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from moescope.measure.windows import WindowBatch
from moescope.memory import within_memory
from moescope.models.capture import RoutingCapture
from moescope.models.expert_calls import ExpertInputs
from moescope.models.experts import fast_experts
from moescope.models.loading import LoadedModel

_MOST_TOKENS = 8192
_FEWEST_TOKENS = 64
_ROOM = 1 << 28


def fitting_batch(token_bytes: int, room: float = _ROOM, most: int = _MOST_TOKENS) -> int:
    """Tokens of one batch: as many as keep what is held of them within some room.

    Args:
        token_bytes: what the caller holds of each token while a batch is worked on.
        room: bytes for all of them, 256 MiB by default.
        most: the most that pays.

    Returns:
        At least 64, whatever the room.
    """
    return max(_FEWEST_TOKENS, min(most, int(room // token_bytes)))


def batch_inputs(loaded: LoadedModel, batch: WindowBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of a batch, both (B, S), on the model's device."""
    device = next(loaded.model.parameters()).device
    ids = torch.as_tensor(batch.token_ids, device=device)
    return ids, torch.as_tensor(batch.attention_mask, device=device).long()


@torch.inference_mode()
def run_batches(
    loaded: LoadedModel,
    batches: Iterable[WindowBatch],
    reader: RoutingCapture | ExpertInputs,
    use: Callable[[WindowBatch, dict[int, Any]], None],
    *,
    setting: str = "batch_tokens",
) -> None:
    """Run batches of text through the model without its output head.

    Args:
        loaded: the model.
        batches: the text, from `window_batches`; `fitting_batch` says how large.
        reader: what is read of each pass. It reads nothing while ``use`` runs, which may call the
            experts again.
        use: called with each batch and what was read of it, by layer number.
        setting: which setting makes batches smaller, for the error.

    Raises:
        ModelError: a batch does not fit into memory.
        CoverageError: a router or its experts were not seen.
    """
    model: Any = loaded.model
    with fast_experts(model):
        for batch in batches:
            with within_memory(batch.token_ids.size, setting):
                ids, mask = batch_inputs(loaded, batch)
                with reader:
                    model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
                    seen = reader.take(expected_rows=ids.numel())
                use(batch, seen)
