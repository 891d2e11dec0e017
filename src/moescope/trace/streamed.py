"""The streamed engine: all batches advance through one decoder layer, then that layer is dropped.

Peak memory is what lies outside the decoder layers, one layer, and one batch; a model of any size
can be traced. What the layers put out is kept on disk between them, so a trace that was killed goes
on at the layer and batch where it stopped. It knows batches and a `StreamedModel`, not runs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from moescope.corpus import Batch
from moescope.errors import ModelError
from moescope.files import write_error
from moescope.memory import give_memory_back, keep_memory
from moescope.models.anatomy import MoELayer
from moescope.models.capture import EnoughSeen, Routing, RoutingCapture
from moescope.models.experts import fast_experts
from moescope.models.loading import LoadedModel
from moescope.models.memory import HEAD_CELLS
from moescope.models.resume import take_rows
from moescope.trace.engine import BatchResult, GenerationResult, next_tokens, score

_BATCH_TOKENS = 8192
_KEY = "pool.json"


class StreamedEngine:
    """Runs batches layer by layer with the weights of one layer in memory.

    Args:
        loaded: a model from `load_streamed`.
        layers: the MoE layers to read.
        scratch: folder for what layers put out; emptied after each pool.
        predictions: run the LM head as well.
        batch_tokens: token budget of a batch; what memory was planned for by default.
        on_layer: called with (layers done, layers) after each decoder layer.

    Raises:
        ModelError: the model holds all its weights in memory.
    """

    pool_tokens = 262_144
    """The whole model is read once for each pool."""

    def __init__(
        self,
        loaded: LoadedModel,
        layers: Sequence[MoELayer],
        scratch: Path,
        *,
        predictions: bool,
        batch_tokens: int | None = None,
        on_layer: Callable[[int, int], None] | None = None,
    ) -> None:
        if loaded.streamed is None:
            raise ModelError("the streamed engine takes a model from load_streamed")
        if loaded.device == "cpu":
            keep_memory()
        self._loaded, self._streamed = loaded, loaded.streamed
        self._sites = {layer.layer_idx: layer.site for layer in layers}
        self._scratch, self._predictions = scratch, predictions
        need = loaded.streamed.need
        self.batch_tokens = batch_tokens or (_BATCH_TOKENS if need is None else need.batch_tokens)
        self._on_layer = on_layer or (lambda _done, _all: None)

    def generate(
        self,
        prompts: NDArray[np.int64],  # noqa: ARG002 -- the protocol's
        num_tokens: int,  # noqa: ARG002
    ) -> GenerationResult:
        """Refused: every generated token would read the whole model from disk."""
        raise ModelError(
            "the streamed engine does not generate: each token would read all layers again; use "
            "`engine=resident`, or leave `generate` out"
        )

    def run(self, batches: Iterable[Batch]) -> Iterator[BatchResult]:
        """All batches through every layer, then one result for each batch, in order."""
        listed = list(batches)
        pool = _Pool(self._scratch, listed, str(self._streamed.device), self._identity())
        model = self._streamed
        last = max(self._sites) if not self._predictions else len(model.layers) - 1
        for index in range(last + 1):
            only_routing = index == last and not self._predictions
            self._run_layer(index, listed, pool, only_routing)
            self._on_layer(index + 1, last + 1)
        if self._loaded.device == "cpu":
            give_memory_back()  # of the batches; recording makes other shapes
        for number, batch in enumerate(listed):
            routing = {n: pool.routing(n, number) for n in self._sites}
            pred_id = nll = None
            if self._predictions:
                pred_id, nll = self._head(batch, pool.hidden(last, number))
            yield BatchResult(batch, routing, pred_id, nll)
        pool.remove()

    def _identity(self) -> dict[str, Any]:
        """What decides the numbers kept between layers, the text aside."""
        return {
            "weights": self._loaded.weights_hash,
            "config": self._loaded.config_hash,
            "dtype": self._loaded.dtype,
            "layers": sorted(self._sites),
            "predictions": self._predictions,
        }

    def _run_layer(self, index: int, batches: list[Batch], pool: _Pool, only_routing: bool) -> None:
        """All batches through one layer; of the last one only the routing may be wanted."""
        todo = [n for n in range(len(batches)) if not pool.passed(index, n)]
        if not todo:
            return
        model = self._streamed
        model.load_layer(index)
        model.read_ahead(index + 1)
        try:
            for number in todo:
                ids, mask = self._inputs(batches[number])
                below = pool.hidden(index - 1, number) if index else None
                stop = only_routing and number != todo[0]
                hidden, routing = self._pass(index, ids, mask, below, stop)
                pool.keep(index, number, hidden, routing)
        finally:
            model.drop_layer(index)

    def _pass(
        self, index: int, ids: torch.Tensor, mask: torch.Tensor, below: Any, stop: bool
    ) -> tuple[Any, Routing | None]:
        """What a loaded layer makes of one batch, and its routing; nothing is made if it stops."""
        site, whole = self._sites.get(index), self._loaded.model
        sites = [site] if site else []
        with fast_experts(whole), RoutingCapture(whole, sites, stop=stop) as capture:
            try:
                hidden = self._streamed.run_layer(index, ids, mask, below)
            except EnoughSeen:
                hidden = torch.empty(0)
            routing = capture.take(expected_rows=ids.numel()) if site else {}
        return hidden, routing.get(index)

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._streamed.device
        ids = torch.as_tensor(batch.token_ids, device=device)
        return ids, torch.as_tensor(batch.attention_mask, device=device).long()

    def _head(self, batch: Batch, hidden: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The LM head over a few rows or positions at a time, so that logits stay small."""
        ids, mask = self._inputs(batch)
        batch_size, length = ids.shape
        afford = max(1, HEAD_CELLS // self._loaded.vocab_size)
        rows = max(1, afford // length)
        step = min(length, afford) if self._streamed.head_takes_positions else length
        target, known = next_tokens(ids, mask)
        pred = torch.empty((batch_size, length), dtype=torch.long)
        nll = torch.empty((batch_size, length))
        for row in range(0, batch_size, rows):
            part = slice(row, row + rows)
            below = take_rows(hidden, part, batch_size)
            for start in range(0, length, step):
                at = (part, slice(start, start + step))
                logits = self._streamed.run_head(ids[part], mask[part], below, at[1])
                found = score(
                    logits.reshape(-1, logits.shape[-1]),
                    target[at].reshape(-1),
                    known[at].reshape(-1),
                )
                pred[at], nll[at] = (f.cpu().reshape(target[at].shape) for f in found)
        return pred.reshape(-1).numpy(), nll.reshape(-1).numpy()


class _Pool:
    """What the layers put out for the batches of one pool, on disk.

    Output of a layer replaces that of the layer below. A file is written under another name first,
    so one that is there is whole. What another model, text or choice of layers left is dropped.
    """

    def __init__(
        self, folder: Path, batches: Sequence[Batch], device: str, identity: dict[str, Any]
    ) -> None:
        self._folder, self._device = folder, device
        digest = hashlib.sha256()
        for batch in batches:
            digest.update(str(batch.token_ids.shape).encode())
            digest.update(batch.token_ids.tobytes())
            digest.update(batch.attention_mask.tobytes())
        key = {"batches": digest.hexdigest(), **identity}
        path = folder / _KEY
        if not path.is_file() or json.loads(path.read_text("utf-8")) != key:
            self.remove()
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(key), encoding="utf-8")
        self._last: dict[int, int] = {}
        for kept in folder.glob("hidden-*.safetensors"):
            index, number = (int(part) for part in kept.stem.split("-")[1:])
            self._last[number] = max(index, self._last.get(number, -1))

    def _path(self, what: str, index: int, number: int) -> Path:
        return self._folder / f"{what}-{index:04d}-{number:06d}.safetensors"

    def passed(self, index: int, number: int) -> bool:
        """Did this batch pass this layer?"""
        return self._last.get(number, -1) >= index

    def keep(self, index: int, number: int, hidden: Any, routing: Routing | None) -> None:
        """Keep what a layer made of a batch; what the layer before the last made is dropped."""
        if routing is not None:
            tensors = {name: t.contiguous().cpu() for name, t in routing._asdict().items()}
            self._write(tensors, self._path("routing", index, number))
        self._write(_flatten(hidden), self._path("hidden", index, number))
        self._last[number] = index
        self._path("hidden", index - 1, number).unlink(missing_ok=True)

    def _write(self, tensors: dict[str, torch.Tensor], path: Path) -> None:
        partial = path.with_suffix(".partial")
        try:
            save_file(tensors, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:  # the library's own, when its writing fails
            partial.unlink(missing_ok=True)
            raise write_error(path, error) from error

    def hidden(self, index: int, number: int) -> Any:
        """What a layer put out for a batch."""
        return _unflatten(load_file(self._path("hidden", index, number), device=self._device))

    def routing(self, index: int, number: int) -> Routing:
        """What a router did with a batch."""
        return Routing(**load_file(self._path("routing", index, number)))

    def remove(self) -> None:
        """Drop everything of this pool."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _flatten(output: Any) -> dict[str, torch.Tensor]:
    """A layer's output as named tensors: ``hidden`` alone, or ``0``, ``1``, … without the Nones."""
    if isinstance(output, torch.Tensor):
        return {"hidden": output.contiguous().cpu()}
    parts = {str(i): p for i, p in enumerate(output) if p is not None}
    strange = [type(p).__name__ for p in parts.values() if not isinstance(p, torch.Tensor)]
    if strange:
        raise ModelError(
            f"a decoder layer of this model hands on a {strange[0]}, so it cannot be run on its "
            "own; use `engine=resident`"
        )
    length = torch.tensor(len(output))
    return {"length": length, **{name: p.contiguous().cpu() for name, p in parts.items()}}


def _unflatten(tensors: dict[str, torch.Tensor]) -> Any:
    if "hidden" in tensors:
        return tensors["hidden"]
    return tuple(tensors.get(str(i)) for i in range(int(tensors["length"])))
