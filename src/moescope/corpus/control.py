"""Which tokens never stand for text: the one rule, for what is read, written and imported.

A control token is one that the tokenizer itself marks as special: BOS, EOS, padding, the marks of
chats (``<|im_start|>``, ``<|channel|>``). It goes through the model and is counted nowhere,
wherever it stands: in a document, in a chat template, in what the model writes, in what a serving
engine captured. Only ``count_template`` counts those that a template and the model itself write.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

_MARK = re.compile(
    r"<[|｜][\w▁]{2,40}[|｜]>|<(?:start|end)_of_turn>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]"
)
"""What chat templates write between turns: ``<|im_start|>``, ``<start_of_turn>``, ``[INST]``."""

_MOST_MARKS = 16


class Marks(NamedTuple):
    """Marks of a rendered chat in a text that are read as the characters that they are.

    Attributes:
        spelt_out: control tokens of the tokenizer; ``chat_text`` would read them as such.
        unknown: the tokenizer has no such control token.
    """

    spelt_out: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class MarksWarning(UserWarning):
    """Text holds marks of a rendered chat, which are spelt out."""


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's control tokens.

    Those that it names (BOS, EOS, …) and those that it merely holds with the mark "special", as
    gpt-oss does with ``<|channel|>``. An unknown character (``unk``) stands for text.
    """
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    marked = {int(i) for i, token in added.items() if getattr(token, "special", False)}
    named = {int(i) for i in tokenizer.all_special_ids}
    return frozenset((named | marked) - {getattr(tokenizer, "unk_token_id", None)})


def find_marks(tokenizer: Any, text: str, *, chat_text: bool = False) -> Marks:
    """Which marks of a rendered chat a text holds that its tokens spell out.

    Args:
        tokenizer: a transformers tokenizer.
        text: the document's own text.
        chat_text: its control tokens are read as such, so only unknown marks are spelt out.
    """
    found = list(dict.fromkeys(m.group() for m in _MARK.finditer(text)))[:_MOST_MARKS]
    if not found:
        return Marks()
    control = set(tokenizer.convert_ids_to_tokens(sorted(control_ids(tokenizer))))
    known = () if chat_text else tuple(mark for mark in found if mark in control)
    return Marks(known, tuple(mark for mark in found if mark not in control))


def notes_on_marks(spelt_out: Mapping[str, int], unknown: Mapping[str, int]) -> list[str]:
    """What to say of them: sentences, none where there are none.

    Args:
        spelt_out: documents that hold each of the tokenizer's own marks.
        unknown: documents that hold each of the others.
    """
    made = []
    if spelt_out:
        made.append(
            f"The text holds control tokens that were read as plain characters "
            f"({_listed(spelt_out)}). If a chat template wrote them, have them read as control "
            "tokens (`chat_text`)."
        )
    if unknown:
        made.append(
            f"The text holds marks of a chat template that are not control tokens of this "
            f"tokenizer and were read as plain characters ({_listed(unknown)}). They may be of "
            "another model's template."
        )
    return made


def warn_of_marks(found: Iterable[Marks]) -> None:
    """Warn once of the marks of many documents, where nothing keeps a count of them."""
    spelt_out, unknown = Counter[str](), Counter[str]()
    for marks in found:
        spelt_out.update(marks.spelt_out)
        unknown.update(marks.unknown)
    for note in notes_on_marks(spelt_out, unknown):
        warnings.warn(note, MarksWarning, stacklevel=3)


def _listed(counts: Mapping[str, int]) -> str:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    return ", ".join(f"{mark} in {n:,} document{'s' if n > 1 else ''}" for mark, n in most)
