"""The tokens that experts are compared on, and what the experts of each layer receive for them.

Tokens are spread evenly over domains and kept in groups of whole documents, the unit of every
interval. The model reads them once; what each layer's experts receive is kept in memory or in a
file beside the results. What is computed from it is for others.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.errors import CorpusError
from moescope.measure.forward import fitting_batch, run_batches
from moescope.measure.windows import TextWindow, WindowBatch, window_batches
from moescope.models import LoadedModel, MoELayer
from moescope.models.expert_calls import ExpertInputs, LayerInput
from moescope.run.sample import span_priority
from moescope.similarity.row_store import RowStore

GROUPS = 10
"""Groups of whole documents that intervals are made of; fewer where there are fewer documents."""

_MOST_BATCH_TOKENS = 2048
_WINDOWS = 8
_FEWEST_TOKENS = 32


class TokenSample(NamedTuple):
    """The N tokens, group by group, within a group by domain and document.

    ``windows``: the text they stand in, in their order. ``group_sizes``: tokens of each group.
    ``doc``, ``domain``, ``pos``, ``token_id`` (N,): index into ``documents`` and ``domains``, place
    in the document, id. ``sha256``: of all windows and what is counted in them.
    """

    windows: list[TextWindow]
    group_sizes: list[int]
    doc: NDArray[np.int64]
    domain: NDArray[np.int64]
    pos: NDArray[np.int64]
    token_id: NDArray[np.int64]
    documents: list[str]
    domains: list[str]
    sha256: str

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.token_id.size)


class LayerSample(NamedTuple):
    """What one layer's experts received for the N tokens, and what its router decided.

    ``hidden``: (1, N, D). ``topk_ids`` and ``topk_weights`` (N, K). ``dtype`` and ``device``: of
    what the experts are called with.
    """

    hidden: RowStore
    topk_ids: NDArray[np.int64]
    topk_weights: NDArray[np.float32]
    dtype: torch.dtype
    device: torch.device

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Inputs of tokens start … stop − 1, as the experts take them."""
        return self.hidden.read(0, start, stop).to(self.device, self.dtype)

    def given(self, experts: int) -> NDArray[np.bool_]:
        """Which tokens were given to which expert, (N, E)."""
        mask = np.zeros((len(self.topk_ids), experts), np.bool_)
        np.put_along_axis(mask, self.topk_ids, True, axis=1)
        return mask


def even_shares(wanted: int, there: Sequence[int]) -> list[int]:
    """Spread a number evenly over places that hold at most so much.

    Example:
        >>> even_shares(10, [100, 2, 100])
        [4, 2, 4]
        >>> even_shares(10, [1, 2, 3])
        [1, 2, 3]
    """
    shares, left = [0] * len(there), wanted
    order = sorted(range(len(there)), key=lambda i: there[i])
    for number, place in enumerate(order):
        shares[place] = min(there[place], left // (len(order) - number))
        left -= shares[place]
    return shares


def take_tokens(windows: Sequence[TextWindow], tokens: int, seed: int) -> TokenSample:
    """Of each domain an equal number of tokens, from the windows of lowest hash.

    Args:
        windows: more than enough of each domain (`moescope.measure.windows.choose_windows`).
        tokens: N in all; a domain that has less gives what it has, and the others more. A share
            comes from 8 windows or more where there are so many, which give their first tokens, at
            least 32.
        seed: of the hash; that of the windows.

    Raises:
        CorpusError: fewer than 2 tokens.
    """
    domains = list(dict.fromkeys(w.domain for w in windows))
    there = [sum(w.num_tokens for w in windows if w.domain == name) for name in domains]
    chosen: list[TextWindow] = []
    for name, share in zip(domains, even_shares(tokens, there), strict=True):
        own = [w for w in windows if w.domain == name]
        longest = _longest(np.asarray([w.num_tokens for w in own]), share)
        for window in sorted(own, key=lambda w: span_priority(w.doc, w.window, seed)):
            if share > 0:
                chosen.append(_cut(window, min(share, longest)))
                share -= chosen[-1].num_tokens
    if sum(w.num_tokens for w in chosen) < 2:
        raise CorpusError("experts are compared over tokens, and this text has fewer than two")
    group_of = _group_documents(chosen, domains)
    chosen.sort(key=lambda w: (group_of[w.doc], domains.index(w.domain), w.doc, w.window))
    return _as_arrays(chosen, group_of, domains)


def _longest(there: NDArray[np.int64], share: int) -> int:
    """Most tokens of a window, so that a domain's share comes from several documents."""
    tokens = max(_FEWEST_TOKENS, -(-share // _WINDOWS))
    while np.minimum(there, tokens).sum() < share:  # ends: a share is never more than there is
        tokens *= 2
    return tokens


def _cut(window: TextWindow, tokens: int) -> TextWindow:
    places = np.flatnonzero(window.counted)[:tokens]
    stop = int(places[-1]) + 1
    return window._replace(token_ids=window.token_ids[:stop], counted=window.counted[:stop])


def _group_documents(windows: Sequence[TextWindow], domains: list[str]) -> dict[str, int]:
    """Whole documents to groups of nearly equal size, each with a share of every domain."""
    size: dict[tuple[str, str], int] = {}
    for w in windows:
        size[w.domain, w.doc] = size.get((w.domain, w.doc), 0) + w.num_tokens
    count = min(GROUPS, len({doc for _, doc in size}))
    held, group_of = np.zeros(count, np.int64), dict[str, int]()
    for name in domains:
        of_domain = np.zeros(count, np.int64)
        own = [(tokens, doc) for (domain, doc), tokens in size.items() if domain == name]
        for tokens, doc in sorted(own, key=lambda item: (-item[0], item[1])):
            group = group_of.setdefault(doc, int((held + of_domain).argmin()))
            held[group] += tokens
            of_domain[group] += tokens
    used = sorted(set(group_of.values()))
    return {doc: used.index(group) for doc, group in group_of.items()}


def _as_arrays(
    windows: list[TextWindow], group_of: dict[str, int], domains: list[str]
) -> TokenSample:
    documents = list(dict.fromkeys(w.doc for w in windows))
    place = {doc: i for i, doc in enumerate(documents)}
    sizes = [w.num_tokens for w in windows]
    groups = np.zeros(max(group_of.values()) + 1, np.int64)
    digest = hashlib.sha256()
    for w in windows:
        groups[group_of[w.doc]] += w.num_tokens
        digest.update(f"{w.domain}\0{w.doc}\0{w.window}\0{w.start}\0{len(w.token_ids)}\0".encode())
        digest.update(w.token_ids.astype("<i4").tobytes() + w.counted.tobytes())
    return TokenSample(
        windows=windows,
        group_sizes=groups.tolist(),
        doc=np.repeat([place[w.doc] for w in windows], sizes).astype(np.int64),
        domain=np.repeat([domains.index(w.domain) for w in windows], sizes).astype(np.int64),
        pos=np.concatenate([w.start + np.flatnonzero(w.counted) for w in windows]),
        token_id=np.concatenate([w.token_ids[w.counted] for w in windows]).astype(np.int64),
        documents=documents,
        domains=domains,
        sha256=digest.hexdigest(),
    )


def capture_inputs(
    loaded: LoadedModel,
    layers: Sequence[MoELayer],
    sample: TokenSample,
    *,
    done: Container[int] = (),
    budget: float = 1e9,
    folder: Path | None = None,
    on_tokens: Callable[[int], None] = lambda _: None,
) -> dict[int, LayerSample]:
    """One forward pass over the sample, by layer number.

    Args:
        loaded: the model.
        layers: the MoE layers to read.
        sample: which tokens.
        done: numbers of layers that are not needed; batches are cut as if they were, because what a
            layer receives follows the batches to the last digit.
        budget: bytes; inputs that need more than a quarter of it go to files.
        folder: where those files lie; the system's folder for temporary files by default.
        on_tokens: called with the tokens that each batch held.

    Raises:
        CoverageError: a router or its experts were not seen.
        ModelError: out of memory.
    """
    wide = sum(layer.hidden_size for layer in layers) * 4
    fits = sample.num_tokens * wide <= budget / 4
    spill = None if fits else folder or Path(tempfile.gettempdir())
    made: dict[int, LayerSample] = {}
    first = np.cumsum([0, *(w.num_tokens for w in sample.windows)])

    def keep(batch: WindowBatch, seen: dict[int, LayerInput]) -> None:
        counted = torch.as_tensor(batch.counted.reshape(-1))
        rows = np.concatenate([np.arange(first[r], first[r + 1]) for r in batch.rows])
        for number, read in seen.items():
            if number not in made:
                made[number] = _room(sample, read, spill)
            _keep(made[number], read, counted, rows)
        on_tokens(int(counted.sum()))

    wanted = [layer for layer in layers if layer.layer_idx not in done]
    tokens = fitting_batch(wide, budget / 8, _MOST_BATCH_TOKENS)
    run_batches(
        loaded, window_batches(sample.windows, tokens, loaded.pad_id),
        ExpertInputs(loaded.model, wanted), keep, setting="memory",
    )  # fmt: skip
    return made


def _room(sample: TokenSample, read: LayerInput, folder: Path | None) -> LayerSample:
    shape = (1, sample.num_tokens, read.hidden.shape[-1])
    choices = (sample.num_tokens, read.routing.topk_ids.shape[-1])
    return LayerSample(
        RowStore(shape, torch.float32, folder),
        np.zeros(choices, np.int64),
        np.zeros(choices, np.float32),
        read.hidden.dtype,
        read.hidden.device,
    )


def _keep(
    into: LayerSample, read: LayerInput, counted: torch.Tensor, rows: NDArray[np.int64]
) -> None:
    """Counted rows of one batch to their places; consecutive ones are written together."""
    keep = counted.to(read.hidden.device)
    hidden = read.hidden[keep].float().cpu()
    into.topk_ids[rows] = read.routing.topk_ids[keep].cpu().numpy()
    into.topk_weights[rows] = read.routing.topk_weights[keep].float().cpu().numpy()
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for part in np.split(np.arange(len(rows)), breaks):
        into.hidden.write(0, int(rows[part[0]]), hidden[part[0] : part[-1] + 1])
