"""What a model needs in memory, resident or streamed, estimated before anything is loaded.

Figures are upper estimates from shapes: weights in the dtype of the computation, one batch of
activations of transformers' own forward, logits of a few rows. Nothing is measured here but what
the process holds already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from moescope.errors import ModelError
from moescope.memory import available_memory, held_memory, readable
from moescope.models.anatomy import Anatomy

HEAD_CELLS = 1 << 24
"""Logits (rows × vocabulary) that the streamed engine makes at a time."""

_BATCHES = (8192, 4096, 2048, 1024, 512)
_OVERHEAD = 200_000_000
"""Allocator slack, tokenizer, file buffers."""
_SUMS = 100_000_000
"""Sums and sample of a run, at least; what the promise leaves is theirs too."""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the accelerator if there is one, else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


def resident_need(anatomy: Anatomy, dtype: torch.dtype) -> int:
    """Bytes for all weights and one modest batch."""
    return held_memory() + anatomy.total_params * dtype.itemsize + _OVERHEAD + _SUMS + 10**9


@dataclass(frozen=True)
class StreamedNeed:
    """What streaming takes, in bytes; ``batch_tokens`` is the batch that it is estimated for.

    ``spare``: what the promise leaves beyond it.
    """

    held: int
    outside: int
    layer: int
    batch_tokens: int
    batch: int
    spare: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.held + self.outside + self.layer + self.batch + _OVERHEAD + _SUMS

    @property
    def sums(self) -> int:
        """What sums and sample of a run may take."""
        return _SUMS + self.spare

    def __str__(self) -> str:
        return (
            f"{readable(self.total)}: {readable(self.held + _OVERHEAD)} for the process, "
            f"{readable(self.outside)} outside the layers, {readable(self.layer)} for a layer, "
            f"{readable(self.batch)} for a batch of {self.batch_tokens:,} tokens, "
            f"{readable(_SUMS)} for sums"
        )


def plan_streaming(
    anatomy: Anatomy,
    outside: int,
    layer: int,
    dtype: torch.dtype,
    memory: int,
    batch_tokens: int | None = None,
    *,
    window: int = 512,
    sorts: bool = False,
) -> StreamedNeed:
    """The largest batch with which streaming keeps within a promise.

    Args:
        anatomy: of the model.
        outside: bytes of the weights outside the decoder layers.
        layer: bytes of the largest layer while it is read and held.
        dtype: of the computation.
        memory: the promise, in bytes.
        batch_tokens: a batch that was asked for; otherwise the largest that fits is taken.
        window: tokens of the longest window, which goes through the model as a whole.
        sorts: the experts run one after the other (`moescope.models.experts`), so that the rows of
            one of them are in memory instead of all assignments.

    Raises:
        ModelError: it does not fit; says what the smallest batch needs.
    """
    sizes = [max(s, window) for s in (_BATCHES if batch_tokens is None else (batch_tokens,))]
    per_token = _activation_bytes(anatomy, dtype, sorts)
    held = held_memory()
    for size in sizes:
        need = StreamedNeed(held, outside, layer, size, size * per_token + 8 * HEAD_CELLS)
        if need.total <= memory:
            return replace(need, spare=memory - need.total)
    raise ModelError(
        f"`memory` {readable(memory)} is too little to stream this {anatomy.model_type} model: it "
        f"needs {need}"
    )


def _activation_bytes(anatomy: Anatomy, dtype: torch.dtype, sorts: bool) -> int:
    """Per token: the residual and attention, and the gathered rows of the chosen experts.

    Sorted experts hold the rows of one expert, which every token may have chosen.
    """
    widest = 0
    for layer in anatomy.layers:
        inner = layer.expert_hidden_size or 4 * layer.hidden_size
        times = 1 if sorts else layer.top_k
        experts = times * (3 * layer.hidden_size + 4 * inner) + 6 * layer.top_k
        shared = 4 * layer.shared_params // max(1, 3 * layer.hidden_size)
        widest = max(widest, 14 * layer.hidden_size + experts + shared + 6 * layer.num_experts)
    return widest * dtype.itemsize
