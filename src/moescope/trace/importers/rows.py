"""From a request as it was served to counted rows: layers by number, phases apart, all checked.

Nothing is guessed: an id that the model does not have, a row too many or too few, an expert named
twice for one token is refused with its place. It knows no files and no sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.models.anatomy import Anatomy, MoELayer
from moescope.trace.importers.common import OTHER_MODEL, Request, refuse
from moescope.trace.importers.served import ServedModel
from moescope.trace.importers.uncaptured import refuse_repeated, zero_filled

ZERO_FILLED = "tokens whose routing was filled with zeros"
"""Why a token was left out; see `moescope.trace.importers.uncaptured.zero_filled`."""


class PhaseRows(NamedTuple):
    """Counted tokens of one phase of one request; everything (T,), ``ids`` by layer (T, K)."""

    pos: NDArray[np.int64]
    token_id: NDArray[np.int64]
    next_id: NDArray[np.int64]
    follows: NDArray[np.bool_]
    last: NDArray[np.bool_]
    ids: list[NDArray[np.int64]]


class CountedRequest(NamedTuple):
    """A request whose rows are checked.

    ``phases``: those that have counted tokens. ``left_out``: tokens that are not counted, by
    reason. ``unnamed``: counted tokens whose id is not known.
    """

    doc_id: str
    domain: str
    phases: dict[str, PhaseRows]
    num_tokens: int
    left_out: dict[str, int]
    unnamed: int
    masked: bool


def count_request(
    request: Request, served: ServedModel, layers: Sequence[MoELayer], *, ordered: bool
) -> CountedRequest:
    """Check a request and cut it into phases.

    Positions below P are ``prefill``, the others ``decode``. Control tokens, tokens that the
    capture's own mask leaves out, and tokens without routing are not counted.

    Args:
        request: as the engine gave it.
        served: the model.
        layers: the layers to import, ascending.
        ordered: the engine names the K experts by descending weight; else they are sorted by
            number, so that no order is read into them.

    Raises:
        RefusedError: the routing does not fit the model or the tokens.
    """
    per_layer = _by_layer(request, served.anatomy, layers)
    tokens = np.concatenate([request.prompt_ids, request.output_ids])
    pos = np.arange(request.start, request.start + request.experts.shape[0])
    captured = _captured(request, per_layer)
    text = _text_mask(request, tokens, served.special_ids)
    for layer, rows in zip(layers, per_layer, strict=True):
        _check_ids(request, layer, rows, pos, captured)
    filled = _not_routing(request, served.anatomy, captured)
    captured &= ~filled
    kept = captured & text[pos]
    ids = [rows[kept].astype(np.int64) for rows in per_layer]
    if not ordered:
        ids = [np.sort(rows, axis=1) for rows in ids]
    known = np.zeros(tokens.size, np.bool_)
    known[pos[captured]] = True
    counted = known & text
    return CountedRequest(
        doc_id=request.doc_id,
        domain=request.domain,
        phases=_phases(request, tokens, text, pos[kept], ids),
        num_tokens=int(counted.sum()),
        left_out=_left_out(request, tokens, counted, known, pos[filled], served.special_ids),
        unnamed=int((tokens[counted] < 0).sum()),
        masked=request.counted is not None,
    )


def slots_of(request: Request, anatomy: Anatomy) -> tuple[int, ...]:
    """The model's own number of each layer slot, by how many slots there are.

    Raises:
        RefusedError: neither one for each decoder layer nor one for each MoE layer.
    """
    if request.slots is not None:
        return request.slots
    found = request.experts.shape[1]
    known = {len(anatomy.layers): anatomy.layer_numbers}
    known[anatomy.num_decoder_layers] = tuple(range(anatomy.num_decoder_layers))
    if found not in known:
        refuse("another number of layers", request.where,
               f"got {found}, expected {anatomy.num_decoder_layers} (all decoder layers) or "
               f"{len(anatomy.layers)} (all MoE layers)", OTHER_MODEL)  # fmt: skip
    return known[found]


def _by_layer(request: Request, anatomy: Anatomy, layers: Sequence[MoELayer]) -> list[NDArray[Any]]:
    """The rows of each imported layer, (R, K); slots of dense layers hold anything and are left."""
    where, experts = request.where, request.experts
    if experts.ndim != 3:
        refuse("routed_experts has no three axes", where,
               f"got the shape {list(experts.shape)}, expected [tokens, layers, K]")  # fmt: skip
    end = request.num_tokens if request.all_fed else request.num_tokens - 1
    expected = max(0, end - request.start)
    if experts.shape[0] != expected:
        refuse("rows of routing do not fit the tokens", where, _misfit(request, end),
               "a capture without its first rows must say so in the field start")  # fmt: skip
    slots = slots_of(request, anatomy)
    made = []
    for layer in layers:
        rows = experts[:, slots.index(layer.layer_idx)]
        if rows.shape[1] != layer.top_k:
            refuse("another number of experts per token", where,
                   f"layer {layer.layer_idx}: got {rows.shape[1]}, expected {layer.top_k}",
                   OTHER_MODEL)  # fmt: skip
        if experts.dtype == np.uint8 and layer.num_experts > 256:
            refuse("dtype uint8 is too narrow", where,
                   f"layer {layer.layer_idx} has {layer.num_experts} experts; ids above 255 were "
                   "lost", "capture as uint16 or wider")  # fmt: skip
        made.append(rows)
    return made


def _misfit(request: Request, end: int) -> str:
    read, written = request.prompt_ids.size, request.output_ids.size
    after = "" if request.all_fed else ", less the last token, which is never fed"
    since = f", from position {request.start} on" if request.start else ""
    return (
        f"got {request.experts.shape[0]}, expected {max(0, end - request.start)}: {read} tokens "
        f"read and {written} written{after}{since}"
    )


def _captured(request: Request, per_layer: list[NDArray[Any]]) -> NDArray[np.bool_]:
    """Rows that hold routing; −1 in every place is how engines spell that they kept none.

    Any other number below 0 is no such word, and is refused as an expert.
    """
    missing = np.ones(request.experts.shape[0], np.bool_)
    for ids in per_layer:
        missing &= (ids == -1).all(axis=1)
    return ~missing


def _not_routing(
    request: Request, anatomy: Anatomy, captured: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Rows that an engine filled in; told by all MoE layers of the capture, imported or not."""
    slots = slots_of(request, anatomy)
    layers = [m for m in anatomy.layers if m.layer_idx in slots]
    places = [slots.index(m.layer_idx) for m in layers]
    rows = request.experts[:, places].astype(np.int64)
    filled = zero_filled(rows, layers, captured)
    if captured.any() and (filled == captured).all():
        refuse("routing that is all zero", request.where,
               f"{int(filled.sum())} tokens, expert 0 in every layer",
               "the engine did not capture it; capture it again")  # fmt: skip
    refuse_repeated(request, rows, layers, captured & ~filled)
    return filled


def _text_mask(
    request: Request, tokens: NDArray[np.int64], special: frozenset[int]
) -> NDArray[np.bool_]:
    """Which tokens stand for text: no special token, and none that the capture masks."""
    text = ~np.isin(tokens, list(special))
    if request.counted is None:
        return text
    sizes = (tokens.size, request.prompt_ids.size)
    if request.counted.size not in sizes:
        refuse("counted does not fit the tokens", request.where,
               f"got {request.counted.size} entries, expected {sizes[0]} (all tokens) or "
               f"{sizes[1]} (the prompt)")  # fmt: skip
    text[: request.counted.size] &= request.counted
    return text


def _check_ids(
    request: Request,
    layer: MoELayer,
    ids: NDArray[Any],
    pos: NDArray[np.int64],
    captured: NDArray[np.bool_],
) -> None:
    bad = captured & ((ids < 0) | (ids >= layer.num_experts)).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        wrong = next(int(e) for e in ids[row] if not 0 <= e < layer.num_experts)
        refuse("an expert that the model does not have", request.where,
               f"layer {layer.layer_idx}, token {pos[row]}: got {wrong}, expected 0 to "
               f"{layer.num_experts - 1}", OTHER_MODEL)  # fmt: skip
    ranked = np.sort(ids, axis=1)
    twice = captured & (ranked[:, 1:] == ranked[:, :-1]).any(axis=1)
    if twice.any():
        row = int(twice.argmax())
        refuse("an expert named twice for one token", request.where,
               f"layer {layer.layer_idx}, token {pos[row]}: {ids[row].tolist()}",
               "the engine did not capture this layer or token")  # fmt: skip


def _phases(
    request: Request,
    tokens: NDArray[np.int64],
    text: NDArray[np.bool_],
    pos: NDArray[np.int64],
    ids: list[NDArray[np.int64]],
) -> dict[str, PhaseRows]:
    """Cut at the prompt's end. What follows the prompt is the model's, so it is nobody's next."""
    read = request.prompt_ids.size
    following = np.append(tokens[1:], -1)
    of_text = np.append(text[1:], False)
    of_text[max(0, read - 1) : read] = False
    made = {}
    for name, mine in (("prefill", pos < read), ("decode", pos >= read)):
        here = pos[mine]
        if not here.size:
            continue
        real = of_text[here] if name == "prefill" else np.ones(here.size, np.bool_)
        made[name] = PhaseRows(
            pos=here,
            token_id=tokens[here],
            next_id=np.where(real, following[here], -1),
            follows=np.append(False, np.diff(here) == 1),
            last=here == here[-1],
            ids=[i[mine] for i in ids],
        )
    return made


def _left_out(
    request: Request,
    tokens: NDArray[np.int64],
    counted: NDArray[np.bool_],
    known: NDArray[np.bool_],
    filled: NDArray[np.int64],
    special: frozenset[int],
) -> dict[str, int]:
    """Every token that is not counted, under one reason."""
    rest = ~counted
    unfed = np.zeros(tokens.size, np.bool_)
    unfed[-1:] = not request.all_fed
    named = np.isin(tokens, list(special))
    zero = np.isin(np.arange(tokens.size), filled)
    reasons = {
        "last tokens, which were never fed": rest & unfed,
        "special tokens": rest & ~unfed & named,
        ZERO_FILLED: rest & ~unfed & ~named & zero,
        "tokens whose routing was not returned": rest & ~unfed & ~named & ~known & ~zero,
        "tokens masked in the capture": rest & ~unfed & ~named & known,
    }
    return {name: int(mask.sum()) for name, mask in reasons.items() if mask.any()}
