"""`moescope steer`: boost or ablate experts on a prompt, beside the unedited model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from moescope.cli.resume import resumable
from moescope.cli.settings import SEED, finite
from moescope.cli.terminal import errors, output, progress, status, write
from moescope.errors import BadInputError

if TYPE_CHECKING:
    from moescope.intervene.steering.settings import Setting
    from moescope.intervene.steering.steer import SteeringResult, SweepResult
    from moescope.models import LoadedModel
    from moescope.plan import Plan

_HELP = """Boost or ablate experts at one token or everywhere; see what becomes of the text.

--set EXPERTS=VALUE says which experts and what: L1E9=+2.0 or L1E9=-1.5 adds to the router's logit
(the sign must be there), L1E9=x0.5 multiplies the weight, L1E9=mask keeps it from being chosen,
L1E9=zero lets it be chosen but give nothing, L1E9=force brings it in. L1E0-7, L1E* and L*E3 name
several, commas join them. --sweep follows the number over a range.

Example: moescope steer MODEL --prompt "Data collected by Barack Obama" --target 4 --set L1E9=+2.0
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("steer", help=_HELP)(steer)


def steer(
    model: Annotated[str, typer.Argument(help="hub id or folder", metavar="MODEL")],
    prompt: Annotated[str, typer.Option(help="the text that the model goes on from")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="EXPERTS=VALUE, such as L1E9=+2.0; may be repeated"),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="plan of experts, such as moescope contrast writes"),
    ] = None,
    plan_value: Annotated[
        str | None,
        typer.Option("--as", help="VALUE for all experts of a plan that names only them"),
    ] = None,
    target: Annotated[
        list[int] | None,
        typer.Option(
            help="number of a prompt token where the edit holds (negative: from the end); may be "
            "repeated; everywhere unless given"
        ),
    ] = None,
    words: Annotated[
        str | None, typer.Option(help='whose logits to follow, such as "Paris, London"')
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="strengths FROM:TO:STEP, such as -4:4:1, or a list -4,0,4")
    ] = None,
    generate: Annotated[int, typer.Option(min=0, help="tokens to generate; 0 for none")] = 40,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0, callback=finite, help="0: the most probable token; else tokens are drawn"
        ),
    ] = 0.0,
    seed: Annotated[
        int, typer.Option(**SEED, help="of drawing tokens and of choosing controls")
    ] = 0,
    top: Annotated[int, typer.Option(min=1, help="next tokens to show, of each side")] = 10,
    controls: Annotated[
        int, typer.Option(min=0, help="random other experts to try the same edit on; 0 for none")
    ] = 10,
    chat: Annotated[bool, typer.Option("--chat", help="apply the model's chat template")] = False,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="how to print")
    ] = "table",
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="folder for result.json, tables and steering.html"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted sweep of -o FOLDER")
    ] = False,
    dtype: Annotated[str, typer.Option(help="precision; auto: as stored")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code of the model")] = False,
) -> None:
    """Print the comparison."""
    from moescope.cli.steer_tables import print_steering
    from moescope.files import claim
    from moescope.intervene.steering.settings import parse_setting, parse_strengths
    from moescope.measure.identity import describe_model
    from moescope.measure.journal import JOURNAL
    from moescope.models import ModelSpec, load_model
    from moescope.plan import Plan

    if plan_value is not None and plan is None:
        raise BadInputError(f"--as {plan_value}: says what to do to the experts of --plan; give it")
    settings = [parse_setting(s) for s in sets or ()]
    found_plan = Plan.read(plan) if plan else None
    if found_plan is not None:
        settings += _settings_of(found_plan, plan_value)
    strengths = parse_strengths(sweep) if sweep else ()
    _check(settings, strengths)
    options: dict[str, Any] = {
        "targets": target or (),
        "words": words.split(",") if words else (),
        "generate": generate,
        "temperature": temperature,
        "seed": seed,
        "chat": chat,
    }
    if resume and not (out and strengths):
        raise BadInputError("--resume goes on with a sweep that was kept; it needs --sweep and -o")
    place = nullcontext() if out is None else claim(out, "steering")
    with place, resumable(out, JOURNAL):
        with status("loading the model"):
            loaded = load_model(ModelSpec(model, revision, dtype, device, trust_remote_code))
            if found_plan is not None:
                found_plan.require_model(describe_model(loaded))
        kept = {"folder": out, "resume": resume}
        result, followed = _run(loaded, prompt, settings, strengths, top, controls, options, kept)
        if form == "json":
            both = {**result.to_dict(), "sweep": followed.to_dict() if followed else None}
            write(json.dumps(both, ensure_ascii=False) + "\n")
        else:
            print_steering(result, followed, loaded.anatomy)
        if out is not None:
            page = _save(result, followed, Path(out))
            (errors if form == "json" else output).print(str(page), soft_wrap=True)


def _save(result: SteeringResult, followed: SweepResult | None, folder: Path) -> Path:
    from moescope.intervene.steering.results import steering_result
    from moescope.measure.journal import drop_journal
    from moescope.report.page import write_page
    from moescope.report.steering_page import steering_page

    made = steering_result(result, followed)
    made.save(folder)
    page = write_page(folder / "steering.html", steering_page(made))
    drop_journal(folder)
    return page


def _settings_of(plan: Plan, value: str | None) -> list[Setting]:
    from moescope.intervene.steering.settings import parse_setting

    try:
        return [parse_setting(text) for text in plan.settings(value)]
    except BadInputError as error:
        raise BadInputError(f"--plan with --as {value or 'VALUE'}: {error}") from error


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
    loaded: LoadedModel,
    prompt: str,
    settings: Sequence[Setting],
    strengths: Sequence[float],
    top: int,
    controls: int,
    options: dict[str, Any],
    kept: dict[str, Any],
) -> tuple[SteeringResult, SweepResult | None]:
    """One strength in full, and the sweep over all of them where one is asked for."""
    from moescope.intervene import steer, sweep
    from moescope.intervene.steering.settings import edits_at, swept

    opened = swept(settings) if strengths else []
    kind = next((s.kind for s in opened if s.open), "bias")
    neutral = 1.0 if kind == "scale" else 0.0
    # without a number in --set, the strength that changes most is shown in full
    shown = max(strengths, key=lambda s: (abs(s - neutral), s)) if strengths else None
    edits = edits_at(settings, loaded.anatomy, shown)
    with status("looking at the prompt, its controls and its text"):
        result = steer(
            loaded,
            prompt,
            edits,
            top=top,
            controls=controls,
            **options,
        )
    if not strengths:
        return result, None
    with _progress(len(strengths)) as bar:
        followed = sweep(
            loaded,
            prompt,
            lambda s: edits_at(opened, loaded.anatomy, s),
            strengths,
            kind=kind,
            on_point=lambda done, _: bar(done),
            **options,
            **kept,
        )
    return result, followed


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    columns = ("sweep", BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with progress(*columns) as shown:
        task = shown.add_task("sweep", total=total)

        def show(done: int) -> None:
            shown.update(task, completed=done)

        yield show
