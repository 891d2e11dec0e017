"""Text in: documents with a domain, tokenized into windows, padded into batches.

Public names: ``open_corpus(CorpusSpec(path=...))`` streams ``Document``s; ``tokenize_document``
cuts one into windows; ``iter_pools`` and ``make_batches`` pack windows for the model. The room
knows nothing of models, traces or metrics, and never imports torch. Names are resolved when first
used.
"""

from typing import TYPE_CHECKING

from moescope.lazy import lazily

if TYPE_CHECKING:
    from moescope.corpus.batching import Batch, iter_batches, iter_pools, make_batches
    from moescope.corpus.control import (
        Marks,
        MarksWarning,
        control_ids,
        notes_on_marks,
        warn_of_marks,
    )
    from moescope.corpus.documents import (
        RESERVED_DOMAIN,
        Corpus,
        Document,
        Fingerprint,
        Skipped,
        Whole,
        open_corpus,
    )
    from moescope.corpus.messages import Message, Turns
    from moescope.corpus.readers import SUFFIXES
    from moescope.corpus.spec import IN_MEMORY, AnyText, CorpusSpec, as_lines, as_text
    from moescope.corpus.split import Shard, Split, in_shard, in_split, parse_shard
    from moescope.corpus.tokenize import (
        Sequence,
        TokenizedDocument,
        cut_alike,
        tokenize_corpus,
        tokenize_document,
    )

_WHERE = {
    "AnyText": "moescope.corpus.spec",
    "Batch": "moescope.corpus.batching",
    "Corpus": "moescope.corpus.documents",
    "CorpusSpec": "moescope.corpus.spec",
    "Document": "moescope.corpus.documents",
    "Fingerprint": "moescope.corpus.documents",
    "IN_MEMORY": "moescope.corpus.spec",
    "Marks": "moescope.corpus.control",
    "MarksWarning": "moescope.corpus.control",
    "Message": "moescope.corpus.messages",
    "RESERVED_DOMAIN": "moescope.corpus.documents",
    "SUFFIXES": "moescope.corpus.readers",
    "Sequence": "moescope.corpus.tokenize",
    "Shard": "moescope.corpus.split",
    "Skipped": "moescope.corpus.documents",
    "Split": "moescope.corpus.split",
    "TokenizedDocument": "moescope.corpus.tokenize",
    "Turns": "moescope.corpus.messages",
    "Whole": "moescope.corpus.documents",
    "as_lines": "moescope.corpus.spec",
    "as_text": "moescope.corpus.spec",
    "control_ids": "moescope.corpus.control",
    "cut_alike": "moescope.corpus.tokenize",
    "in_shard": "moescope.corpus.split",
    "in_split": "moescope.corpus.split",
    "iter_batches": "moescope.corpus.batching",
    "iter_pools": "moescope.corpus.batching",
    "make_batches": "moescope.corpus.batching",
    "notes_on_marks": "moescope.corpus.control",
    "open_corpus": "moescope.corpus.documents",
    "parse_shard": "moescope.corpus.split",
    "tokenize_corpus": "moescope.corpus.tokenize",
    "tokenize_document": "moescope.corpus.tokenize",
    "warn_of_marks": "moescope.corpus.control",
}

__all__ = [
    "IN_MEMORY",
    "RESERVED_DOMAIN",
    "SUFFIXES",
    "AnyText",
    "Batch",
    "Corpus",
    "CorpusSpec",
    "Document",
    "Fingerprint",
    "Marks",
    "MarksWarning",
    "Message",
    "Sequence",
    "Shard",
    "Skipped",
    "Split",
    "TokenizedDocument",
    "Turns",
    "Whole",
    "as_lines",
    "as_text",
    "control_ids",
    "cut_alike",
    "in_shard",
    "in_split",
    "iter_batches",
    "iter_pools",
    "make_batches",
    "notes_on_marks",
    "open_corpus",
    "parse_shard",
    "tokenize_corpus",
    "tokenize_document",
    "warn_of_marks",
]

__getattr__ = lazily(__name__, _WHERE)
