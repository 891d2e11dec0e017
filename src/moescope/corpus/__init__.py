"""Text in: documents with a domain, tokenized into windows, padded into batches.

Public names: ``open_corpus(CorpusSpec(path=...))`` streams ``Document``s; ``tokenize_document``
cuts one into windows; ``iter_pools`` and ``make_batches`` pack windows for the model. The room
knows nothing of models, traces or metrics, and never imports torch.
"""

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
