"""What several verbs can be told, in mixins; the settings of a verb are some of them and its own.

Defaults, words and bounds come from the classes of the library that use them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from moescope.cli.verb import Argument, Flag, Settings, of
from moescope.corpus.messages import Turns
from moescope.corpus.spec import CorpusSpec
from moescope.corpus.split import Split
from moescope.corpus.text_files import TextUnit
from moescope.errors import BadInputError
from moescope.given import Seed, whole_number
from moescope.launch import LaunchOptions
from moescope.models import ModelSpec
from moescope.models.spec import DtypeName, EngineName, local_folder
from moescope.progress import OnProgress, Progress, quiet
from moescope.run.options import TraceOptions
from moescope.words import brief, near_names

if TYPE_CHECKING:
    from moescope.models import LoadedModel
    from moescope.models.outline import Check, Outline

Format = Literal["table", "csv", "json"]
TableOrJson = Literal["table", "json"]

_MOST_LAYERS = 10_000
"""Ranges are expanded before a model is at hand that would say which layers it has."""


def parse_layers(text: str) -> tuple[int, ...]:
    """``0,3,8-11`` → (0, 3, 8, 9, 10, 11).

    Raises:
        BadInputError: another form.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        first_text, _, last_text = part.partition("-")
        first = whole_number(first_text)
        last = whole_number(last_text) if "-" in part else first
        if first is None or last is None:
            raise BadInputError(
                f"`layers` {text!r} is not of the form 0,3,8-11, with numbers of at most 9 digits"
            )
        if last < first:
            raise BadInputError(f"`layers` {text!r}: the range {part.strip()} runs backwards")
        if last >= _MOST_LAYERS:
            raise BadInputError(f"`layers` {text!r}: no model has a layer {last}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def _layers(given: Any) -> Any:
    """A file may write one layer as a number, or several as a list."""
    return parse_layers(str(given)) if isinstance(given, str | int) else given


Layers = Annotated[tuple[int, ...] | None, BeforeValidator(_layers), Flag(kind=str)]
"""MoE layers, typed as ``0,3,8-11``."""


def _experts(given: Any) -> Any:
    """One text with commas, or a list of them."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) for t in texts):
        return given
    return tuple(name for text in texts for name in text.replace(",", " ").split())


Experts = Annotated[tuple[str, ...], BeforeValidator(_experts)]
"""Experts, typed as ``L5E9,L3E0-3``; a file may list them."""


class WideArgs(Settings):
    """How wide a verb prints."""

    wide: bool = False
    """do not fit tables to the terminal"""


class FormatArgs(WideArgs):
    """How a verb prints."""

    group = "Output"

    format: Format = "table"
    """how to print"""


def _names(given: Any) -> Any:
    """Names as they are typed, with commas between them."""
    return tuple(given.replace(",", " ").split()) if isinstance(given, str) else given


class ColumnsArgs(FormatArgs):
    """How a verb prints a table whose columns can be chosen."""

    columns: Annotated[tuple[str, ...] | None, BeforeValidator(_names), Flag(kind=str)] = Field(
        None, min_length=1, description="columns to print, such as layer,expert,q; all by default"
    )

    def require_columns(self, known: Iterable[str]) -> None:
        """Refuse columns that the table has not."""
        for name in self.columns or ():
            require_column(name, known, "columns")


def require_column(name: str, known: Iterable[str], setting: str) -> None:
    """Refuse a column that the table has not.

    Raises:
        BadInputError: there is none of that name; says which ones are near.
    """
    names = list(known)
    if name not in names:
        raise BadInputError(
            f"`{setting}`: this table has no column {brief(name)}; {near_names(name, names)}"
        )


class LayersArgs(Settings):
    """Which layers."""

    group = "Options"

    layers: Layers = Field(None, description="MoE layers, such as 0,3,8-11; all by default")


class MetaArgs(Settings):
    """Which model."""

    group = "Model"

    model: Annotated[str, Argument("MODEL")] = of(ModelSpec, "model")
    revision: str | None = of(ModelSpec, "revision")
    trust_remote_code: bool = of(ModelSpec, "trust_remote_code")

    def check(self) -> None:
        """Refuse what can be neither a folder nor a name on the hub."""
        if isinstance(self.model, str):  # a verb may take that of its run
            local_folder(self.model)

    def model_spec(self) -> ModelSpec:
        """The part that says which model."""
        fields = ("model", "revision", "dtype", "device", "trust_remote_code")
        return ModelSpec(**{name: getattr(self, name) for name in fields if hasattr(self, name)})


class ModelArgs(MetaArgs):
    """Which model, and in what precision where."""

    group = "Model"

    dtype: DtypeName = of(ModelSpec, "dtype")
    device: str = of(ModelSpec, "device")

    def load(self, check: Check | None = None, on_progress: OnProgress = quiet) -> LoadedModel:
        """The model in memory; layers and ``check`` are held to it before weights are read."""
        from moescope.models import load_model

        known = self._checking(on_progress, check)
        return load_model(self.model_spec(), check=known, on_progress=on_progress)

    def _checking(self, on_progress: OnProgress, more: Check | None = None) -> Check:
        def check(outline: Outline) -> None:
            outline.anatomy.select(getattr(self, "layers", None))
            if more is not None:
                more(outline)
            on_progress(Progress(f"loading {outline.name}", note=outline.memory_note))

        return check


class RecordArgs(Settings):
    """How the records of a corpus are read."""

    group = "Advanced"

    text_field: str = of(CorpusSpec, "text_field")
    domain_field: str = of(CorpusSpec, "domain_field")
    id_field: str = of(CorpusSpec, "id_field")
    on_error: Literal["fail", "skip"] = of(CorpusSpec, "on_error")
    test_share: float = of(CorpusSpec, "test_share")
    text_unit: TextUnit = of(CorpusSpec, "text_unit")
    dataset_split: str = of(CorpusSpec, "dataset_split")
    dataset_config: str | None = of(CorpusSpec, "dataset_config")
    count_template: bool = of(TraceOptions, "count_template")
    seed: Seed = of(TraceOptions, "seed")


class CorpusArgs(RecordArgs):
    """How text is read, whatever its domain."""

    group = "Text"

    split: Split | None = of(CorpusSpec, "split")
    turns: Turns | None = of(CorpusSpec, "turns")
    chat_template: bool = of(TraceOptions, "chat_template")
    chat_text: bool = of(TraceOptions, "chat_text")
    context: int | None = of(TraceOptions, "context")

    @model_validator(mode="after")
    def _one_way_to_a_chat(self) -> Self:
        given = [n for n in ("chat_template", "chat_text", "turns") if getattr(self, n)]
        if len(given) > 1:
            raise BadInputError(
                f"`{given[0]}` and `{given[1]}` exclude each other: `chat_template` wraps plain "
                "text, `chat_text` reads rendered chats, `turns` lists of messages; give one"
            )
        return self

    def corpus_spec(self, path: str, **more: Any) -> CorpusSpec:
        """What to read, and how; its first document is looked at before a model is loaded."""
        from moescope.corpus import open_corpus

        spec: CorpusSpec = self.given(CorpusSpec, path=path, **more)
        next(iter(open_corpus(spec)), None)
        return spec

    def trace_options(self) -> TraceOptions:
        """How text is run through the model."""
        return self.given(TraceOptions, layers=None)  # type: ignore[no-any-return]

    def reading(self) -> list[str]:
        """The settings of how text is read that are not at their defaults."""
        fields = CorpusArgs.model_fields.keys() | TextArgs.model_fields.keys()
        known = {n: type(self).model_fields[n].default for n in fields - {"seed"}}
        return [n for n, usual in known.items() if getattr(self, n, usual) != usual]


class TextArgs(CorpusArgs):
    """How text of several domains is read."""

    group = "Text"

    domain: str | None = of(CorpusSpec, "domain")


class AmountArgs(Settings):
    """How much of the text is read."""

    group = "Text"

    limit: int | None = of(TraceOptions, "limit")
    match_length: int | None = of(TraceOptions, "match_length")


class PaceArgs(Settings):
    """How much is done at a time."""

    group = "Resources"

    batch_tokens: int | None = of(TraceOptions, "batch_tokens")
    pool_tokens: int | None = of(TraceOptions, "pool_tokens")
    checkpoint_seconds: float = of(TraceOptions, "checkpoint_seconds")


class SampleArgs(Settings):
    """How large the sample and the tables of tokens are."""

    group = "Advanced"

    sample_tokens: int = of(TraceOptions, "sample_tokens")
    token_budget: int = of(TraceOptions, "token_budget")


class TraceArgs(AmountArgs, LayersArgs, PaceArgs, SampleArgs):
    """How a corpus is traced, and what is kept."""

    group = "Output"

    keep: Literal["aggregates", "sample", "all"] = of(TraceOptions, "keep")
    predictions: bool = of(TraceOptions, "predictions")
    generate: int = of(TraceOptions, "generate")


class OutArgs(Settings):
    """Where a run is written."""

    group = "Output"

    out: Annotated[str, Flag("-o")] = Field(description="folder of the run")


class EngineArgs(Settings):
    """How a model is held."""

    group = "Resources"

    engine: EngineName = "auto"
    """all weights in memory, or one decoder layer at a time; auto: what fits"""
    memory: str | None = None
    """what the process may take, such as 4GB; by default what is free"""


class LauncherArgs(Settings):
    """How the work is spread over processes and machines."""

    group = "Resources"

    shard: str | None = of(CorpusSpec, "shard")
    launcher: Literal["local", "ray", "shard"] | None = None
    """spread the corpus over processes of this machine (local) or over a Ray cluster (ray) and
    merge; shard: this process does --shard i/n of it"""
    workers: int | None = of(LaunchOptions, "workers")
    shards: int | None = of(LaunchOptions, "shards")
    worker_cpus: float = of(LaunchOptions, "worker_cpus")
    worker_gpus: float = of(LaunchOptions, "worker_gpus")
    ray_address: str | None = of(LaunchOptions, "ray_address")
    keep_parts: bool = of(LaunchOptions, "keep_parts")

    @property
    def launches(self) -> bool:
        """Is the work spread over other processes?"""
        return self.launcher in ("local", "ray")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        of_ray = ("worker_cpus", "worker_gpus", "ray_address")
        if self.launcher == "shard" and self.shard is None:
            raise BadInputError("`launcher=shard` needs `shard=i/n`, such as `shard=3/16`")
        if not self.launches:
            self._refuse(("workers", "shards", "keep_parts", *of_ray), "`launcher=local` or ray")
        elif self.shard is not None:
            raise BadInputError(
                f"`shard={self.shard}` is for a process of its own; `launcher={self.launcher}` "
                "cuts the shards itself, `shards` says how many"
            )
        elif self.launcher == "local":
            self._refuse(of_ray, "`launcher=ray`")
        return self

    def _refuse(self, names: tuple[str, ...], without: str) -> None:
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise BadInputError(f"`{name}` needs {without}")


def is_begun(folder: Path) -> bool:
    """Is there a run, or a part of one, that is only gone on with?"""
    from moescope.launch.job import PARTS
    from moescope.run.manifest import has_progress

    return has_progress(folder) or (folder / PARTS).exists()


class RunArgs(OutArgs, EngineArgs, ModelArgs, TextArgs, TraceArgs, LauncherArgs):
    """Everything that `trace` and `analyze` can be told."""

    corpus: Annotated[str, Argument("CORPUS")] = of(CorpusSpec, "path")

    def trace_options(self) -> TraceOptions:
        """How text is run through the model, and what is kept."""
        return self.given(TraceOptions)  # type: ignore[no-any-return]

    def is_begun(self, folder: Path) -> bool:
        """Is there a run, or a part of one?"""
        return is_begun(folder)

    def open_model(self, on_progress: OnProgress) -> LoadedModel:
        """The model, held as the settings say."""
        from moescope.models import open_model

        return open_model(
            self.model_spec(),
            engine=self.engine,
            memory=self.memory,
            batch_tokens=self.batch_tokens,
            window=self.context,
            check=self._checking(on_progress),
            on_progress=on_progress,
        )
