"""Chats as data: a list of messages, each with a role and a text, and which of them count."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from moescope.words import counted

Turns = Literal["all", "assistant"]

_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Other names of roles, as data sets of conversations have them."""


class Message(NamedTuple):
    """One turn of a chat.

    Attributes:
        role: ``system``, ``user``, ``assistant``, or what else the template knows.
        text: what was said.
        counted: its tokens count; those of the others are context.
    """

    role: str
    text: str
    counted: bool


def read_messages(value: Any, turns: Turns) -> tuple[Message, ...]:
    """The messages of a field: objects with role and content, or with from and value.

    Raises:
        ValueError: it is not a list of messages with a text each, or no turn counts.
    """
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise ValueError(f"expected a list of messages, got {kind}")
    made = tuple(_message(m, n, turns) for n, m in enumerate(value))
    if not any(m.counted and m.text.strip() for m in made):
        raise ValueError(
            f"of its {counted(len(made), 'message')} none counts, by the roles that they have"
        )
    return made


def as_string(messages: tuple[Message, ...]) -> str:
    """Roles and texts in one string, the same for the same chat: what a fingerprint is taken of."""
    return json.dumps([[m.role, m.text] for m in messages], ensure_ascii=False)


def _message(value: Any, number: int, turns: Turns) -> Message:
    for role_key, text_key in _KEYS:
        if isinstance(value, Mapping) and value.get(role_key) is not None:
            role, text = value[role_key], value.get(text_key)
            if not isinstance(role, str) or not isinstance(text, str):
                odd, got = (role_key, role) if not isinstance(role, str) else (text_key, text)
                raise ValueError(
                    f"message {number}: expected a text in {odd!r}, got "
                    f"{'null' if got is None else type(got).__name__}"
                )
            role = _ROLES.get(role, role)
            return Message(role, text, turns == "all" or role == "assistant")
    raise ValueError(f"message {number}: expected an object with role and content")
