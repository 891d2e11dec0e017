"""A prompt as numbered tokens, positions in it, and the tokens that words begin with.

Everything that `steer` needs to know of a tokenizer. Tokens are numbered as the model reads them:
0 is the first one, BOS or a chat template's included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from moescope.corpus import Document, tokenize_document
from moescope.errors import BadInputError
from moescope.models.loading import LoadedModel

_LONGEST = 1 << 30
_REACH = 8
_SHOWN = 14


@dataclass(frozen=True)
class Prompt:
    """What the model reads.

    Attributes:
        text: as it was given.
        ids: the tokens, in order.
        pieces: the text of each.
        chat: rendered with the chat template.
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    chat: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def positions(self, targets: Iterable[int]) -> tuple[int, ...] | None:
        """Targets as positions counted from 0; negative ones count from the end. None for none.

        Raises:
            BadInputError: a target past the prompt; shows the tokens with their numbers.
        """
        found = set()
        for target in targets:
            if not -len(self) <= target < len(self):
                raise BadInputError(
                    f"`target` {target} is past the prompt, whose tokens are 0 to {len(self) - 1} "
                    f"(or -1 to -{len(self)} from the end): {self.numbered()}"
                )
            found.add(target % len(self))
        return tuple(sorted(found)) or None

    def numbered(self, most: int = _SHOWN) -> str:
        """The tokens with their numbers on one line, the middle of a long prompt left out."""
        named = [f"{i} {visible(p)}" for i, p in enumerate(self.pieces)]
        if len(named) > most:
            named = [*named[: most // 2], "…", *named[len(named) - most // 2 :]]
        return ", ".join(named)


class WordToken(NamedTuple):
    """The token that a word begins with.

    ``spaced``: the word after a blank. ``num_tokens``: of the whole word. ``main``: the form that
    fits the end of the prompt, which the controls look at.
    """

    word: str
    spaced: bool
    token_id: int
    text: str
    num_tokens: int
    main: bool


def visible(piece: str) -> str:
    """A token's text with blanks and line ends made visible."""
    shown = piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return shown or "∅"


def read_prompt(loaded: LoadedModel, text: str, *, chat: bool = False, room: int = 0) -> Prompt:
    """Tokenize a prompt as the model is to read it; an end token that is added is left out.

    Args:
        loaded: the model.
        text: the prompt. Control tokens spelt out in it are read as the characters that they are.
        chat: render it as a user's message with the generation prompt.
        room: tokens that must still fit into the model's context after it.

    Raises:
        BadInputError: no text, no chat template, or more than the context holds.
    """
    if not text.strip():
        raise BadInputError("`prompt` is empty; give text in quotes")
    tokenizer = loaded.tokenizer
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise BadInputError(
            f"`chat_template`: the tokenizer of {loaded.spec.model} has no chat template; leave it "
            "out"
        )
    document = Document("prompt", "prompt", text, "`prompt`")
    made = tokenize_document(
        tokenizer, document, 0, context_length=_LONGEST, chat_template=chat, count_template=False
    )
    if not made.sequences:
        raise BadInputError("the prompt has no token of its own; give more text")
    sequence = made.sequences[0]
    ids = [int(i) for i in sequence.token_ids]
    if not chat:
        last = max(i for i, counts in enumerate(sequence.counted) if counts)
        ids = ids[: last + 1]
    _check_room(loaded, len(ids), room)
    return Prompt(text, tuple(ids), tuple(pieces_of(tokenizer, ids)), chat)


def _check_room(loaded: LoadedModel, length: int, room: int) -> None:
    config: Any = loaded.model.config
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(inner, "max_position_embeddings", None)
    if isinstance(longest, int) and length + room > longest:
        more = f" and `generate` {room}" if room else ""
        raise BadInputError(
            f"a prompt of {length} tokens{more} does not fit this model's context of {longest}"
        )


def pieces_of(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The text that each token adds to the text before it.

    Decoded alone, a SentencePiece token loses the blank that it begins with; so each is decoded
    behind its predecessors. A token that is part of a character is shown as �.
    """
    line = [*before[len(before) - min(_REACH, len(before)) :], *ids]
    first = len(line) - len(ids)
    return [
        _added(tokenizer, line[max(0, i - _REACH) : i], line[i]) for i in range(first, len(line))
    ]


def _added(tokenizer: Any, before: list[int], token_id: int) -> str:
    old = _decode(tokenizer, before) if before else ""
    new = _decode(tokenizer, [*before, token_id])
    if new.startswith(old):
        return new[len(old) :]
    kept = old.rstrip("�")  # the character is whole now
    return new[len(kept) :] if new.startswith(kept) else _decode(tokenizer, [token_id])


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def word_tokens(tokenizer: Any, words: Iterable[str], prompt: Prompt) -> list[WordToken]:
    """The first token of each word, with and without a blank before it.

    Args:
        tokenizer: of the model.
        words: blanks around them do not count.
        prompt: what they would follow; its end decides which form is the main one.

    Raises:
        BadInputError: a word that the tokenizer has no token for.
    """
    after_blank = prompt.pieces[-1][-1:].isspace()
    found: list[WordToken] = []
    for word in dict.fromkeys(w.strip() for w in words if w.strip()):
        forms: dict[bool, list[int]] = {}
        for spaced in (True, False):
            ids = _ids_of(tokenizer, (" " if spaced else "") + word)
            if ids and ids[0] not in {f[0] for f in forms.values()}:
                forms[spaced] = ids
        if not forms:
            raise BadInputError(
                f"`words`: this tokenizer has no token for {word!r} (it reads it as unknown)"
            )
        main = (not after_blank) if (not after_blank) in forms else next(iter(forms))
        for spaced, ids in forms.items():
            (text,) = pieces_of(tokenizer, ids[:1], prompt.ids)
            found.append(WordToken(word, spaced, ids[0], text, len(ids), spaced == main))
    return found


def _ids_of(tokenizer: Any, text: str) -> list[int]:
    """Tokens of text that does not open a document: SentencePiece would put a blank there."""
    anchor, both = (
        [int(i) for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
        for t in ("\n", "\n" + text)
    )
    alone = both[: len(anchor)] != anchor
    if alone:
        both = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = both if alone else both[len(anchor) :]
    return [] if tokenizer.unk_token_id in ids else ids
