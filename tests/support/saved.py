"""Tiny models saved to disk with a tokenizer, as a user would have them; and tiny corpora."""

import json
import random
from pathlib import Path

from tests.support.multimodal import any_model
from tests.support.tiny import VOCAB_SIZE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = [
    "the",
    "plan",
    "covers",
    "support",
    "for",
    "daily",
    "living",
    "and",
    "the",
    "court",
    "may",
    "review",
    "a",
    "decision",
    "when",
    "tokens",
    "route",
    "to",
    "experts",
    "in",
    "layers",
    "while",
    "water",
    "boils",
    "for",
    "tea",
    "near",
    "a",
    "green",
    "river",
    "under",
    "old",
    "stars",
    "def",
    "return",
    "class",
    "import",
    "value",
    "list",
    "sum",
    "loop",
    "if",
    "else",
    "error",
    "theorem",
    "proof",
    "lemma",
    "axiom",
    "number",
]


def tiny_tokenizer(*, bos: bool = True, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """``extra``: control tokens that it holds, marked as special, and does not name."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save_tiny(model_type: str, folder: Path, seed: int = 0, **overrides: object) -> Path:
    model = any_model(model_type, seed=seed, **overrides)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_corpus(
    path: Path, documents_per_domain: int = 6, domains: int = 3, seed: int = 0, words: int = 30
) -> Path:
    """A jsonl corpus whose domains draw the same words with different odds."""
    rng = random.Random(seed)
    lines = []
    for d in range(domains):
        odds = [1.0 + 4.0 * ((i + d) % domains == 0) for i in range(len(WORDS))]
        for n in range(documents_per_domain):
            length = rng.randint(3, 2 * words)
            text = " ".join(rng.choices(WORDS, odds, k=length))
            lines.append({"id": f"d{d}-{n}", "domain": f"domain{d}", "text": text})
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path
