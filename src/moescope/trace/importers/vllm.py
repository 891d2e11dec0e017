"""Routing that vLLM captured: ``CompletionOutput.routed_experts``, or the answers of its server.

Read off vLLM 0.33 (the server's spelling since 0.22): ids only, [tokens − 1 − start, layers, K],
uint8 where E ≤ 256, else wider; one slot for each decoder layer, in which dense layers leave
whatever was there; −1 where none was kept. The server sends each choice's array as base64 of a
``.npy`` file and the token ids when asked with ``return_token_ids``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moescope.models.anatomy import MoELayer
from moescope.trace.importers.common import (
    Item,
    Request,
    counted_mask,
    expert_array,
    label_of,
    prompt_ids_of,
    refuse,
    start_of,
    token_ids,
)
from moescope.trace.importers.served import ServedModel

NAME = "vLLM"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".npz", ".safetensors")
_ASK = "ask the server with return_token_ids: true"


def requests(
    item: Item, served: ServedModel, domain: str | None, _layers: tuple[MoELayer, ...]
) -> Iterator[Request]:
    """The requests of one entry: one, or one for each choice of a server's answer.

    Raises:
        RefusedError: a field is missing or of another form.
    """
    answer = item.values.get("response", item.values)
    if isinstance(answer, Mapping) and "choices" in answer:
        yield from _of_server(item, answer, served, domain)
        return
    values, where = item.values, item.where
    if "prompt_routed_experts" in values:
        refuse("prompt_routed_experts beside routed_experts", where, "the split form of vLLM 0.21",
               "join the two along the tokens, without a row for the last one")  # fmt: skip
    prompt_ids = prompt_ids_of(values, where, served, ("prompt_token_ids",))
    if prompt_ids is None:
        refuse("no field 'prompt_token_ids'", where, "and no prompt to tokenize")
    if values.get("output_token_ids") is None:
        refuse("no field 'output_token_ids'", where, "expected the generated ids, [] for none")
    doc_id, label = label_of(item, domain)
    yield Request(
        where=where,
        doc_id=doc_id,
        domain=label,
        prompt_ids=prompt_ids,
        output_ids=token_ids(values["output_token_ids"], "output_token_ids", where, served),
        experts=expert_array(values.get("routed_experts"), where),
        start=start_of(values, where),
        counted=counted_mask(values, where),
    )


def _of_server(
    item: Item, answer: Mapping[str, Any], served: ServedModel, domain: str | None
) -> Iterator[Request]:
    """Choices of ``/v1/completions`` or ``/v1/chat/completions``, saved as they came."""
    choices, where = answer["choices"], item.where
    if not isinstance(choices, list) or not all(isinstance(c, Mapping) for c in choices):
        refuse("choices is not a list of objects", where, f"got {type(choices).__name__}")
    own_id = {"id": answer["id"]} if "id" in answer else {}
    doc_id, label = label_of(item._replace(values={**own_id, **item.values}), domain)
    for number, choice in enumerate(choices):
        here = where if len(choices) == 1 else f"{where}, choice {number}"
        given = choice if choice.get("prompt_token_ids") is not None else answer
        prompt_ids = prompt_ids_of(given, here, served, ("prompt_token_ids",))
        if prompt_ids is None:
            refuse("no field 'prompt_token_ids' in the answer", here, "nor in its choice", _ASK)
        if choice.get("token_ids") is None:
            refuse("no field 'token_ids' in the choice", here, "the generated ids", _ASK)
        yield Request(
            where=here,
            doc_id=doc_id if len(choices) == 1 else f"{doc_id}#{number}",
            domain=label,
            prompt_ids=prompt_ids,
            output_ids=token_ids(choice["token_ids"], "token_ids", here, served),
            experts=expert_array(choice.get("routed_experts"), here),
            start=start_of(item.values, here),
            counted=counted_mask(item.values, here),
        )
