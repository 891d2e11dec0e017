"""Damage the slow way: every window alone, whole passes, double precision, no code of the package
but the edit itself."""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from tests.support.tiny import VOCAB_SIZE, tiny_model

from moescope.measure.windows import TextWindow
from moescope.models import LoadedModel, ModelSpec, find_anatomy
from moescope.models.capture import RoutingCapture
from moescope.models.editing import edited
from moescope.models.edits import Edit
from moescope.models.loading import weights_fingerprint


class ByHand(NamedTuple):
    """Sums over the scored tokens of each window, (W,)."""

    tokens: np.ndarray
    ce: np.ndarray
    ce_change: np.ndarray
    kl: np.ndarray
    flips: np.ndarray


def loaded_of(kind: str, seed: int = 0) -> LoadedModel:
    """A tiny random model as if it had been loaded."""
    model = tiny_model(kind, seed)
    return LoadedModel(
        ModelSpec(kind), model, SimpleNamespace(pad_token_id=0), find_anatomy(model, model.config),
        "config", "tokenizer", weights_fingerprint(model), "float32", "float32", "cpu", None,
    )  # fmt: skip


def some_windows(lengths: tuple[int, ...] = (20, 20, 13, 9, 20, 5)) -> list[TextWindow]:
    """Random tokens after a BOS that does not count, in two domains by turns."""
    rng = np.random.default_rng(0)
    windows = []
    for n, length in enumerate(lengths):
        ids = rng.integers(3, VOCAB_SIZE, length + 1).astype(np.int32)
        ids[0] = 1
        windows.append(TextWindow(f"doc{n}", f"dom{n % 2}", 0, 0, ids, np.arange(length + 1) > 0))
    return windows


@torch.no_grad()
def by_hand(loaded: LoadedModel, windows: list[TextWindow], edit: Edit) -> ByHand:
    """One plain and one edited pass over each window, and the definitions."""
    rows = []
    for window in windows:
        ids = torch.tensor(window.token_ids[None].astype(np.int64))
        before = _log_probs(loaded, ids)
        with edited(loaded, [edit]):
            after = _log_probs(loaded, ids)
        scored = [
            i
            for i in range(len(window.token_ids) - 1)
            if window.counted[i] and window.counted[i + 1]
        ]
        sums = np.zeros(5)
        for i in scored:
            true = int(window.token_ids[i + 1])
            p, q = before[i], after[i]
            flip = float(p.argmax() != q.argmax())
            sums += [1, -p[true], p[true] - q[true], float((p.exp() * (p - q)).sum()), flip]
        rows.append(sums)
    return ByHand(*np.array(rows).T)


def _log_probs(loaded: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(loaded.model(input_ids=ids, use_cache=False).logits[0].double(), -1)


@torch.no_grad()
def choices(loaded: LoadedModel, window: TextWindow, layer: int) -> np.ndarray:
    """The experts of every token of a window in one layer, (S, K)."""
    sites = [m.site for m in loaded.anatomy.layers if m.layer_idx == layer]
    with RoutingCapture(loaded.model, sites) as capture:
        loaded.model(input_ids=torch.tensor(window.token_ids[None].astype(np.int64)))
        return capture.take()[layer].topk_ids.numpy()
