"""``manifest.json``: what was run, how far it came, and which files are whole.

Every section is checked when it is read: names, types, ranges, and that the lists of layers belong
together. What the arrays of a run must look like to fit it is for the reader of the arrays.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict

from moescope.errors import RunError
from moescope.files import claim, plain_name, write_bytes
from moescope.given import MOST_EXPERTS, first_problem
from moescope.words import counted

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TEXTS = "texts.jsonl"
"""The documents of a run that was made of texts in memory, so that they can be read again."""
_LARGEST = 1 << 28
"""Bytes; a million shards are 163 million."""

_strict = ConfigDict(extra="forbid")


_Name = Annotated[str, AfterValidator(plain_name)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Positive = Annotated[int, Field(ge=1, lt=2**63)]
_Layer = Annotated[int, Field(ge=0, lt=100_000)]
_Size = Annotated[int, Field(ge=1, le=MOST_EXPERTS)]


class Stored(BaseModel):
    """A file that the manifest vouches for."""

    model_config = _strict
    file: _Name
    sha256: _Sha256
    tokens: _Count = 0
    documents: _Count = 0


class MergedPart(BaseModel):
    """One of the runs that a merged run was joined from."""

    model_config = _strict
    shard: str | None
    corpus: str
    fingerprint: str
    documents: _Count
    tokens: _Count
    created: str
    state_sha256: _Sha256


class Merged(BaseModel):
    """What a merged run was joined from, in the order in which sums were added.

    ``shards``: into how many the corpus was cut; None when the parts are runs of different texts.
    ``missing``: shards that were not there. ``each_part``: settings that every part applied by
    itself: with n parts up to n times as many tokens as a single run would take.
    """

    model_config = _strict
    shards: _Positive | None
    missing: list[_Positive] = Field(default_factory=list)
    each_part: dict[str, _Count | None] = Field(default_factory=dict)
    parts: list[MergedPart]


@with_config(_strict)
class ModelFacts(TypedDict):
    """The model. Of an imported run weights and precision are the engine's, and None."""

    name: str
    revision: str | None
    model_type: str
    config_sha256: _Sha256
    tokenizer_sha256: str | None
    weights_sha256: str | None
    dtype: str | None
    stored_dtype: str | None
    device: str | None
    decoder_layers: _Positive
    moe_layers: list[_Layer]
    layers: Annotated[list[_Layer], Field(min_length=1)]
    num_experts: list[_Size]
    top_k: list[_Size]
    scoring: list[str]
    normalized: list[bool]
    selection_bias: list[bool]
    total_params: _Count
    active_params: _Count


@with_config(_strict)
class CorpusFacts(TypedDict):
    """The corpus: its `CorpusSpec`; of an import or a merge only what is known of it."""

    path: str
    text_field: NotRequired[str]
    domain_field: NotRequired[str]
    id_field: NotRequired[str]
    domain: NotRequired[str | None]
    on_error: NotRequired[Literal["fail", "skip"]]
    split: NotRequired[Literal["train", "test"] | None]
    test_share: NotRequired[float]
    seed: NotRequired[int]
    shard: NotRequired[str | None]
    text_unit: NotRequired[str]
    turns: NotRequired[Literal["all", "assistant"] | None]
    dataset_split: NotRequired[str]
    dataset_config: NotRequired[str | None]


@with_config(_strict)
class OptionFacts(TypedDict):
    """The options that decide results: `TraceOptions.identity()`."""

    layers: list[_Layer] | None
    keep: Literal["aggregates", "sample", "all"]
    limit: _Positive | None
    context: _Positive | None
    batch_tokens: _Positive | None
    pool_tokens: _Positive | None
    predictions: bool
    generate: _Count
    chat_template: bool
    count_template: bool
    chat_text: NotRequired[bool]
    match_length: NotRequired[int]
    seed: _Count
    sample_tokens: _Positive
    token_budget: _Positive


@with_config(_strict)
class CapturedFile(TypedDict):
    """A file that a run was imported from."""

    file: str
    bytes: _Count
    sha256: str


@with_config(_strict)
class Origin(TypedDict, total=False):
    """Where an imported run comes from; empty for a trace.

    ``absent``: what the run does not know, each with the reason.
    """

    engine: str
    engine_version: str | None
    files: list[CapturedFile]
    domain: str | None
    ordered: bool
    on_error: Literal["fail", "skip"]
    absent: dict[Literal["weights", "order", "tokens", "loss", "predicted"], str]
    notes: list[str]


@with_config(_strict)
class Progressed(TypedDict, total=False):
    """How far a run is; empty before its first commit.

    ``skipped`` and ``requests`` are of imports only. ``spelt_out`` and ``unknown_marks``: documents
    that hold each mark of a rendered chat (`moescope.corpus.Marks`); left out where none does.
    """

    documents_read: _Count
    tokens: _Count
    fingerprint: str
    left_out: dict[str, _Count]
    domain_tokens: dict[str, _Count]
    skipped: dict[str, _Count]
    requests: dict[str, _Count]
    spelt_out: dict[str, _Count]
    unknown_marks: dict[str, _Count]


@with_config(_strict)
class WholeCorpus(TypedDict):
    """The corpus that a shard was cut from."""

    documents: _Count
    fingerprint: str


@with_config(_strict)
class Coverage(TypedDict, total=False):
    """What the routers saw; empty until the run is complete."""

    routers_expected: _Count
    routers_seen: _Count
    tokens_per_router: _Count
    tokens_by_phase: dict[str, _Count]
    experts_never_chosen: dict[str, list[_Count]]
    skipped_records: dict[str, _Count]
    corpus: WholeCorpus
    shards_missing: list[_Positive]


PART_NAME = re.compile(
    r"documents/\d{5,9}\.parquet|shards/\d{5,9}\.parquet|aggregates/state-\d{9,18}\.safetensors"
)
"""Names of the files that a run is made of while it grows."""


class Manifest(BaseModel):
    """``manifest.json``; ``model``, ``corpus``, ``options`` and ``source`` identify the run.

    ``--resume`` refuses others.
    """

    model_config = _strict
    schema_version: Literal[1] = 1
    status: Literal["running", "complete"] = "running"
    created: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    model: ModelFacts
    corpus: CorpusFacts
    options: OptionFacts
    source: Origin = Field(default_factory=lambda: Origin())
    domains: list[str] = Field(default_factory=list)
    progress: Progressed = Field(default_factory=lambda: Progressed())
    coverage: Coverage = Field(default_factory=lambda: Coverage())
    merged: Merged | None = None
    state: Stored | None = None
    documents: list[Stored] = Field(default_factory=list)
    shards: list[Stored] = Field(default_factory=list)
    sample: Stored | None = None
    vocabulary: Stored | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Manifest:
        model, layers = self.model, self.model["layers"]
        for name in ("num_experts", "top_k"):
            if len(model[name]) != len(layers):
                raise ValueError(
                    f"model.{name} has {len(model[name])} entries for "
                    f"{counted(len(layers), 'layer')}"
                )
        if sorted(set(layers)) != layers or not set(layers) <= set(model["moe_layers"]):
            raise ValueError("model.layers are not MoE layers of the model in ascending order")
        if any(k > e for k, e in zip(model["top_k"], model["num_experts"], strict=True)):
            raise ValueError("model.top_k is more than model.num_experts")
        if len(set(self.domains)) != len(self.domains):
            raise ValueError("domains names one twice")
        needed = {"documents_read", "tokens", "fingerprint", "left_out", "domain_tokens"}
        needed |= {"skipped", "requests"} if self.source else set()
        if self.state is not None and (lacking := sorted(needed - self.progress.keys())):
            raise ValueError(f"progress lacks {', '.join(lacking)}")
        stored = [self.state, *self.documents, *self.shards]
        odd = [s.file for s in stored if s and not PART_NAME.fullmatch(s.file)]
        if set(odd) - {"documents.parquet"}:
            raise ValueError(f"{odd[0]!r} is not a name of a part of a run")
        if self.status == "complete":
            if self.state is None or self.vocabulary is None or len(self.documents) != 1:
                raise ValueError("a complete run has a state, a vocabulary and one documents file")
            if "skipped_records" not in self.coverage:
                raise ValueError("coverage lacks skipped_records")
        return self


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically: the commit of everything that it names."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    write_bytes(run / MANIFEST, text.encode("utf-8", "backslashreplace"))


def read_manifest(run: Path) -> Manifest:
    """Read and validate ``manifest.json``.

    Raises:
        RunError: no run there, an unreadable manifest, or one of another schema version.
    """
    path = run / MANIFEST
    if not path.is_file():
        raise RunError(
            f"{run} is not a run: it has no {MANIFEST}; make one with: moescope analyze MODEL "
            f"CORPUS -o {run}"
        )
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise RunError(
                f"{path}: schema version {str(version)[:40]}, expected {SCHEMA_VERSION}; read it "
                "with the moescope that wrote it, or trace again"
            )
        return Manifest.model_validate_json(text, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged ({_first(error)}); restore it, or trace again into a new folder"
        ) from error


def _first(error: Exception) -> str:
    """The first problem: where, and what."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def has_progress(run: Path) -> bool:
    """Was anything committed? A run that ended before that begins anew."""
    return (run / MANIFEST).is_file() and read_manifest(run).state is not None


def claim_run(
    run: str | Path, *, reads: Sequence[str | Path] = (), wait: float = 2.0
) -> AbstractContextManager[Path]:
    """Hold the folder of a run; see `moescope.files.claim`.

    A run without a ledger is taken for what its manifest names.
    """
    return claim(run, "run", reads=reads, wait=wait, adopt=_written_names)


def _written_names(run: Path) -> list[str]:
    manifest = read_manifest(run)
    single = [s for s in (manifest.state, manifest.sample, manifest.vocabulary) if s is not None]
    named = [s.file for s in (*single, *manifest.documents, *manifest.shards)]
    return [MANIFEST, *named, *_tables_of(run)]


def _tables_of(run: Path) -> list[str]:
    """Tables that were kept there; each says in its metadata who made it."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted((run / "tables").glob("*.parquet")):
        with contextlib.suppress(OSError, ValueError):
            if not path.is_symlink() and b"moescope" in (pq.read_schema(path).metadata or {}):
                found.append(f"tables/{path.name}")
    return [] if (run / "tables").is_symlink() else found
