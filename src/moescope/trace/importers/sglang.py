"""Routing that SGLang captured: ``meta_info["routed_experts"]`` of the answers of ``/generate``.

Read off SGLang 0.5.23: base64 of int32 without a shape, [seqlen − 1 − start, layers, K], one slot
for each decoder layer (dense ones stay as they were). ``start`` is the request's
``routed_experts_start_len``. The answer names the generated ids (``output_ids``) but of the prompt
only the number of tokens, unless the request asked for the prompt's log-probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moescope.models.anatomy import MoELayer
from moescope.trace.importers.common import (
    MAX_TOKENS,
    Item,
    Request,
    counted_mask,
    expert_array,
    label_of,
    prompt_ids_of,
    refuse,
    start_of,
    token_ids,
    unpacked,
)
from moescope.trace.importers.served import ServedModel
from moescope.trace.importers.vllm import requests as plain_requests
from moescope.words import counted

NAME = "SGLang"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".npz", ".safetensors")
_PROMPT = ("prompt_token_ids", "input_ids")


def requests(
    item: Item, served: ServedModel, domain: str | None, layers: tuple[MoELayer, ...]
) -> Iterator[Request]:
    """The requests of one entry: one, or one for each answer of a batch or of several samples.

    Raises:
        RefusedError: a field is missing or of another form.
    """
    answer = item.values.get("response", item.values)
    if isinstance(answer, Mapping) and "meta_info" not in answer:
        if "choices" in answer:
            refuse("an answer without token ids", item.where, "of an OpenAI-style endpoint",
                   "save the answer of /generate, or prompt_token_ids, output_token_ids and "
                   "routed_experts")  # fmt: skip
        yield from plain_requests(item, served, domain, layers)
        return
    answers = answer if isinstance(answer, list) else [answer]
    doc_id, label = label_of(item, domain)
    for number, one in enumerate(answers):
        where = item.where if len(answers) == 1 else f"{item.where}, answer {number}"
        if not isinstance(one, Mapping) or not isinstance(one.get("meta_info"), Mapping):
            refuse("no meta_info in the answer", where, "expected the answer of /generate")
        name = doc_id if len(answers) == 1 else f"{doc_id}#{number}"
        yield _request(item.values, one, where, served, (name, label))


def _request(
    values: Mapping[str, Any],
    answer: Mapping[str, Any],
    where: str,
    served: ServedModel,
    named: tuple[str, str],
) -> Request:
    meta = answer["meta_info"]
    prompt_ids = _prompt(values, meta, where, served)
    output_ids = _output(answer, meta, where, served)
    start = start_of(meta, where) or start_of(values, where)
    rows = max(0, prompt_ids.size + output_ids.size - 1 - start)
    return Request(
        where=where,
        doc_id=named[0],
        domain=named[1],
        prompt_ids=prompt_ids,
        output_ids=output_ids,
        experts=_experts(meta.get("routed_experts"), rows, where, served),
        start=start,
        counted=counted_mask(values, where),
    )


def _prompt(
    values: Mapping[str, Any], meta: Mapping[str, Any], where: str, served: ServedModel
) -> NDArray[np.int64]:
    """Ids of the prompt; −1 for each of its tokens when the capture says only how many."""
    expected = _count(meta, "prompt_tokens", where)
    found = prompt_ids_of(values, where, served, _PROMPT)
    if found is None and isinstance(meta.get("input_token_logprobs"), list):
        listed = _of_logprobs(meta["input_token_logprobs"], "input_token_logprobs", where, served)
        found = listed if listed.size == expected else None  # only the tail was asked for
    if found is None:
        return np.full(expected, -1, np.int64)
    if found.size != expected:
        refuse("the prompt's ids do not fit prompt_tokens", where,
               f"got {found.size}, expected {expected}",
               "save the ids that were sent, the chat template's included")  # fmt: skip
    return found


def _output(
    answer: Mapping[str, Any], meta: Mapping[str, Any], where: str, served: ServedModel
) -> NDArray[np.int64]:
    expected = _count(meta, "completion_tokens", where)
    if answer.get("output_ids") is not None:
        found = token_ids(answer["output_ids"], "output_ids", where, served)
    elif isinstance(meta.get("output_token_logprobs"), list):
        listed = meta["output_token_logprobs"]
        found = _of_logprobs(listed, "output_token_logprobs", where, served)
    else:
        return np.full(expected, -1, np.int64)
    if found.size != expected:
        refuse("the generated ids do not fit completion_tokens", where,
               f"got {found.size}, expected {expected}")  # fmt: skip
    return found


def _of_logprobs(
    listed: list[Any], name: str, where: str, served: ServedModel
) -> NDArray[np.int64]:
    """Ids from entries of (log-probability, id, text)."""
    if not all(isinstance(entry, list | tuple) and len(entry) >= 2 for entry in listed):
        refuse(f"{name} is of another form", where, "expected [log-probability, id, text]")
    return token_ids([entry[1] for entry in listed], name, where, served)


def _count(meta: Mapping[str, Any], name: str, where: str) -> int:
    value = meta.get(name)
    whole = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= whole <= MAX_TOKENS:
        refuse(f"no {name} in meta_info", where, f"got {value!r}, expected 0 to {MAX_TOKENS:,}")
    return whole


def _experts(value: Any, rows: int, where: str, served: ServedModel) -> NDArray[Any]:
    """int32 without a shape: the number of layer slots follows from the rows."""
    if not isinstance(value, str):
        return expert_array(value, where)
    data = unpacked(value, "routed_experts", where)
    anatomy = served.anatomy
    top_k = max(layer.top_k for layer in anatomy.layers)
    slots = (anatomy.num_decoder_layers, len(anatomy.layers))
    for count in slots:
        if len(data) == 4 * rows * count * top_k:
            return np.frombuffer(data, "<i4").reshape(rows, count, top_k)
    row = 4 * slots[0] * top_k
    whole, rest = divmod(len(data), row)
    if rest:
        refuse("routed_experts is cut short, or of another model", where,
               f"got {len(data):,} bytes, expected {rows * row:,}: {rows} tokens × "
               f"{counted(slots[0], 'layer')} × {top_k} experts of int32",
               "capture it again, or give the model that was served by `model`")  # fmt: skip
    return np.frombuffer(data, "<i4").reshape(whole, slots[0], top_k)
