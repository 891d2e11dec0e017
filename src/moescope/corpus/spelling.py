"""Control tokens in text are spelt out: a document must not be able to forge them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moescope.corpus.control import control_ids


def spell_out(
    tokenizer: Any,
    text: str,
    ids: npt.NDArray[np.int32],
    spans: npt.NDArray[np.int64],
    forged: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Replace each forged control token by the tokens of its characters.

    Returns:
        The ids, of which token each was made, and which of them are spelt out or need not be. A
        tokenizer that has no other token for those characters keeps the control token.
    """
    if not forged.any():
        return ids, np.arange(len(ids)), np.ones(len(ids), np.bool_)
    reserved = control_ids(tokenizer)
    parts: list[tuple[list[int], bool]] = []
    for i in range(len(ids)):
        spelt = None
        if forged[i]:
            spelt = _plain_ids(tokenizer, text[spans[i, 0] : spans[i, 1]], reserved)
        parts.append(
            ([int(ids[i])] if spelt is None else spelt, not forged[i] or spelt is not None)
        )
    sizes = [len(tokens) for tokens, _ in parts]
    return (
        np.asarray([t for tokens, _ in parts for t in tokens], dtype=np.int32),
        np.repeat(np.arange(len(ids)), sizes),
        np.repeat([done for _, done in parts], sizes),
    )


def _plain_ids(tokenizer: Any, piece: str, reserved: frozenset[int]) -> list[int] | None:
    """Encode a few characters without control tokens; None when the tokenizer cannot."""
    # Encoded behind a line break, because SentencePiece puts a blank before the start of a text.
    break_ids, ids = (
        [int(i) for i in encode(tokenizer, text, add_special_tokens=False)["input_ids"]]
        for text in ("\n", "\n" + piece)
    )
    if ids[: len(break_ids)] == break_ids:
        ids = ids[len(break_ids) :]
    else:
        ids = [int(i) for i in encode(tokenizer, piece, add_special_tokens=False)["input_ids"]]
    if ids and not reserved.intersection(ids):
        return ids
    by_character = [tokenizer.convert_tokens_to_ids(character) for character in piece]
    if not by_character or any(i is None or i in reserved for i in by_character):
        return None
    return by_character


def are_control(tokenizer: Any, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Which ids are control tokens, which text must never produce by itself."""
    return np.isin(ids, sorted(control_ids(tokenizer)))


def encode(tokenizer: Any, text: str, **options: Any) -> Any:
    """Call the tokenizer, neither truncating nor padding whatever its saved file asks for."""
    options.setdefault("split_special_tokens", True)
    return tokenizer(text, truncation=False, padding=False, verbose=False, **options)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Readable text of token ids; a piece of a character keeps the tokenizer's own spelling."""
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    texts = []
    for token_id, piece in zip(ids, pieces, strict=True):
        text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
        plain = piece is None or (text and "\ufffd" not in text and "▁" not in piece)
        texts.append(text if plain else str(piece).replace("▁", " "))
    return texts
