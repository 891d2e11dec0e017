"""Which tokens never stand for text: the one rule, for what is read, written and imported.

A control token is one that the tokenizer itself marks as special: BOS, EOS, padding, the marks of
chats (``<|im_start|>``, ``<|channel|>``). It goes through the model and is counted nowhere,
wherever it stands: in a document, in a chat template, in what the model writes, in what a serving
engine captured. Only ``count_template`` counts those that a template and the model itself write.
"""

from __future__ import annotations

from typing import Any

__all__ = ["control_ids"]


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's control tokens.

    Those that it names (BOS, EOS, …) and those that it merely holds with the mark "special", as
    gpt-oss does with ``<|channel|>``. An unknown character (``unk``) stands for text.

    Args:
        tokenizer: a transformers tokenizer.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = {int(i) for i, token in added.items() if getattr(token, "special", False)}
    named = {int(i) for i in tokenizer.all_special_ids}
    return frozenset((named | marked) - {getattr(tokenizer, "unk_token_id", None)})
