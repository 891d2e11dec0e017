"""`moescope ablate`: what is lost without some experts, or without each one of a layer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from moescope.cli.settings import Experts as ExpertNames
from moescope.cli.settings import Format, FormatArgs, Layers, ModelArgs, TextArgs
from moescope.cli.tables import print_table
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import Flag, flagged, note, of, verb
from moescope.errors import BadInputError
from moescope.files import usable_path
from moescope.progress import Progress
from moescope.run.options import TraceOptions

if TYPE_CHECKING:
    from moescope.intervene import Damage, ExpertSweep
    from moescope.intervene.damage.measure import Experts
    from moescope.measure.windows import TextWindow
    from moescope.models import LoadedModel
    from moescope.models.outline import Outline
    from moescope.progress import OnProgress
    from moescope.result import Result

_PLAN_COLUMNS = {
    "text": "text", "ce_change": "ΔCE", "ce_change_low": "low", "ce_change_high": "high",
    "ce_change_p_overlap": "p", "p_lowest": "p at least", "ce_change_controls_min": "controls from",
    "ce_change_controls_max": "to", "kl": "KL", "flips": "flips", "detectable": "detectable",
    "tokens": "tokens", "documents": "documents",
}  # fmt: skip

_EACH_COLUMNS = {
    "name": "expert", "rank": "rank", "ce_change": "ΔCE", "ce_change_low": "low",
    "ce_change_high": "high", "kl": "KL", "flips": "flips", "load": "load", "reap": "REAP",
    "contribution": "contribution", "lift": "lift",
}  # fmt: skip

_SHOWN = 40
"""Experts that are printed, of all layers together."""

_LAYERS_SHOWN = 3

_RHO_COLUMNS = ("basis", "layer", "score", "rho", "low", "high", "p", "q", "experts")


class AblateArgs(ModelArgs, TextArgs, FormatArgs):
    """Everything that `ablate` can be told."""

    corpus: str | None = None
    """text: file, folder, or hf:owner/name"""
    run: str | None = None
    """instead of --corpus: the text that a run of this model was made on; names the model too"""
    out: Annotated[str | None, Flag("-o")] = None
    """folder to write; by default RUN/ablation, with --run"""
    plan: str | None = None
    """JSON file that names the experts"""
    experts: Annotated[ExpertNames, Flag(kind=str)] = ()
    """experts, such as L5E9,L3E0-3,L7E*"""
    each: bool = False
    """every expert of --layers on its own"""
    layers: Layers = None
    """with --each: MoE layers, such as 0,3,8-11; all by default"""
    edit: str = "zero"
    """zero, zero-renormalize, mask (re-routed), or scale=FACTOR"""
    target: tuple[str, ...] = ()
    """domain that the experts should serve; may be repeated"""
    controls: int = Field(60, ge=0, description="random plans to compare with; 0: none")
    match: Literal["load", "target-load", "size"] = "load"
    """controls of like load on all text, on the targets, or of like size"""
    tokens: int = Field(2000, ge=1, description="tokens of each domain")
    window: int = Field(
        256, ge=2, description="most tokens of one window; shorter brings more documents"
    )
    batch_tokens: int | None = of(TraceOptions, "batch_tokens")

    @model_validator(mode="before")
    @classmethod
    def _model_of_run(cls, given: Any) -> Any:
        if given.get("run") is None or given.get("model"):
            return given
        from moescope.run.manifest import read_manifest

        known = read_manifest(Path(str(given["run"]))).model
        revision = given.get("revision") or known.get("revision")
        return {**given, "model": known["name"], "revision": revision}

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        named = [n for n in ("plan", "experts", "each") if getattr(self, n)]
        if len(named) != 1:
            both = f", got {' and '.join(f'`{n}`' for n in named)}" if named else ""
            raise BadInputError(
                "say which experts to take away: one of `plan=FILE`, `experts=L5E9` or `each`"
                f"{both}"
            )
        if self.layers is not None and not self.each:
            raise BadInputError(
                "`layers` belongs to `each`; for whole layers give `experts=L3E*` with `controls=0`"
            )
        if (self.corpus is None) == (self.run is None):
            raise BadInputError("give the text to measure on: `corpus=PATH`, or `run=RUN`")
        if self.out is None and self.run is None:
            raise BadInputError("say where the results go: -o FOLDER")
        if self.run is not None and self.reading():
            raise BadInputError(
                f"`{self.reading()[0]}` says how a corpus is read, but a run's text is read as the "
                "run did; leave it out, or give `corpus`"
            )
        if self.match == "target-load" and not self.target:
            raise BadInputError("`match=target-load` needs a target; name one with `target=DOMAIN`")
        return self

    def folder(self) -> Path:
        """Where to write."""
        return Path(str(self.run)) / "ablation" if self.out is None else usable_path(self.out)

    def windows(self, loaded: LoadedModel) -> list[TextWindow]:
        """The text to measure on."""
        from moescope.measure.windows import choose_windows, run_windows
        from moescope.metrics.runs import open_run

        size: Any = {"tokens_per_domain": self.tokens, "window_tokens": self.window}
        if self.run is not None:
            return run_windows(loaded, open_run(self.run), **size)
        corpus = self.corpus_spec(str(self.corpus))
        return choose_windows(loaded, corpus, options=self.trace_options(), **size)

    def source(self) -> dict[str, Any]:
        """Where the text came from, for the reader of a result."""
        return {
            "corpus": self.corpus,
            "run": self.run,
            "tokens_per_domain": self.tokens,
            "window_tokens": self.window,
            "split": self.split,
        }


@verb(marks=("measured.jsonl",))
def ablate(settings: AblateArgs, resume: bool) -> None:
    """Take experts away and measure the damage, by domain, beside random experts of like load.

    Say which with --plan or --experts, or take each expert of --layers on its own with --each,
    which ranks them and tells which routing statistics would have foretold it. Writes
    result.json, tables and a page. Interrupted, it goes on with --resume.

    Example: moescope ablate MODEL --experts L5E9,L3E0-3 --corpus texts/ --target law -o removed

    Example: moescope ablate MODEL --each --layers 3 --corpus texts/ -o layer3
    """
    experts = None if settings.each else _experts(settings)
    folder, corpus = settings.folder(), settings.corpus
    if corpus is not None:
        settings.corpus_spec(corpus)
    from moescope.intervene.damage.edits import damage_edit

    damage_edit(settings.edit)
    from moescope.intervene.ablation import ablation_result
    from moescope.intervene.damage.measure import ABLATION
    from moescope.measure.journal import hold
    from moescope.report.ablation_page import ablation_page
    from moescope.report.page import write_page

    reads = [] if corpus is None else [corpus]
    with hold(folder, ABLATION, reads=reads, resume=resume):
        with progress(f"loading {settings.model}") as show:
            loaded = settings.load(partial(_check, settings, experts), show)
            settings.begin(folder)
            show(Progress("reading the text"))
            windows = settings.windows(loaded)
            found = _measure(settings, experts, loaded, windows, resume, show)
        result = ablation_result(found, settings.source())
        result.save(folder)
        page = write_page(folder / "ablation.html", ablation_page(result))
    _print(found, result, settings.format)
    errors.print(str(page), soft_wrap=True)


def _experts(settings: AblateArgs) -> Experts:
    """The experts of a plan, or of the words of a setting."""
    from moescope.plan import Plan

    return settings.experts if settings.plan is None else Plan.read(settings.plan)


def _check(settings: AblateArgs, experts: Experts | None, outline: Outline) -> None:
    """Refuse what can be refused before weights are read."""
    from moescope.intervene.damage.edits import damage_edit
    from moescope.intervene.damage.measure import check_plan
    from moescope.models.edits import select_experts
    from moescope.plan import Plan

    if experts is None:
        return
    if isinstance(experts, Plan):
        experts.require_model(outline.describe())
        refs = experts.experts
    else:
        refs = select_experts(outline.anatomy, settings.experts)
    check_plan(outline.anatomy, refs, damage_edit(settings.edit), settings.controls)


def _measure(
    settings: AblateArgs,
    experts: Experts | None,
    loaded: LoadedModel,
    windows: list[TextWindow],
    resume: bool,
    on_progress: OnProgress,
) -> Damage | ExpertSweep:
    from moescope.intervene import measure_damage, sweep_experts

    shared: dict[str, Any] = {
        "edit": settings.edit, "targets": settings.target, "seed": settings.seed,
        "batch_tokens": settings.batch_tokens, "folder": settings.folder(), "resume": resume,
        "on_progress": on_progress,
    }  # fmt: skip
    if experts is None:
        return sweep_experts(loaded, windows, settings.layers, **shared)
    return measure_damage(
        loaded, windows, experts, controls=settings.controls, match=settings.match, **shared
    )


def _print(found: Damage | ExpertSweep, result: Result, form: Format) -> None:
    """Sentences and tables; as csv and json the whole table of damages alone."""
    from moescope.intervene import ExpertSweep

    for remark in result.notes:
        note(remark.text, "yellow" if remark.level == "warn" else "")
    if form != "table":
        print_table(found.to_arrow(), form)
        return
    for answer in result.answers:
        output.print(flagged(answer), soft_wrap=True)
    if isinstance(found, ExpertSweep):
        _print_sweep(found)
    else:
        rows = [{**r, "text": _group(r["scope"], r["domain"])} for r in found.plan_rows()]
        print_table(_columns(rows, _PLAN_COLUMNS), form, "nats per token, by domain")
    errors.print(result.about["cost"], soft_wrap=True)


def _print_sweep(result: ExpertSweep) -> None:
    """The most important experts of every layer, and the scores; the files have all."""
    ranking, most = result.ranking(), max(3, _SHOWN // len(result.layers))
    rows = [r for r in ranking if r["rank"] <= most]
    print_table(_columns(rows, _EACH_COLUMNS), "table", "nats per token, by expert")
    found = [r for r in result.correlations.to_pylist() if r["importance"] == "ce_change"]
    several = len(result.layers) > _LAYERS_SHOWN
    bases = ["within layers"] if several else ["layer", "within layers"]
    chosen = [r for r in found if r["basis"] in bases]
    chosen.sort(key=lambda r: (bases.index(r["basis"]), r["layer"] or 0, -_known(r["rho"])))
    title = "rank correlation with measured importance (ΔCE)"
    print_table(_columns(chosen, {n: n for n in _RHO_COLUMNS}), "table", title)
    if len(rows) < len(ranking) or several:
        errors.print(f"{len(rows)} of {len(ranking)} experts; each.parquet and the page have all")


def _group(scope: str, domain: str) -> str:
    if scope == "all":
        return "all text"
    return domain if scope == "domain" else f"{scope.replace('-', ' ')}: {domain}"


def _known(value: float) -> float:
    return value if math.isfinite(value) else -2.0


def _columns(rows: list[dict[str, Any]], names: dict[str, str]) -> pa.Table:
    return pa.table({shown: pa.array([r[name] for r in rows]) for name, shown in names.items()})
