"""A corpus: documents with an id and a domain, streamed in one fixed order.

Here records become documents: the rules for ids, domains and empty text, what happens to a record
that cannot be used, and the fingerprint that says whether two corpora are the same. Knows nothing
of tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moescope.corpus.hub import HUB_PREFIX, is_saved_dataset, read_dataset
from moescope.corpus.messages import Message, as_string, read_messages
from moescope.corpus.readers import find_files, is_plain_text, read_file, stem_of
from moescope.corpus.records import MEND, Fields, Problem, Record, SourceFile, corpus_error
from moescope.corpus.seen import SeenIds
from moescope.corpus.spec import CorpusSpec
from moescope.corpus.split import in_shard, in_split, parse_shard
from moescope.errors import CorpusError
from moescope.words import counted, listing, near_names

RESERVED_DOMAIN = "all"
"""The name of the total over every domain in all tables."""

_FIRST_SOURCES = 5
_CHATS = "if it is a list of messages, say which turns count: `turns=all` or `turns=assistant`"


class Document(NamedTuple):
    """One text.

    Attributes:
        doc_id: unique in the corpus.
        domain: the label it is counted under.
        text: never empty, never only blanks. Of a chat, its messages in one string.
        source: the file and line (or row) it came from, for messages.
        messages: the turns of a chat; empty for a text.
    """

    doc_id: str
    domain: str
    text: str
    source: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """Records left out for one reason, and where the first few of them are."""

    reason: str
    count: int
    sources: tuple[str, ...]


class Fingerprint:
    """The sha256 of documents in their order: ids, domains and texts, each with its length.

    The lengths make it impossible for text to move from one field or document to the next
    without changing the result. Where the files lie does not enter it.

    Example:
        >>> one, other = Fingerprint(), Fingerprint()
        >>> one.update(Document("ab", "c", "d", "x:1"))
        >>> other.update(Document("a", "bc", "d", "x:1"))
        >>> one.hexdigest() == other.hexdigest()
        False
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def update(self, document: Document) -> None:
        """Add the next document."""
        for value in (document.doc_id, document.domain, document.text):
            data = value.encode("utf-8")
            self._hash.update(len(data).to_bytes(8, "big"))
            self._hash.update(data)

    def hexdigest(self) -> str:
        """Give the fingerprint of the documents so far, 64 hexadecimal digits."""
        return self._hash.hexdigest()


class Whole(NamedTuple):
    """What all shards of a corpus hold together: how many documents, and their fingerprint."""

    documents: int
    fingerprint: str


class Corpus:
    """Documents that can be read again and again, always in the same order.

    ``open_corpus`` makes one. Iterating streams from the files and holds one record at a time.

    Attributes:
        spec: what it was opened with.
        skipped: the records that the last full iteration left out, by reason; empty before one.
        whole: with ``spec.shard``, what the last full iteration read for all shards; the same in
            each, so that runs of shards can be told to be of one corpus.
    """

    def __init__(self, spec: CorpusSpec, files: list[SourceFile] | None) -> None:
        self.spec = spec
        self.skipped: list[Skipped] = []
        self.whole: Whole | None = None
        self._files = files
        self._fields = Fields(spec.text_field, spec.domain_field, spec.id_field)
        self._fingerprint: str | None = None

    def __iter__(self) -> Iterator[Document]:
        """Stream the documents.

        Raises:
            CorpusError: a record or file cannot be used, or no document is left in the end. A shard
                may be empty: with few documents some are.
        """
        spec = self.spec
        shard = None if spec.shard is None else parse_shard(spec.shard)
        fingerprint, whole, seen, skipped = Fingerprint(), Fingerprint(), SeenIds(), _Tally()
        total = kept = 0
        for read in self._read():
            item = read
            if isinstance(item, Document) and not seen.add(item.doc_id):
                item = self._repeated(item)
            if isinstance(item, Problem):
                if spec.on_error == "fail":
                    raise CorpusError(item.message())
                skipped.add(item)
                continue
            total += 1
            if not in_split(item.doc_id, spec.split, spec.test_share, spec.seed):
                continue
            kept += 1
            if shard is not None:
                whole.update(item)
            if in_shard(item.doc_id, shard):
                fingerprint.update(item)
                yield item
        self.skipped = skipped.rows()
        self._require_some(total, kept)
        self._fingerprint = fingerprint.hexdigest()
        self.whole = None if shard is None else Whole(kept, whole.hexdigest())

    def fingerprint(self) -> str:
        """Give the sha256 of the documents that an iteration yields, in order.

        Taken from the last full iteration, or else from one made now.

        Returns:
            64 hexadecimal digits; see ``Fingerprint``.
        """
        if self._fingerprint is None:
            for _ in self:
                pass
        assert self._fingerprint is not None
        return self._fingerprint

    def _read(self) -> Iterator[Document | Problem]:
        """Read everything, before ids are compared and the split is made."""
        spec = self.spec
        if spec.held:
            for number, values in enumerate(spec.held, 1):
                record = Record(values["id"], f"text {number}", values, tuple(values))
                yield self._document(record, None)
            return
        if self._files is None:
            for item in read_dataset(
                spec.path, self._fields, spec.dataset_split, spec.dataset_config
            ):
                yield self._document(item, None) if isinstance(item, Record) else item
            return
        for file in self._files:
            fallback = file.domain
            if fallback is None and is_plain_text(file):
                fallback = stem_of(file)
            empty = True
            for item in read_file(file, self._fields, spec.text_unit):
                empty = False
                yield self._document(item, fallback) if isinstance(item, Record) else item
            if empty:
                yield Problem(
                    "empty file", file.label, "no text in it", "put text there or " + MEND
                )

    def _document(self, record: Record, fallback: str | None) -> Document | Problem:
        """Apply the rules for text, domain and id to one record."""
        text = self._text(record)
        if isinstance(text, Problem):
            return text
        messages = () if isinstance(text, str) else text
        domain = self._domain(record, fallback)
        if isinstance(domain, Problem):
            return domain
        given = record.values.get(self._fields.id)
        if given is None or given == "":
            given = record.place
        if not isinstance(given, str | int | float):
            return Problem("id is not a string", record.source, f"got {_kind(given)}", MEND)
        text = text if isinstance(text, str) else as_string(text)
        document = Document(str(given), domain, text, record.source, messages)
        return _unencodable(document) or document

    def _text(self, record: Record) -> str | tuple[Message, ...] | Problem:
        field = self._fields.text
        if field not in record.values:
            return Problem(
                f"no field {field!r}",
                record.source,
                near_names(field, record.fields),
                "name it with `text_field`, or use `on_error=skip` to leave the record out",
            )
        text = record.values[field]
        if self.spec.turns is not None:
            try:
                return read_messages(text, self.spec.turns)
            except ValueError as error:
                return Problem("no chat", record.source, f"field {field!r}: {error}", MEND)
        if not isinstance(text, str):
            advice = _CHATS if isinstance(text, list) else MEND
            return Problem("text is not a string", record.source, f"got {_kind(text)}", advice)
        if not text.strip():
            return Problem("empty text", record.source, f"field {field!r}", MEND)
        return text

    def _domain(self, record: Record, fallback: str | None) -> str | Problem:
        value = record.values.get(self._fields.domain)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            return Problem("domain is not a string", record.source, f"got {_kind(value)}", MEND)
        domain = _label(value) or _label(self.spec.domain) or fallback
        if domain:
            _refuse_reserved(domain, record.source)
            return domain
        return Problem(
            f"no domain in field {self._fields.domain!r}",
            record.source,
            f"its fields: {listing(record.fields)}",
            "use `domain=LABEL` to give all records one, or `domain_field=NAME` to say which "
            "field holds it",
        )

    def _repeated(self, document: Document) -> Document | Problem:
        """Describe an id met twice; the place of the first is looked up by reading again."""
        where = ""
        if self.spec.on_error == "fail":
            same = (d for d in self._read() if isinstance(d, Document) and d[0] == document[0])
            first = next(same, document)
            if first.source == document.source:  # two ids of one hash: not a repetition
                return document
            where = f", first at {first.source}"
        return Problem(
            "duplicate id",
            document.source,
            f"{document.doc_id!r}{where}",
            "make ids unique, name another field with `id_field`, or use `on_error=skip`",
        )

    def _require_some(self, total: int, kept: int) -> None:
        if kept:
            return
        if total:
            raise corpus_error(
                f"{self.spec.path}: none of its {counted(total, 'document')} falls into the split "
                f"{self.spec.split!r}; change test_share ({self.spec.test_share}) or the seed"
            )
        reasons = [f"{s.count} × {s.reason}, first at {s.sources[0]}" for s in self.skipped[:5]]
        skipped = f" (skipped: {'; '.join(reasons)})" if reasons else ""
        raise corpus_error(
            f"{self.spec.path}: no document with text in it{skipped}; "
            f"check the text field ({self._fields.text!r})"
        )


def open_corpus(spec: CorpusSpec) -> Corpus:
    """Open a corpus; its files are listed now and read when it is iterated.

    A record's domain is its domain field; else ``spec.domain``; else, in a folder, the top
    sub-folder or the name of the file, and for a single text file its name. A document's id is
    the id field; else the file and the line (from 1), row or index (from 0).

    Args:
        spec: what to read and how.

    Returns:
        The documents, to be iterated as often as needed.

    Raises:
        CorpusError: the path does not exist, holds nothing that can be read, or a domain is
            called "all", which is the name of the total.
    """
    if spec.domain is not None:
        _refuse_reserved(_label(spec.domain), "`domain`")
    if spec.held:
        return Corpus(spec, None)
    if not spec.path.strip():
        raise CorpusError("the path of the corpus is empty; give a file, a folder or hf:owner/name")
    if spec.path.startswith(HUB_PREFIX) or is_saved_dataset(Path(spec.path)):
        return Corpus(spec, None)
    return Corpus(spec, find_files(spec.path))


class _Tally:
    """Counts problems by reason."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, tuple[str, ...]]] = {}

    def add(self, problem: Problem) -> None:
        count, sources = self._found.get(problem.reason, (0, ()))
        if count < _FIRST_SOURCES:
            sources = (*sources, problem.source)
        self._found[problem.reason] = (count + 1, sources)

    def rows(self) -> list[Skipped]:
        return [Skipped(reason, *found) for reason, found in self._found.items()]


def _label(value: str | None) -> str:
    """Make a domain of a cell: one line, single blanks."""
    return " ".join((value or "").split())


def _refuse_reserved(domain: str, source: str) -> None:
    if domain == RESERVED_DOMAIN:
        raise corpus_error(
            f"{source}: the domain {RESERVED_DOMAIN!r} is reserved: it is the name of the total "
            "over all domains; call it otherwise"
        )


def _unencodable(document: Document) -> Problem | None:
    """Find half of a surrogate pair, which JSON can spell but no encoding can hold."""
    for name, value in zip(("id", "domain", "text"), document[:3], strict=True):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"{name}: lone surrogate {value[error.start]!r} at character {error.start}"
            return Problem("not valid Unicode", document.source, found, MEND)
    return None


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__}"
