"""Tiny tokenizers, trained in a moment, and shorthands to write corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from moescope.corpus import CorpusSpec, Document, open_corpus

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "experts route tokens and tokens find experts",
    "def add(a, b):\n    return a + b\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich",
]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(single: str | None, chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; ``single`` is the post-processor's template, such as "<s> $A"."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    return _wrap(backend, single, chat, SPECIAL[2:])


def unigram(single: str | None) -> PreTrainedTokenizerFast:
    """Train a Unigram model, whose vocabulary holds "</s>" as an ordinary piece."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<s>", "</s>", "<unk>"],
        unk_token="<unk>",
        initial_alphabet=list("</s>"),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    return _wrap(backend, single, None, [], unk_token="<unk>")


def sentence_piece_bpe(single: str | None, chat: str | None) -> PreTrainedTokenizerFast:
    """Train a BPE over blanks written as "▁", with bytes for unknown characters."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=list("</s>|im_end"),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    return _wrap(backend, single, chat, SPECIAL[2:], unk_token="<unk>")


def _wrap(
    backend: Tokenizer, single: str | None, chat: str | None, extra: list[str], **names: str
) -> PreTrainedTokenizerFast:
    if single is not None:
        used = [(t, backend.token_to_id(t)) for t in ("<s>", "</s>") if t in single.split()]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=extra,
        **names,
    )
    tokenizer.chat_template = chat
    return tokenizer


def document(text: str, doc_id: str = "doc", domain: str = "web") -> Document:
    return Document(doc_id, domain, text, f"{doc_id}:1")


def read(path: Path | str, **options: Any) -> list[Document]:
    return list(open_corpus(CorpusSpec(path=str(path), **options)))


def texts(path: Path | str, **options: Any) -> list[str]:
    return [d.text for d in read(path, **options)]
