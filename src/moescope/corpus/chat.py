"""Where a document's text lies inside its rendered chat.

Chat templates are programs: they may strip the text, write a system message before it, or repeat
its words. The span is therefore found by rendering a second message, of one known word, and
reading off what the template writes before and after it.
"""

from __future__ import annotations

from typing import Any

from moescope.corpus.documents import Document
from moescope.errors import CorpusError

__all__ = ["render_chat"]

# Private-use characters: no template and hardly a text holds them, and no template strips them.
_PROBE = "\ue0f1moescope\ue0f2"


def render_chat(tokenizer: Any, document: Document) -> tuple[str, int, int]:
    """Render a document as one user's message with the generation prompt.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        document: the document.

    Returns:
        The rendered chat, and the span [begin, end) of the document's text in it. A template that
        strips the text gives the span of what is left.

    Raises:
        CorpusError: the tokenizer has no chat template, or the template changes the text.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise CorpusError(
            "the tokenizer has no chat template, so a document cannot be rendered as a chat; "
            "trace the plain text (leave the chat template off) or use the model's chat version"
        )
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


def _render(tokenizer: Any, text: str, source: str) -> str:
    """Run the template, whose errors may be of any kind, on one message."""
    messages = [{"role": "user", "content": text}]
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template is a program and raises what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(
            f"{source}: the chat template refuses a single user message ({reason}); "
            "trace the plain text instead"
        ) from error
    return str(rendered)
