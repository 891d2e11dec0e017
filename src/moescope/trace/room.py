"""What the sums of a text take in memory, at least, estimated before anything is run.

Counts by token id can go to disk (`RunState.bound`); what is kept by document, by domain and of the
sample cannot. It knows shapes and the lengths of texts, no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from moescope.errors import BadInputError
from moescope.memory import readable
from moescope.run.aggregates import AggregateShape
from moescope.run.options import TraceOptions
from moescope.words import counted

_CHARACTERS_PER_TOKEN = 5
"""More than most text has, so that what is estimated is what it takes at least."""


def document_bytes(shape: AggregateShape) -> int:
    """Bytes of the gate mass of one document, which are held while its pool is run."""
    return 8 * len(shape.layers) * shape.max_experts


def sums_need(
    shape: AggregateShape,
    options: TraceOptions,
    documents: Mapping[str, int],
    characters: Mapping[str, int],
) -> int:
    """Bytes that sums and sample take at least; documents and characters are given by domain."""
    layers, cells = len(shape.layers), len(shape.layers) * shape.max_experts
    clusters = sum(
        min(_read(n, characters[name], options.limit), shape.max_clusters)
        for name, n in documents.items()
    )
    by_cluster = clusters * (cells + 7 * layers + 2)
    by_domain = len(documents) * (4 * cells + 3 * 64 * layers + 4)
    pairs = 2 * cells * shape.max_experts
    sampled = 0
    if options.keep != "aggregates":
        most = min(options.sample_tokens, options.limit or options.sample_tokens)
        tokens = sum(min(most, n // _CHARACTERS_PER_TOKEN) for n in characters.values())
        sampled = tokens * (52 + sum(4 * k + 8 for k in shape.top_k))
    return 8 * (by_cluster + by_domain + pairs) + sampled


def _read(documents: int, characters: int, limit: int | None) -> int:
    """Of so many documents of a domain those, at least, that are read before a limit ends it."""
    if limit is None:
        return documents
    return min(documents, limit * documents // max(1, characters) + 1)


def require_room(
    room: int,
    shape: AggregateShape,
    options: TraceOptions,
    documents: Mapping[str, int],
    characters: Mapping[str, int],
) -> None:
    """Refuse a text whose sums do not fit into what a promise of memory leaves for them.

    Raises:
        BadInputError: they do not.
    """
    need = sums_need(shape, options, documents, characters)
    if need > room:
        raise BadInputError(
            f"`memory` leaves {readable(room)} for the sums of a run, and those of this text need "
            f"{readable(need)} or more ({counted(len(documents), 'domain')}, "
            f"{counted(sum(documents.values()), 'document')}, "
            f"{counted(len(shape.layers), 'layer')}); give "
            f"{readable(need - room)} more, fewer domains or `layers`, or `keep=aggregates`, which "
            "keeps no sample of tokens"
        )
