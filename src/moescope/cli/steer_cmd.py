"""`moescope steer`: boost or ablate experts on a prompt, beside the unedited model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from moescope.cli.asked import asked
from moescope.cli.of_run import OfRunArgs
from moescope.cli.settings import TableOrJson, WideArgs
from moescope.cli.tables import write_json
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import note, of, verb
from moescope.errors import BadInputError
from moescope.given import Seed
from moescope.progress import Progress
from moescope.run.options import TraceOptions
from moescope.words import listing

if TYPE_CHECKING:
    from moescope.intervene.steering.results import SteeringResult, SweepResult
    from moescope.intervene.steering.settings import Setting
    from moescope.models import LoadedModel
    from moescope.models.outline import Outline
    from moescope.plan import Plan
    from moescope.progress import OnProgress


class SteerArgs(OfRunArgs, WideArgs):
    """Everything that `steer` can be told."""

    kept_as: ClassVar[str] = "steering"

    prompt: str
    """the text that the model goes on from"""
    set_: tuple[str, ...] = ()
    """EXPERTS=VALUE, such as L1E9=+2.0; may be repeated"""
    plan: str | None = None
    """plan of experts, such as moescope select and contrast write"""
    as_: str | None = None
    """VALUE for all experts of the plan, whatever it says"""
    target: tuple[int, ...] = ()
    """number of a prompt token where the edit holds (negative: from the end); may be repeated;
    everywhere unless given"""
    words: str | None = None
    """whose logits to follow, such as "Paris, London\""""
    sweep: str | None = None
    """strengths FROM:TO:STEP, such as -4:4:1, or a list -4,0,4"""
    generate: int = Field(40, ge=0, description="tokens to generate; 0 for none")
    temperature: float = Field(
        0.0, ge=0, description="0: the most probable token; else tokens are drawn"
    )
    seed: Seed = Field(0, description="of drawing tokens and of choosing controls")
    top: int = Field(10, ge=1, description="next tokens to show, of each side")
    controls: int = Field(
        20, ge=0, description="random other experts to try the same edit on; 0: none"
    )
    chat_template: bool = of(TraceOptions, "chat_template")
    format: TableOrJson = "table"
    """how to print"""

    @model_validator(mode="after")
    def _value_of_a_plan(self) -> Self:
        if self.as_ is not None and self.plan is None:
            raise BadInputError(
                f"`as={self.as_}`: says what to do to the experts of `plan`; give it"
            )
        return self

    def options(self) -> dict[str, Any]:
        """What a single edit and a sweep have in common."""
        return {
            "targets": self.target,
            "words": self.words.split(",") if self.words else (),
            "generate": self.generate,
            "temperature": self.temperature,
            "seed": self.seed,
            "chat": self.chat_template,
        }


@verb(marks=("measured.jsonl",))
def steer(settings: SteerArgs, resume: bool) -> None:
    """Boost or ablate experts at one token or everywhere; see what becomes of the text.

    --set EXPERTS=VALUE says which experts and what: L1E9=+2.0 or L1E9=-1.5 adds to the router's
    logit (the sign must be there), L1E9=x0.5 multiplies the weight, L1E9=mask keeps it from being
    chosen, L1E9=zero lets it be chosen but give nothing, L1E9=force brings it in. L1E0-7, L1E* and
    L*E3 name several, commas join them. --sweep follows the number over a range.

    Example: moescope steer MODEL --prompt "My good Lord, what say you? I" --set L1E9,L1E31=mask
    """
    from moescope.intervene.steering.settings import edits_at, parse_setting, parse_strengths
    from moescope.plan import Plan

    plan = Plan.read(settings.plan) if settings.plan else None
    edits = [parse_setting(s) for s in settings.set_]
    if plan is not None:
        edits += _settings_of(plan, settings.as_)
    strengths = parse_strengths(settings.sweep) if settings.sweep else ()
    _check(edits, strengths)
    from moescope.cli.steer_tables import print_steering
    from moescope.measure.identity import describe_model
    from moescope.measure.journal import hold

    out = settings.folder()
    if resume and not (out and strengths):
        raise BadInputError("`resume` goes on with a sweep that was kept; it needs `sweep` and -o")

    def refuse(outline: Outline) -> None:
        if plan is not None:
            plan.require_model(outline.describe())
        edits_at(edits, outline.anatomy, strengths[0] if strengths else None)

    from moescope.report.contents import renew_contents

    with hold(out, "steering", resume=resume) as folder:
        with progress(f"loading {settings.model}") as show:
            loaded = settings.load(refuse, show)
            settings.begin(folder)
            if plan is not None:
                plan.require_model(describe_model(loaded))
            result, followed = _run(settings, loaded, edits, strengths, resume, show)
        if settings.format == "json":
            write_json({**result.to_dict(), "sweep": followed.to_dict() if followed else None})
        else:
            print_steering(result, followed, loaded.anatomy, settings)
        if folder is not None:
            page = _save(result, followed, folder, asked("steer", settings))
            renew_contents(folder, note)
            (errors if settings.format == "json" else output).print(str(page), soft_wrap=True)


def _save(result: SteeringResult, followed: SweepResult | None, folder: Path, command: str) -> Path:
    from moescope.intervene.steering.results import steering_result
    from moescope.measure.journal import drop_journal
    from moescope.report.page import write_page
    from moescope.report.steering_page import steering_page

    made = steering_result(result, followed)
    made.save(folder)
    page = write_page(folder / "steering.html", steering_page(made, command))
    drop_journal(folder)
    return page


def _settings_of(plan: Plan, value: str | None) -> list[Setting]:
    from moescope.intervene.steering.settings import parse_setting
    from moescope.plan import BOOST

    silent = [str(e.expert) for e in plan.entries if e.setting is None]
    if value is None and silent:
        note(
            f"the plan does not say what to do to {listing(silent, 3)}, so {BOOST} is added to the "
            "router's logits; `as=VALUE` does another thing"
        )
    try:
        return [parse_setting(text) for text in plan.settings(value)]
    except BadInputError as error:
        where = "`plan`" if value is None else f"`plan` with `as={value}`"
        raise BadInputError(f"{where}: {error}") from error


def _check(settings: Sequence[Setting], strengths: Sequence[float]) -> None:
    """Refuse what can be refused before a model is read."""
    from moescope.intervene.steering.settings import swept

    if not settings:
        raise BadInputError(
            "nothing to do: give --set, such as --set L1E9=+2.0, or --plan; moescope contrast "
            "proposes experts to steer"
        )
    if strengths:
        swept(settings)
    elif any(s.open for s in settings):
        text = next(s.text for s in settings if s.open)
        raise BadInputError(
            f"--set {text}: s stands for the strength of a sweep; add --sweep, such as "
            "--sweep -4:4:1, or give a number"
        )


def _run(
    given: SteerArgs,
    loaded: LoadedModel,
    settings: Sequence[Setting],
    strengths: Sequence[float],
    resume: bool,
    on_progress: OnProgress,
) -> tuple[SteeringResult, SweepResult | None]:
    """One strength in full, and the sweep over all of them where one is asked for."""
    from moescope.intervene import steer, sweep
    from moescope.intervene.steering.settings import edits_at, swept
    from moescope.models.edits import BY_NAME

    opened = swept(settings) if strengths else []
    kind = next((s.kind for s in opened if s.open), "bias")
    # without a number in --set, the strength that changes most is shown in full
    shown = max(strengths, key=lambda s: (abs(s - BY_NAME[kind].neutral), s)) if strengths else None
    edits = edits_at(settings, loaded.anatomy, shown)
    on_progress(Progress("looking at the prompt, its controls and its text"))
    result = steer(
        loaded, given.prompt, edits, top=given.top, controls=given.controls, **given.options()
    )
    if not strengths:
        return result, None
    followed = sweep(
        loaded,
        given.prompt,
        lambda s: edits_at(opened, loaded.anatomy, s),
        strengths,
        kind=kind,
        folder=given.folder(),
        resume=resume,
        on_progress=on_progress,
        **given.options(),
    )
    return result, followed
