"""`moescope ablate`: what is lost without some experts, or without each one of a layer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from rich.text import Text

from moescope.cli.asked import asked
from moescope.cli.fit import Head
from moescope.cli.of_run import OfRunArgs
from moescope.cli.settings import Experts as ExpertNames
from moescope.cli.settings import FormatArgs, Layers, TextArgs
from moescope.cli.tables import Sheet, print_table
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import Flag, flagged, note, of, verb
from moescope.errors import BadInputError
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.words import counted, listing

if TYPE_CHECKING:
    from moescope.intervene import Damage, ExpertSweep
    from moescope.intervene.damage.measure import Experts
    from moescope.measure.windows import TextWindow
    from moescope.models import LoadedModel
    from moescope.models.outline import Outline
    from moescope.progress import OnProgress
    from moescope.result import Result

_PLAN_COLUMNS = {
    "text": Head("text", "name", key=True), "ce_change": Head("ΔCE"),
    "ce_change_low": Head("low", of="ΔCE"), "ce_change_high": Head("high", of="ΔCE"),
    "ce_change_p_overlap": Head("p_overlap", keep=True),
    "ce_change_controls_min": Head("controls from", of="ΔCE"),
    "ce_change_controls_max": Head("controls to", of="ΔCE"),
    "p_lowest": Head("at least", of="p_overlap"),
    "kl": Head("KL"), "flips": Head("flips"), "detectable": Head("detectable"),
    "tokens": Head("tokens"), "documents": Head("documents"),
}  # fmt: skip

_EACH_COLUMNS = {
    "name": Head("expert", "name", key=True), "rank": Head("rank", keep=True),
    "ce_change": Head("ΔCE"), "ce_change_low": Head("low", of="ΔCE"),
    "ce_change_high": Head("high", of="ΔCE"), "kl": Head("KL"), "flips": Head("flips"),
    "load": Head("load"), "reap": Head("REAP"), "contribution": Head("contribution"),
    "lift": Head("lift"),
}  # fmt: skip

_SHOWN = 40
"""Experts that are printed, of all layers together."""

_LAYERS_SHOWN = 3

_RHO_COLUMNS = {
    "basis": Head("basis", "name", key=True), "layer": Head("layer", key=True),
    "score": Head("score", "name", key=True), "rho": Head("rho"), "low": Head("low", of="rho"),
    "high": Head("high", of="rho"), "q": Head("q", keep=True), "p": Head("p"),
    "experts": Head("experts"),
}  # fmt: skip


class AblateArgs(OfRunArgs, TextArgs, FormatArgs):
    """Everything that `ablate` can be told."""

    kept_as: ClassVar[str] = "ablation"

    corpus: str | None = None
    """text: file, folder, or hf:owner/name"""
    run: str | None = None
    """instead of --corpus: the text that a run of this model was made on; names the model too"""
    plan: str | None = None
    """plan of experts, such as moescope select, contrast and ablate write"""
    experts: Annotated[ExpertNames, Flag(kind=str)] = ()
    """experts, such as L5E9,L3E0-3,L7E*"""
    each: bool = False
    """every expert of --layers on its own"""
    layers: Layers = None
    """with --each: MoE layers, such as 0,3,8-11; all by default"""
    edit: str | None = None
    """zero, zero-renormalize, mask (re-routed), or scale=FACTOR; by default what the plan says, or
    zero"""
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
        return Path(str(super().folder()))

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
    from moescope.intervene.damage.edits import damage_edit

    experts, edit = _experts(settings)
    damage_edit(edit)
    folder, corpus = settings.folder(), settings.corpus
    if corpus is not None:
        settings.corpus_spec(corpus)
    from moescope.intervene import ExpertSweep
    from moescope.intervene.ablation import ablation_result
    from moescope.intervene.damage.measure import ABLATION
    from moescope.measure.journal import hold
    from moescope.report.ablation_page import ablation_page
    from moescope.report.contents import renew_contents
    from moescope.report.page import write_page

    reads = [] if corpus is None else [corpus]
    with hold(folder, ABLATION, reads=reads, resume=resume):
        with progress(f"loading {settings.model}") as show:
            loaded = settings.load(partial(_check, settings, experts, edit), show)
            settings.begin(folder)
            show(Progress("reading the text"))
            windows = settings.windows(loaded)
            found = _measure(settings, experts, edit, loaded, windows, resume, show)
        result = ablation_result(found, settings.source())
        result.save(folder)
        if not isinstance(found, ExpertSweep):
            found.plan.write(folder / "plan.json")
        page = write_page(
            folder / "ablation.html", ablation_page(result, asked("ablate", settings))
        )
        renew_contents(folder, note)
    _print(found, result, settings)
    errors.print(str(page), soft_wrap=True)


def _experts(settings: AblateArgs) -> tuple[Experts | None, str]:
    """The experts of a plan or of a setting, None for all, and what is done to them."""
    from moescope.intervene.damage.edits import edit_of
    from moescope.plan import Plan

    if settings.plan is None:
        return settings.experts or None, settings.edit or "zero"
    plan = Plan.read(settings.plan)
    said = {entry.setting for entry in plan.entries}
    edit = settings.edit or edit_of(said) or "zero"
    if said - {None} and edit != edit_of(said):
        named = listing(sorted(s for s in said if s is not None))
        note(f"the plan says {named}; here `edit={edit}` is done to all of its experts")
    return plan, edit


def _check(settings: AblateArgs, experts: Experts | None, edit: str, outline: Outline) -> None:
    """Refuse what can be refused before weights are read."""
    from moescope.intervene.damage.edits import damage_edit
    from moescope.intervene.damage.measure import check_plan
    from moescope.models.edits import parse_experts
    from moescope.plan import Plan

    if experts is None:
        return
    if isinstance(experts, Plan):
        experts.require_model(outline.describe())
        refs = experts.experts
    else:
        refs = parse_experts(outline.anatomy, settings.experts)
    check_plan(outline.anatomy, refs, damage_edit(edit), settings.controls)


def _measure(
    settings: AblateArgs,
    experts: Experts | None,
    edit: str,
    loaded: LoadedModel,
    windows: list[TextWindow],
    resume: bool,
    on_progress: OnProgress,
) -> Damage | ExpertSweep:
    from moescope.intervene import measure_damage, sweep_experts

    shared: dict[str, Any] = {
        "edit": edit, "targets": settings.target, "seed": settings.seed,
        "batch_tokens": settings.batch_tokens, "folder": settings.folder(), "resume": resume,
        "on_progress": on_progress,
    }  # fmt: skip
    if experts is None:
        return sweep_experts(loaded, windows, settings.layers, **shared)
    return measure_damage(
        loaded, windows, experts, controls=settings.controls, match=settings.match, **shared
    )


def _print(found: Damage | ExpertSweep, result: Result, settings: AblateArgs) -> None:
    """Sentences and tables; as csv and json the whole table of damages alone."""
    from moescope.intervene import ExpertSweep

    if settings.format == "table":
        for i, answer in enumerate(result.answers):
            output.print(Text(flagged(answer), style="bold" if i == 0 else ""), soft_wrap=True)
    for remark in result.notes:
        note(remark.text, "yellow" if remark.level == "warn" else "")
    if settings.format != "table":
        print_table(found.to_arrow(), settings)
        return
    if isinstance(found, ExpertSweep):
        _print_sweep(found, settings)
    else:
        rows = [{**r, "text": _group(r["scope"], r["domain"])} for r in found.plan_rows()]
        _print_rows(rows, _PLAN_COLUMNS, "nats per token, by domain", settings)
    errors.print(result.about["cost"], soft_wrap=True)


def _print_sweep(result: ExpertSweep, settings: AblateArgs) -> None:
    """The most important experts of every layer, and the scores; the files have all."""
    ranking, most = result.ranking(), max(3, _SHOWN // len(result.layers))
    rows = [r for r in ranking if r["rank"] <= most]
    _print_rows(rows, _EACH_COLUMNS, "nats per token, by expert", settings)
    found = [r for r in result.correlations.to_pylist() if r["importance"] == "ce_change"]
    several = len(result.layers) > _LAYERS_SHOWN
    bases = ["within layers"] if several else ["layer", "within layers"]
    chosen = [r for r in found if r["basis"] in bases]
    chosen.sort(key=lambda r: (bases.index(r["basis"]), r["layer"] or 0, -_known(r["rho"])))
    title = "rank correlation with measured importance (ΔCE)"
    _print_rows(chosen, _RHO_COLUMNS, title, settings)
    if len(rows) < len(ranking) or several:
        of = counted(len(ranking), "expert")
        errors.print(f"{len(rows)} of {of}; each.parquet and the page have all")


def _group(scope: str, domain: str) -> str:
    if scope == "all":
        return "all text"
    return domain if scope == "domain" else f"{scope.replace('-', ' ')}: {domain}"


def _known(value: float) -> float:
    return value if math.isfinite(value) else -2.0


def _print_rows(
    rows: list[dict[str, Any]], heads: dict[str, Head], title: str, settings: AblateArgs
) -> None:
    sheet = Sheet(title, *heads.values())
    for row in rows:
        sheet.add(*(row[name] for name in heads))
    sheet.print(settings)
