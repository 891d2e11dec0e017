"""Where a document's text lies inside its rendered chat.

Chat templates are programs: they may strip the text, write a system message before it, or repeat
its words. The span is therefore found by rendering a second message, of one known word, and
reading off what the template writes before and after it.
"""

from __future__ import annotations

from typing import Any

from moescope.corpus.documents import Document
from moescope.errors import CorpusError
from moescope.words import said_by

# Private-use characters: no template and hardly a text holds them, and no template strips them.
_PROBE = "\ue0f1moescope\ue0f2"


def render_chat(tokenizer: Any, document: Document) -> tuple[str, int, int]:
    """Render a document as one user's message with the generation prompt.

    Returns:
        The rendered chat, and the span [begin, end) of the document's text in it. A template that
        strips the text gives the span of what is left.

    Raises:
        CorpusError: the tokenizer has no chat template, or the template changes the text.
    """
    _require_template(tokenizer)
    rendered = _render(tokenizer, document.text, document.source)
    before, probe, after = _render(tokenizer, _PROBE, document.source).partition(_PROBE)
    if probe and rendered.startswith(before) and rendered.endswith(after):
        end = len(rendered) - len(after)
        if end >= len(before) and rendered[len(before) : end].strip() == document.text.strip():
            return rendered, len(before), end
    text = document.text if document.text in rendered else document.text.strip()
    if rendered.count(text) != 1:
        raise CorpusError(
            f"{document.source}: the chat template changes the text or repeats it, so its tokens "
            "cannot be told from the template's; trace the plain text instead"
        )
    begin = rendered.index(text)
    return rendered, begin, begin + len(text)


def render_messages(tokenizer: Any, document: Document) -> tuple[str, list[tuple[int, int]]]:
    """Render a document that is a chat, without a generation prompt.

    Returns:
        The rendered chat, and the span [begin, end) of each message's text in it. A template that
        strips a text gives the span of what is left.

    Raises:
        CorpusError: the tokenizer has no chat template, or the template changes a message.
    """
    _require_template(tokenizer)
    messages = [{"role": m.role, "content": m.text} for m in document.messages]
    probes = [_PROBE.replace("moescope", f"moescope{i}") for i in range(len(messages))]
    rendered = _apply(tokenizer, messages, document.source, prompt=False)
    frame = _apply(
        tokenizer,
        [{**m, "content": probe} for m, probe in zip(messages, probes, strict=True)],
        document.source,
        prompt=False,
    )
    spans, at = [], 0
    for number, (message, probe) in enumerate(zip(document.messages, probes, strict=True)):
        before, found, frame = frame.partition(probe)
        begin = at + len(before)
        after = frame.partition(probes[number + 1])[0] if number + 1 < len(probes) else frame
        text = next(
            (
                t
                for t in (message.text, message.text.strip())
                if rendered.startswith(t + after, begin)
            ),
            None,
        )
        if not found or text is None or not rendered.startswith(before, at):
            raise CorpusError(
                f"{document.source}: the chat template changes message {number} ({message.role}), "
                "so its tokens cannot be told from the template's; take the record out, or trace "
                "the rendered text (`chat_text`)"
            )
        at = begin + len(text)
        spans.append((begin, at))
    return rendered, spans


def _require_template(tokenizer: Any) -> None:
    if getattr(tokenizer, "chat_template", None) is None:
        raise CorpusError(
            "the tokenizer has no chat template, so a document cannot be rendered as a chat; "
            "trace the plain text (leave the chat template off) or use the model's chat version"
        )


def _render(tokenizer: Any, text: str, source: str) -> str:
    """One user's message, with the generation prompt."""
    return _apply(tokenizer, [{"role": "user", "content": text}], source, prompt=True)


def _apply(tokenizer: Any, messages: list[dict[str, str]], source: str, *, prompt: bool) -> str:
    """Run the template, whose errors may be of any kind."""
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # a template is a program and raises what it likes
        reason = said_by(error, 300)
        what, advice = ("a single user message", "trace the plain text instead")
        if not prompt:
            what, advice = ("these messages", "mend them, or take the record out")
        raise CorpusError(
            f"{source}: the chat template refuses {what} ({reason}); {advice}"
        ) from error
    return str(rendered)
