"""Text and tokens of a training run: tokenizer, token streams on disk, and the order of sequences.

Which tokens a step reads is a pure function of the streams, the seed and the step, so a resumed run
reads on exactly where it was. It knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moescope.corpus import Corpus, Document, open_corpus
from moescope.corpus.pieces import WHOLE, encoded_pieces, pieces
from moescope.errors import BadInputError
from moescope.files import are_intact, claim, is_intact, owned, replacing_folder
from moescope.models.source import load_tokenizer
from moescope.models.spec import ModelSpec
from moescope.progress import OnProgress, Progress, quiet
from moescope.training.recipe import Recipe, TokenizerRecipe

END_OF_TEXT = "<|endoftext|>"
_DOCUMENTS_AT_ONCE = 512

Ids = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Streams:
    """Token ids of each domain, one document after the other, each closed by the end-of-text.

    Attributes:
        train: ids by domain, mapped from disk.
        heldout: the same of the held-out documents.
        tokenizer: the fast tokenizer.
        fingerprint: sha256 of both corpora and the tokenizer.
    """

    train: dict[str, Ids]
    heldout: dict[str, Ids]
    tokenizer: Any
    fingerprint: str


def prepare_data(recipe: Recipe, folder: Path, on_progress: OnProgress = quiet) -> Streams:
    """Tokenizer and token streams, made in ``folder`` or read back from it.

    Raises:
        CorpusError: text that is missing or cannot be read.
        BadInputError: too little text for one sequence of a domain, or no end-of-text token.
    """
    with claim(folder, "training"):
        return _prepare(recipe, folder, on_progress)


def _prepare(recipe: Recipe, folder: Path, on_progress: OnProgress) -> Streams:
    train, heldout = _corpora(recipe)
    on_progress(Progress("reading the text"))
    fingerprints = [train.fingerprint(), heldout.fingerprint()]
    on_progress(Progress("making the tokenizer"))
    tokenizer = _tokenizer(recipe, train, fingerprints[0], folder / "tokenizer")
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for text in fingerprints:
        digest.update(text.encode())
    fingerprint = digest.hexdigest()
    index = folder / "tokens" / "index.json"
    known = _known_tokens(folder, index)
    if known.get("fingerprint") != fingerprint:
        on_progress(Progress("tokenizing"))
        with replacing_folder(index.parent) as fresh:
            known = {
                "fingerprint": fingerprint,
                "dtype": _dtype(tokenizer).name,
                "train": _encode(train, tokenizer, fresh, "train"),
                "heldout": _encode(heldout, tokenizer, fresh, "heldout"),
            }
            (fresh / index.name).write_text(json.dumps(known, indent=1), encoding="utf-8")
            _require_length(_mapped(fresh, known), recipe.data.context)  # else nothing stays
    sides = _mapped(index.parent, known)
    _require_length(sides, recipe.data.context)
    return Streams(sides["train"], sides["heldout"], tokenizer, fingerprint)


def _mapped(folder: Path, known: dict[str, Any]) -> dict[str, dict[str, Ids]]:
    """The streams of both sides by domain, on disk."""
    return {
        side: {
            domain: np.memmap(folder / file, np.dtype(known["dtype"]), "r")
            for domain, file in sorted(known[side].items())
        }
        for side in ("train", "heldout")
    }


def _known_tokens(folder: Path, index: Path) -> dict[str, Any]:
    """What was tokenized before, if every file of it is whole; else it is made again."""
    if not is_intact(folder, f"tokens/{index.name}"):
        return {}
    known: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
    files = [file for side in ("train", "heldout") for file in known[side].values()]
    return known if are_intact(folder, [f"tokens/{file}" for file in files]) else {}


def _corpora(recipe: Recipe) -> tuple[Corpus, Corpus]:
    data = recipe.data
    if data.heldout is not None:
        return open_corpus(data.train), open_corpus(data.heldout)
    shared = {"test_share": data.heldout_share, "seed": recipe.seed}
    return (
        open_corpus(data.train.model_copy(update={"split": "train", **shared})),
        open_corpus(data.train.model_copy(update={"split": "test", **shared})),
    )


def _tokenizer(recipe: Recipe, corpus: Corpus, text: str, target: Path) -> Any:
    """The tokenizer that is named, or the one trained on this text, made at most once."""
    from transformers import PreTrainedTokenizerFast

    given = recipe.tokenizer
    if given.path is not None:
        if not (Path(given.path) / "tokenizer.json").is_file():
            raise BadInputError(
                f"tokenizer.path {given.path}: no tokenizer.json there; give a folder saved with "
                "save_pretrained, or drop tokenizer.path to train one"
            )
        tokenizer = load_tokenizer(ModelSpec(given.path))
        if tokenizer.eos_token_id is None:
            raise BadInputError(
                f"tokenizer.path {given.path}: it has no end-of-text token to close documents with"
            )
        last = max(tokenizer.get_vocab().values())
        if last >= len(tokenizer):
            raise BadInputError(
                f"tokenizer.path {given.path}: its ids reach to {last}, but it has "
                f"{len(tokenizer)} tokens; to train, ids without gaps are needed"
            )
        return tokenizer
    longest = recipe.model.max_position_embeddings
    made_from = {**given.model_dump(exclude={"path"}), "longest": longest, "text": text}
    note = target / "made_from.json"
    files = [f"{target.name}/{file}" for file in owned(target)]
    whole = files and are_intact(target.parent, files)
    if not whole or json.loads(note.read_text(encoding="utf-8")) != made_from:
        fast = PreTrainedTokenizerFast(
            tokenizer_object=_train_bpe(given, corpus),
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            clean_up_tokenization_spaces=False,
            model_max_length=longest,
        )
        with replacing_folder(target) as fresh:
            fast.save_pretrained(fresh)
            (fresh / note.name).write_text(json.dumps(made_from, indent=1), encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(target)


def _train_bpe(given: TokenizerRecipe, corpus: Corpus) -> Any:
    """Byte-level BPE, digits one by one, on as many characters of each domain."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=given.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_balanced(corpus, given.characters_per_domain), trainer)
    return bpe


def _balanced(corpus: Iterable[Document], characters: int) -> Iterator[str]:
    read: dict[str, int] = {}
    for document in corpus:
        for piece in pieces(document.text):
            if read.get(document.domain, 0) >= characters:
                break
            read[document.domain] = read.get(document.domain, 0) + len(piece)
            yield piece


def _dtype(tokenizer: Any) -> np.dtype[Any]:
    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def _encode(corpus: Corpus, tokenizer: Any, folder: Path, side: str) -> dict[str, str]:
    """Write the ids of each domain to one flat file; only some documents are held at a time."""
    files: dict[str, str] = {}
    dtype, end = _dtype(tokenizer), tokenizer.eos_token_id
    documents = iter(corpus)
    while some := _some(documents):
        parts: dict[str, list[NDArray[Any]]] = {}
        for document, ids in zip(some, _ids_of(some, tokenizer.backend_tokenizer), strict=True):
            parts.setdefault(document.domain, []).append(np.append(ids, end).astype(dtype))
        for domain, arrays in parts.items():
            new = domain not in files
            name = files.setdefault(domain, f"{side}-{len(files):03d}.bin")
            with (folder / name).open("wb" if new else "ab") as out:
                np.concatenate(arrays).tofile(out)
    return files


def _some(documents: Iterator[Document]) -> list[Document]:
    """The next documents, fewer where they are long; none at the end."""
    some: list[Document] = []
    characters = 0
    while len(some) < _DOCUMENTS_AT_ONCE and characters < WHOLE:
        document = next(documents, None)
        if document is None:
            break
        some.append(document)
        characters += len(document.text)
    return some


def _ids_of(some: list[Document], backend: Any) -> Iterator[NDArray[np.int64]]:
    """Token ids of documents; a very long one is encoded in pieces."""

    def encode(part: str) -> tuple[Any, NDArray[np.int64]]:
        made = backend.encode(part, add_special_tokens=False)
        return made, np.asarray(made.offsets, np.int64).reshape(-1, 2)

    short = [document.text for document in some if len(document.text) <= WHOLE]
    encoded = iter(backend.encode_batch(short, add_special_tokens=False))
    for document in some:
        if len(document.text) <= WHOLE:
            yield np.asarray(next(encoded).ids, np.int64)
            continue
        made = encoded_pieces(document.text, encode)
        yield np.concatenate([np.asarray(p.made.ids, np.int64)[p.kept] for p in made])


def _require_length(sides: dict[str, dict[str, Ids]], context: int) -> None:
    for side, streams in sides.items():
        for domain, stream in streams.items():
            if len(stream) < 2 * context + 1:
                raise BadInputError(
                    f"the {side} text of domain {domain!r} has {len(stream)} tokens, but a "
                    f"sequence reads {context} and the next one, with room to start anywhere; "
                    f"give at least {2 * context + 1} tokens or a shorter data.context"
                )
    missing = sorted(set(sides["heldout"]) - set(sides["train"]))
    if missing:
        raise BadInputError(
            f"held-out domains without training text: {', '.join(missing)}; "
            f"training has {', '.join(sides['train'])}"
        )


class Sampler:
    """The sequences of a step, a pure function of (seed, step).

    ``equal``: every round deals each domain one sequence, in an order shuffled anew.
    ``proportional``: all sequences of all domains, shuffled, once per pass.
    A domain's sequences start at a new offset and in a new order in every pass over it.
    """

    def __init__(
        self,
        streams: dict[str, Ids],
        context: int,
        seed: int,
        mixture: Literal["equal", "proportional"] = "equal",
    ) -> None:
        self.domains = tuple(streams)
        self._streams = list(streams.values())
        self._context, self._seed = context, seed
        self._counts = [(len(s) - 1) // context - 1 for s in self._streams]
        self._mixture = mixture
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def sequence(self, number: int) -> tuple[int, Ids]:
        """The domain and the ``context + 1`` ids of the sequence with this number from 0."""
        domain, draw = self._deal(number)
        return domain, self._window(domain, draw)

    def step(self, step: int, micro_batches: int, sequences: int) -> NDArray[np.int64]:
        """Ids of a whole step: (micro-batch, sequence, context + 1)."""
        first = step * micro_batches * sequences
        rows = [self.sequence(first + i)[1] for i in range(micro_batches * sequences)]
        return np.stack(rows).astype(np.int64).reshape(micro_batches, sequences, -1)

    def _deal(self, number: int) -> tuple[int, int]:
        if self._mixture == "equal":
            dealt, place = divmod(number, len(self._streams))
            order = self._order(-1, dealt, len(self._streams))
            return int(order[place]), dealt
        total = sum(self._counts)
        epoch, place = divmod(number, total)
        at = int(self._order(-2, epoch, total)[place])
        bounds = np.cumsum(self._counts)
        domain = int(np.searchsorted(bounds, at, side="right"))
        return domain, epoch * self._counts[domain] + at - int(
            bounds[domain] - self._counts[domain]
        )

    def _window(self, domain: int, draw: int) -> Ids:
        epoch, place = divmod(draw, self._counts[domain])
        order = self._order(domain, epoch, self._counts[domain])
        offset = int(np.random.default_rng([self._seed, 7, domain, epoch]).integers(self._context))
        start = int(order[place]) * self._context + offset
        return self._streams[domain][start : start + self._context + 1]

    def _order(self, kind: int, epoch: int, count: int) -> NDArray[np.int64]:
        """A permutation; the newest few are kept (workers ask for neighbours)."""
        key = (kind, epoch)
        if key not in self._orders:
            for old in [k for k in self._orders if k[0] == kind and k[1] < epoch - 1]:
                del self._orders[old]
            rng = np.random.default_rng([self._seed, 3, kind + 2, epoch])
            self._orders[key] = rng.permutation(count)
        return self._orders[key]


def heldout_windows(stream: Ids, context: int, limit: int) -> NDArray[np.int64]:
    """The first tokens of a held-out stream, each predicted once.

    Returns:
        (windows, context + 1), at least one window, at most ``limit`` tokens unless one is longer.
    """
    count = max(1, min(limit, len(stream) - 1) // context)
    starts = np.arange(count) * context
    return np.stack([stream[s : s + context + 1] for s in starts]).astype(np.int64)


def unigram_losses(
    train: dict[str, Ids], windows: dict[str, NDArray[np.int64]], vocab_size: int
) -> dict[str, tuple[float, float]]:
    """Two baselines that know no context, in nats per token: what a model must beat by far.

    Returns:
        By domain: the loss of the token shares of all domains weighed the same, and of the shares
        of the right domain alone (harder to beat). Add-one smoothed, fit on training text.
    """
    shares = {
        name: (np.bincount(s, minlength=vocab_size) + 1.0) / (len(s) + vocab_size)
        for name, s in train.items()
    }
    pooled = np.mean(list(shares.values()), axis=0)
    result = {}
    for name, rows in windows.items():
        told = rows[:, 1:].ravel()
        result[name] = (
            float(-np.log(pooled[told]).mean()),
            float(-np.log(shares[name][told]).mean()),
        )
    return result
