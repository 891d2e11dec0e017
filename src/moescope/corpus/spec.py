"""What people give for text: a path, a name on the hub, or texts that are in memory.

`as_text` is the one way in for every public function that takes text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
)

from moescope.corpus.messages import Turns
from moescope.corpus.split import Split, parse_shard
from moescope.corpus.text_files import TextUnit
from moescope.errors import BadInputError, CorpusError
from moescope.given import Seed
from moescope.words import listing, near_names

IN_MEMORY = "texts in memory"
"""Stands for the path of texts that were given themselves."""

HUB_PREFIX = "hf:"
DEMO_PREFIX = "demo:"

_DEMO = Path(__file__).parents[1] / "demo"
SHIPPED = {"demo:queries": _DEMO / "queries.jsonl", "demo:samples": _DEMO / "samples"}
"""The corpora that come with moescope, under the names that stand for their files."""

_LABEL = "text"
"""Domain of a text in memory that names none."""


class CorpusSpec(BaseModel):
    """What to read and how. Unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    path: Annotated[str, BeforeValidator(lambda p: os.fspath(p) if isinstance(p, Path) else p)]
    """A file, a folder (one file or one sub-folder per domain), ``hf:owner/name``, the folder of
    a dataset saved with ``save_to_disk``, or ``demo:queries`` or ``demo:samples``."""
    text_field: str = "text"
    """The field or column that holds the text."""
    domain_field: str = "domain"
    """The field or column that holds the domain."""
    id_field: str = "id"
    """The field or column that holds the id; without it, file and line name the document."""
    domain: str | None = None
    """The domain of every record that names none itself."""
    on_error: Literal["fail", "skip"] = "fail"
    """Stop at the first record that cannot be used, or leave it out and count it."""
    split: Split | None = None
    """Read only the documents that a hash of their id puts into "train" or "test"."""
    test_share: float = Field(default=0.2, gt=0.0, lt=1.0)
    """The share of documents in "test"."""
    seed: Seed = 0
    """Another seed gives another split."""
    shard: Annotated[str, AfterValidator(lambda text: str(parse_shard(text)))] | None = None
    """Read only part i of n, written ``i/n``, that a hash of the document id decides."""
    text_unit: TextUnit = "paragraph"
    """What one document of a .txt or .md file is."""
    turns: Turns | None = None
    """The text field holds chats, lists of messages; which turns count: "all" (system messages
    too), or "assistant". The others are context: the model reads them, they enter no figure."""
    dataset_split: str = "train"
    """The split of a Hugging Face dataset."""
    dataset_config: str | None = None
    """The configuration of a Hugging Face dataset that has several."""

    _held: tuple[dict[str, Any], ...] = PrivateAttr(default=())

    @property
    def held(self) -> tuple[dict[str, Any], ...]:
        """Texts in memory, as records; empty where they are read from ``path``."""
        return self._held

    @property
    def reads(self) -> list[str]:
        """The paths that are read."""
        return [] if self.held else [self.place]

    @property
    def place(self) -> str:
        """The path; of a shipped corpus, where it lies here.

        Raises:
            CorpusError: no corpus of that name is shipped.
        """
        if not self.path.startswith(DEMO_PREFIX):
            return self.path
        if self.path not in SHIPPED:
            raise CorpusError(
                f"{self.path}: no such shipped text; {near_names(self.path, SHIPPED)}"
            )
        return str(SHIPPED[self.path])

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """What differs from the defaults."""
        given = [(k, getattr(self, k)) for k, field in type(self).model_fields.items()
                 if getattr(self, k) != field.default]  # fmt: skip
        return [*given, ("texts", len(self.held))] if self.held else list(given)


def named(path: str) -> bool:
    """Is it the name of a corpus rather than a path?"""
    return path.startswith((HUB_PREFIX, DEMO_PREFIX))


AnyText = str | os.PathLike[str] | CorpusSpec | Sequence[str | Mapping[str, Any]]
"""What stands for text: a file, a folder, ``hf:owner/name``, ``demo:queries``, ``demo:samples``, a
`CorpusSpec`, or a list of texts."""


def as_text(given: AnyText) -> CorpusSpec:
    """The corpus that is meant.

    Args:
        given: a file, a folder, ``hf:owner/name`` or a shipped text (``demo:queries``,
            ``demo:samples``); a `CorpusSpec`, which says more; or a list of
            strings, or of dicts with ``text`` and, where they have one, ``domain`` and ``id``. A
            text without a domain is of the domain ``text``, and one without an id is called after
            its place in the list.

    Raises:
        BadInputError: it is something else, or a text instead of a list of them.

    Example:
        >>> as_text(["one text", {"text": "another", "domain": "legal"}])
        CorpusSpec(path='texts in memory', texts=2)
    """
    if isinstance(given, CorpusSpec):
        return given
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        if len(path.split()) > 3 and not os.path.lexists(path):
            raise BadInputError(
                f"{path[:60]!r} is not a file or folder here; if it is the text itself, give "
                "it in a list: [text]"
            )
        return CorpusSpec(path=path)
    listed: Any = given
    if not isinstance(listed, Sequence) or isinstance(listed, bytes | bytearray):
        raise BadInputError(
            "texts are the path of a file or folder, a CorpusSpec, or a list of strings or of "
            f"dicts with a text; got {type(given).__name__}"
        )
    if not listed:
        raise BadInputError("the list of texts is empty; give at least one")
    made = CorpusSpec(path=IN_MEMORY)
    made._held = tuple(_record(value, number) for number, value in enumerate(listed, 1))
    return made


def _record(value: Any, number: int) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, Mapping) or "text" not in value:
        got = type(value).__name__
        if isinstance(value, Mapping):
            got = f"a dict without 'text' ({listing(value)})"
        raise BadInputError(
            f"text {number} of the list: expected a string, or a dict with 'text' and, where there "
            f"are any, 'domain' and 'id'; got {got}"
        )
    usual = {"id": f"text:{number}", "domain": _LABEL, "text": ""}
    return {k: default if value.get(k) in (None, "") else value[k] for k, default in usual.items()}


def as_lines(spec: CorpusSpec) -> bytes:
    """Texts in memory as a file of JSON lines, which gives the same documents."""
    lines = [json.dumps(record, default=lambda _: None) for record in spec.held]
    return "".join(f"{line}\n" for line in lines).encode()
