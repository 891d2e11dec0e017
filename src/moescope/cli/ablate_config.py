"""The settings of `moescope ablate`, defined once for flags, YAML files and the copy kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moescope.cli.config import parse_layers, require_one_way
from moescope.cli.settings import read_settings, validated
from moescope.errors import BadInputError
from moescope.given import Seed

if TYPE_CHECKING:
    from moescope.intervene.damage.measure import Experts
    from moescope.measure.windows import TextWindow
    from moescope.models import LoadedModel, ModelSpec
    from moescope.run.options import TraceOptions

__all__ = ["AblateConfig", "resolve_ablation"]


class AblateConfig(BaseModel):
    """Everything that `ablate` can be told."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    model: str = Field(description="hub id or folder of the model; with --run that of the run")
    corpus: str | None = Field(None, description="text: file, folder, or hf:owner/name")
    run: str | None = Field(
        None, description="instead of --corpus: the text that a run of this model was made on"
    )
    out: str | None = Field(None, description="folder to write [RUN/ablation with --run]")
    plan: str | None = Field(None, description="JSON file that names the experts")
    experts: str | None = Field(None, description="experts, such as L5E9,L3E0-3,L7E*")
    each: bool = Field(False, description="every expert of --layers on its own")
    layers: str | None = Field(None, description="with --each: MoE layers, such as 0,3,8-11 [all]")
    edit: str = Field(
        "zero", description="zero, zero-renormalize, mask (re-routed), or scale=FACTOR"
    )
    target: list[str] = Field(
        default=[], description="domain that the experts should serve; may be repeated"
    )
    controls: int = Field(60, ge=0, description="random plans to hold the experts against; 0: none")
    match: Literal["load", "target-load", "size"] = Field(
        "load", description="controls of like load on all text, on the targets, or of like size"
    )
    tokens: int = Field(2000, ge=1, description="tokens of each domain")
    window: int = Field(
        256, ge=2, description="most tokens of one window; shorter brings more documents"
    )
    seed: Seed = Field(0, description="of the choice of text, controls and resampling")
    batch_tokens: int | None = Field(None, ge=1, description="tokens of one batch")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="precision; auto: as stored, where the processor has it"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    trust_remote_code: bool = Field(False, description="run Python code that the model brings")
    text_field: str = Field("text", description="field of a record that holds its text")
    domain_field: str = Field("domain", description="field that holds its domain")
    id_field: str = Field("id", description="field that holds its id")
    domain: str | None = Field(None, description="domain of every record that names none")
    on_error: Literal["fail", "skip"] = Field(
        "fail", description="stop at a broken record, or leave it out"
    )
    split: Literal["train", "test"] | None = Field(
        None, description="only this part, decided by a hash of the document id"
    )
    test_share: float = Field(0.2, gt=0, lt=1, description="share of documents in --split test")
    text_unit: Literal["paragraph", "line", "file"] = Field(
        "paragraph", description="what one document of a .txt or .md file is"
    )
    dataset_split: str = Field("train", description="split of a Hugging Face dataset")
    dataset_config: str | None = Field(None, description="configuration of such a dataset")
    context: int | None = Field(None, ge=2, description="tokens that a document is cut into")
    chat_template: bool = Field(False, description="wrap documents in the model's chat template")
    chat_text: bool = Field(
        False, description="documents are rendered chats: read the control tokens in them as such"
    )
    turns: Literal["all", "assistant"] | None = Field(
        None, description="the text field holds lists of messages; the turns whose tokens count"
    )

    def model_spec(self) -> ModelSpec:
        """The part that says which model."""
        from moescope.models import ModelSpec

        return ModelSpec(self.model, self.revision, self.dtype, self.device, self.trust_remote_code)

    def folder(self) -> Path:
        """Where to write."""
        from moescope.files import usable_path

        if self.out is not None:
            return usable_path(self.out)
        assert self.run is not None
        return Path(self.run) / "ablation"

    def windows(self, loaded: LoadedModel) -> list[TextWindow]:
        """The text to measure on."""
        from moescope.corpus import CorpusSpec
        from moescope.measure.windows import choose_windows, run_windows
        from moescope.metrics.runs import open_run

        if self.run is not None:
            return run_windows(
                loaded,
                open_run(self.run),
                tokens_per_domain=self.tokens,
                window_tokens=self.window,
            )
        shared = CorpusSpec.model_fields.keys() & AblateConfig.model_fields.keys()
        return choose_windows(
            loaded,
            CorpusSpec(path=str(self.corpus), **self.model_dump(include=set(shared))),
            tokens_per_domain=self.tokens,
            window_tokens=self.window,
            options=self._trace_options(),
        )

    def _trace_options(self) -> TraceOptions:
        from moescope.run.options import TraceOptions

        return TraceOptions(
            context=self.context,
            chat_template=self.chat_template,
            chat_text=self.chat_text,
            seed=self.seed,
        )

    def source(self) -> dict[str, Any]:
        """Where the text came from, for the reader of a result."""
        return {
            "corpus": self.corpus,
            "run": self.run,
            "tokens_per_domain": self.tokens,
            "window_tokens": self.window,
            "split": self.split,
        }

    def layer_numbers(self) -> tuple[int, ...] | None:
        """The layers of a sweep; None for all."""
        return None if self.layers is None else parse_layers(self.layers)

    def chosen_experts(self) -> Experts:
        """The experts of a plan or of ``--experts``."""
        from moescope.plan import Plan

        return Plan.read(self.plan) if self.plan is not None else str(self.experts)


def resolve_ablation(given: dict[str, Any], config_file: Path | None) -> AblateConfig:
    """Flags over file over defaults, validated.

    Raises:
        BadInputError: an unreadable file, an unknown key, a missing or impossible value, or
            settings that contradict each other.
        RunError: the run that should name the model cannot be read.
    """
    stored = read_settings(config_file, "edit: mask") if config_file else {}
    settings = {**stored, **given}
    if settings.get("run") is not None and not settings.get("model"):
        settings |= _model_of(Path(str(settings["run"])), settings)
    config = validated(AblateConfig, settings, config_file)
    _refuse_contradictions(config)
    require_one_way(config)
    return config


def _model_of(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The model that a run was made with."""
    from moescope.run.manifest import read_manifest

    known = read_manifest(run).model
    return {"model": known["name"], "revision": settings.get("revision") or known.get("revision")}


def _refuse_contradictions(config: AblateConfig) -> None:
    named = [n for n in ("plan", "experts", "each") if getattr(config, n)]
    if len(named) != 1:
        both = f", got --{' and --'.join(named)}" if named else ""
        raise BadInputError(
            f"say which experts to take away: one of --plan FILE, --experts L5E9 or --each{both}"
        )
    if config.layers is not None and not config.each:
        raise BadInputError(
            "--layers belongs to --each; for whole layers give --experts L3E* with --controls 0"
        )
    if (config.corpus is None) == (config.run is None):
        raise BadInputError("give the text to measure on: --corpus PATH, or --run RUN")
    if config.out is None and config.run is None:
        raise BadInputError("say where the results go: -o FOLDER")
    if config.run is not None:
        plain = AblateConfig.model_fields
        odd = [n for n in _TEXT_SETTINGS if getattr(config, n) != plain[n].default]
        if odd:
            raise BadInputError(
                f"--{odd[0].replace('_', '-')} says how a corpus is read, but a run's text is read "
                "as the run did; leave it out, or give --corpus"
            )


_TEXT_SETTINGS = (
    "text_field", "domain_field", "id_field", "domain", "on_error", "split", "test_share",
    "text_unit", "dataset_split", "dataset_config", "context", "chat_template",
    "chat_text", "turns",
)  # fmt: skip
