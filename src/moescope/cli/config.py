"""The settings of `trace` and `analyze`, defined once for flags, YAML files and the copy kept.

Every field's description is the help of its flag. A YAML file given by ``--config`` uses the
field names; flags win over the file; unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, ConfigDict, Field, field_validator

from moescope.cli.resume import RUN_MARKS, resumable
from moescope.cli.settings import optional, parameter, read_settings, sign, validated
from moescope.errors import BadInputError
from moescope.given import MOST_SHARDS, MOST_TOKENS, MOST_WORKERS, Seed, whole_number

if TYPE_CHECKING:
    from moescope.corpus import CorpusSpec
    from moescope.launch import LaunchOptions
    from moescope.models import LoadedModel, ModelSpec
    from moescope.run.options import TraceOptions

__all__ = ["RunConfig", "parse_layers", "require_one_way", "resolve", "with_run_options"]


class RunConfig(BaseModel):
    """Everything that `trace` and `analyze` can be told."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(description="hub id or folder of the model")
    corpus: str = Field(description="file, folder, or hf:owner/name")
    out: str = Field(description="folder of the run")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="precision; auto: as stored, where the processor has it"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    engine: Literal["auto", "resident", "streamed"] = Field(
        "auto",
        description="all weights in memory, or one decoder layer at a time; auto: what fits",
    )
    memory: str | None = Field(
        None, description="what the process may take, such as 4GB; by default what is free"
    )
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    text_field: str = Field("text", description="field of a record that holds its text")
    domain_field: str = Field("domain", description="field that holds its domain")
    id_field: str = Field("id", description="field that holds its id")
    domain: str | None = Field(None, description="domain of every record that names none")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="stop at a broken record, or leave it out and count it"
    )
    split: Literal["train", "test"] | None = Field(
        None, description="only this part, decided by a hash of the document id"
    )
    text_unit: Literal["paragraph", "line", "file"] = Field(
        "paragraph", description="what one document of a .txt or .md file is"
    )
    layers: str | None = Field(None, description="MoE layers to trace, such as 0,3,8-11")
    keep: Literal["aggregates", "sample", "all"] = Field(
        "sample", description="sums only; also a bounded token sample; also every token"
    )
    limit: int | None = Field(
        None, ge=1, le=MOST_TOKENS, description="stop each domain after so many tokens"
    )
    match_length: int | None = Field(
        None,
        ge=2,
        le=MOST_TOKENS,
        description="of each document its first so many tokens; shorter ones are left out, so that "
        "domains do not differ in length",
    )
    context: int | None = Field(None, ge=2, description="longest window in tokens")
    batch_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS, description="tokens of one batch")
    predictions: bool = Field(
        True, description="run the LM head too: loss by domain, predicted next tokens"
    )
    generate: int = Field(0, ge=0, description="let the model write so many tokens, traced too")
    chat_template: bool = Field(False, description="wrap documents in the model's chat template")
    chat_text: bool = Field(
        False, description="documents are rendered chats: read the control tokens in them as such"
    )
    turns: Literal["all", "assistant"] | None = Field(
        None, description="the text field holds lists of messages; the turns whose tokens count"
    )
    count_template: bool = Field(False, description="count the template's own tokens too")
    seed: Seed = Field(0, description="of sampling, resampling and --split")
    sample_tokens: int = Field(
        8192, ge=1, le=MOST_TOKENS, description="sampled tokens of each domain"
    )
    token_budget: int = Field(
        250_000, ge=1, le=MOST_TOKENS, description="tokens of each domain in the token-id tables"
    )
    pool_tokens: int | None = Field(
        None,
        ge=1,
        le=MOST_TOKENS,
        description="tokens sorted by length together, or streamed together",
    )
    checkpoint_seconds: float = Field(
        20.0, ge=0, description="commit after the first pool that ends this late"
    )
    test_share: float = Field(0.2, gt=0, lt=1, description="share of documents in --split test")
    dataset_split: str = Field("train", description="split of a Hugging Face dataset")
    dataset_config: str | None = Field(None, description="configuration of such a dataset")
    shard: str | None = Field(
        None, description="only part i/n of the corpus, such as 3/16; join them with merge"
    )
    launcher: Literal["local", "ray", "shard"] | None = Field(
        None,
        description="spread the corpus over processes of this machine (local) or over a Ray "
        "cluster (ray) and merge; shard: this process does --shard i/n of it",
    )
    workers: int | None = Field(
        None, ge=1, le=MOST_WORKERS, description="workers of the launcher at a time"
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=MOST_SHARDS,
        description="parts that the launcher cuts; by default one for each worker",
    )
    worker_cpus: float = Field(1.0, gt=0, description="processors and threads of a Ray task")
    worker_gpus: float = Field(0.0, ge=0, description="GPUs of a Ray task")
    ray_address: str | None = Field(
        None, description="Ray cluster, such as auto; without it Ray is started here"
    )
    keep_parts: bool = Field(False, description="keep the run of each shard of a launcher")

    @field_validator("shard")
    @classmethod
    def _read_shard(cls, text: str | None) -> str | None:
        from moescope.corpus import parse_shard

        return None if text is None else str(parse_shard(text))

    def model_spec(self) -> ModelSpec:
        """The part that says which model."""
        from moescope.models import ModelSpec

        return ModelSpec(self.model, self.revision, self.dtype, self.device, self.trust_remote_code)

    def open_model(self) -> LoadedModel:
        """The model, held as the settings say."""
        from moescope.models import open_model

        return open_model(
            self.model_spec(),
            engine=self.engine,
            memory=self.memory,
            batch_tokens=self.batch_tokens,
            window=self.context,
        )

    def corpus_spec(self) -> CorpusSpec:
        """The part that says which text."""
        from moescope.corpus import CorpusSpec

        shared = CorpusSpec.model_fields.keys() & RunConfig.model_fields.keys()
        return CorpusSpec(path=self.corpus, **self.model_dump(include=set(shared)))

    @property
    def launches(self) -> bool:
        """Is the work spread over other processes?

        Raises:
            BadInputError: settings of a launcher that do not go together.
        """
        if self.launcher in ("local", "ray"):
            if self.shard is not None:
                raise BadInputError(
                    f"--shard {self.shard} is for a process of its own; --launcher "
                    f"{self.launcher} cuts the shards itself, --shards N says how many"
                )
            if self.launcher == "local":
                self._refuse_set(_OF_RAY, "--launcher ray")
            return True
        if self.launcher == "shard" and self.shard is None:
            raise BadInputError("--launcher shard needs --shard i/n, such as --shard 3/16")
        self._refuse_set(_OF_LAUNCHER, "--launcher local or ray")
        return False

    def _refuse_set(self, names: Iterable[str], without: str) -> None:
        for name in names:
            if getattr(self, name) != RunConfig.model_fields[name].default:
                raise BadInputError(f"--{name.replace('_', '-')} needs {without}")

    def launch_options(self) -> LaunchOptions:
        """The part that says how the work is spread."""
        from moescope.launch import LaunchOptions

        return LaunchOptions(**self.model_dump(include={"launcher", *_OF_LAUNCHER}))

    def trace_options(self) -> TraceOptions:
        """The part that says how."""
        from moescope.run.options import TraceOptions

        shared = set(TraceOptions.model_fields) & set(RunConfig.model_fields) - {"layers"}
        layers = None if self.layers is None else parse_layers(self.layers)
        return TraceOptions(layers=layers, **self.model_dump(include=shared))


_ARGUMENTS = ("model", "corpus")
_OF_RAY = ("worker_cpus", "worker_gpus", "ray_address")
_MOST_LAYERS = 10_000
"""Ranges are expanded before a model is at hand that would say which layers it has."""

_OF_LAUNCHER = ("workers", "shards", "keep_parts", *_OF_RAY)


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
                f"--layers {text!r} is not of the form 0,3,8-11, with numbers of at most 9 digits"
            )
        if last < first:
            raise BadInputError(f"--layers {text!r}: the range {part.strip()} runs backwards")
        if last >= _MOST_LAYERS:
            raise BadInputError(f"--layers {text!r}: no model has a layer {last}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def require_one_way(config: Any) -> None:
    """Refuse two settings that say how a document becomes a chat.

    Args:
        config: settings with ``chat_template``, ``chat_text`` and ``turns``.

    Raises:
        BadInputError: two are given.
    """
    given = [n for n in ("chat_template", "chat_text", "turns") if getattr(config, n)]
    if len(given) > 1:
        flags = [f"--{name.replace('_', '-')}" for name in given]
        raise BadInputError(
            f"{flags[0]} and {flags[1]} exclude each other: --chat-template wraps plain text, "
            "--chat-text reads rendered chats, --turns lists of messages; give one"
        )


def with_run_options(body: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags of `RunConfig`; ``body(config, resume)`` does the work."""

    def command(**given: Any) -> None:
        config_file, resume = given.pop("config"), given.pop("resume")
        settings = resolve({k: v for k, v in given.items() if v is not None}, config_file)
        with resumable(settings.out, *RUN_MARKS):
            body(settings, resume)

    parameters = []
    for name, field in RunConfig.model_fields.items():
        if name in _ARGUMENTS:
            kind: Any = typer.Argument(help=field.description, metavar=name.upper())
        else:
            kind = typer.Option(*_flags(name, field.annotation), help=_help(name))
        annotation: Any = Annotated[optional(field.annotation), kind]
        parameters.append(parameter(name, annotation, None))
    config = typer.Option("--config", help="YAML file with any of these settings")
    resume = typer.Option("--resume", help="go on with an interrupted run")
    parameters.append(parameter("config", Annotated[Path | None, config], None))
    parameters.append(parameter("resume", Annotated[bool, resume], False))
    return sign(command, parameters, body)


def _flags(name: str, annotation: Any) -> list[str]:
    if name == "out":
        return ["--out", "-o"]
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}"] if annotation is bool else [flag]


def _help(name: str) -> str:
    field = RunConfig.model_fields[name]
    default = field.default
    if field.is_required() or default is None or isinstance(default, bool):
        return str(field.description)
    return f"{field.description} [{default}]"


def resolve(given: dict[str, Any], config_file: Path | None) -> RunConfig:
    """Flags over file over defaults, validated.

    Raises:
        BadInputError: an unreadable file, an unknown key, a missing or impossible value, or two
            that exclude each other.
    """
    stored = read_settings(config_file, "keep: all") if config_file else {}
    config = validated(RunConfig, {**stored, **given}, config_file)
    require_one_way(config)
    return config
