"""Parts of speech of the tokens that an expert serves, where spaCy and a pipeline are installed.

Tokens of a model are not words: each sampled window's text is tagged as a whole, and a token takes
the tag of the word that most of its characters lie in. Without spaCy nothing is given, and the
reason is said. It needs a run's sample and its vocabulary, no model.
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moescope.errors import BadInputError, MissingExtraError
from moescope.metrics.intervals import ratio_interval
from moescope.metrics.view import Layer
from moescope.profiles.options import DEFAULT_PIPELINE
from moescope.profiles.sampled import SampledDocuments
from moescope.run.reader import Run, TokenRows

SPACE = "SPACE"
"""Tag of tokens that hold nothing but blanks and line ends."""

_UNNEEDED = ("ner", "parser", "lemmatizer", "senter")


class SpeechTags(NamedTuple):
    """Universal part-of-speech tags of sampled tokens.

    ``names``: the tags that occur; ``numbers`` (T,): that of each token, −1 where no word lies
    under it; ``pipeline``: what tagged them.
    """

    names: list[str]
    numbers: NDArray[np.int64]
    pipeline: str


class SpeechMix(NamedTuple):
    """Shares of tags by expert, arrays (E, P) but the text's own (P,).

    ``times``: sampled assignments; ``share``: of the expert's tagged assignments, each document
    weighted as its domain weighs in the run; ``low``, ``high``: 95 % interval over documents;
    ``text_share``: of all tagged tokens; ``lift`` = share / text_share.
    """

    names: list[str]
    times: NDArray[np.int64]
    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    text_share: NDArray[np.float64]
    lift: NDArray[np.float64]


def tag_tokens(run: Run, tokens: TokenRows, pipeline: str = DEFAULT_PIPELINE) -> SpeechTags:
    """Tag sampled tokens with a spaCy pipeline.

    Args:
        run: whose vocabulary spells the tokens.
        tokens: sampled tokens, those of one window one after the other.
        pipeline: name of an installed pipeline.

    Raises:
        MissingExtraError: spaCy is not installed.
        BadInputError: the pipeline is not installed, or does not tag parts of speech.
    """
    nlp = _load(pipeline)
    change = (np.diff(tokens.doc) != 0) | (np.diff(tokens.window) != 0) | (np.diff(tokens.pos) != 1)
    edges = [0, *(np.flatnonzero(change) + 1).tolist(), tokens.doc.size]
    spans = list(pairwise(edges))
    pieces = [[run.token_text(x) for x in tokens.token_id[a:b]] for a, b in spans]
    tags: list[str] = []
    texts = map("".join, pieces)
    for words, doc in zip(pieces, nlp.pipe(texts, batch_size=32), strict=True):
        tags += _tags_of(words, doc)
    if tags and not any(t not in ("", SPACE) for t in tags):
        raise BadInputError(
            f"the spaCy pipeline {pipeline!r} tags no parts of speech; name one that does, such as "
            f"{DEFAULT_PIPELINE}"
        )
    names = sorted(set(tags) - {""})
    index = {name: i for i, name in enumerate(names)} | {"": -1}
    meta = nlp.meta
    said = f"{meta.get('lang', '')}_{meta.get('name', pipeline)} {meta.get('version', '')}".strip()
    return SpeechTags(names, np.asarray([index[t] for t in tags], np.int64), said)


def _load(pipeline: str) -> Any:
    try:
        spacy = import_module("spacy")
    except ImportError as error:
        raise MissingExtraError("spacy", "pos", "the part-of-speech mix") from error
    try:
        nlp = spacy.load(pipeline)
    except OSError as error:
        raise BadInputError(
            f"the spaCy pipeline {pipeline!r} is not installed; run: python -m spacy download "
            f"{pipeline}"
        ) from error
    for name in _UNNEEDED:
        if name in nlp.pipe_names:
            nlp.disable_pipe(name)
    return nlp


def _tags_of(pieces: list[str], doc: Any) -> list[str]:
    """The tag of each piece: that of the word under most of its characters, '' where none is."""
    owner = np.full(sum(map(len, pieces)) + 1, -1, np.int64)
    words = list(doc)
    for i, word in enumerate(words):
        owner[word.idx : word.idx + len(word)] = i
    tags, start = [], 0
    for piece in pieces:
        stop = start + len(piece)
        solid = [c for c in range(start, stop) if not piece[c - start].isspace()]
        under = owner[solid][owner[solid] >= 0]
        if not solid:
            tags.append(SPACE if piece else "")
        elif not under.size:
            tags.append("")
        else:
            tags.append(str(words[int(np.bincount(under).argmax())].pos_))
        start = stop
    return tags


def speech_mix(tags: SpeechTags, sampled: SampledDocuments, layer: Layer) -> SpeechMix:
    """Which parts of speech each expert of a layer serves, beside those of the text."""
    ids_TK = sampled.tokens.ids[layer.layer_idx]
    parts, weight_N1 = len(tags.names), sampled.weight_N[:, None]
    known = tags.numbers >= 0

    def by_document(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        keys = sampled.doc_T[rows] * parts + tags.numbers[rows]
        table = np.bincount(keys, minlength=sampled.documents * parts).reshape(-1, parts)
        return table.astype(np.float64) * weight_N1

    text = by_document(np.flatnonzero(known)).sum(0)
    shape = (layer.num_experts, parts)
    count = np.zeros(shape, np.int64)
    share, low, high = (np.full(shape, np.nan) for _ in range(3))
    for e in range(layer.num_experts):
        rows = np.flatnonzero((ids_TK == e).any(1) & known)
        count[e] = np.bincount(tags.numbers[rows], minlength=parts)
        if rows.size:
            top = by_document(rows)
            share[e] = top.sum(0) / top.sum()
            low[e], high[e] = ratio_interval(top, top.sum(1, keepdims=True), sampled.domain_N)
    text_share = text / max(text.sum(), 1.0)
    return SpeechMix(tags.names, count, share, low, high, text_share, share / text_share)
