"""`moescope ablate`: what is lost without some experts, or without each one of a layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
import typer
from rich.progress import Progress

from moescope.cli.ablate_config import AblateConfig, resolve_ablation
from moescope.cli.common import Format, print_table, write_config
from moescope.cli.resume import resumable
from moescope.cli.settings import optional, parameter, sign
from moescope.cli.terminal import bar, errors, output

if TYPE_CHECKING:
    from moescope.intervene import Damage, ExpertSweep
    from moescope.measure.trials import OnProgress
    from moescope.measure.windows import TextWindow
    from moescope.models import LoadedModel
    from moescope.result import Result

_HELP = """Take experts away and measure the damage, by domain, beside random experts of like load.

Say which with --plan or --experts, or take each expert of --layers on its own with --each, which
ranks them and tells which routing statistics would have foretold it. Writes result.json, tables
and a page. Interrupted, it goes on with --resume.

Example: moescope ablate MODEL --experts L5E9,L3E0-3 --corpus texts/ --target law -o removed

Example: moescope ablate MODEL --each --layers 3 --corpus texts/ -o layer3
"""

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


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("ablate", help=_HELP)(_with_options(ablate))


def ablate(config: AblateConfig, resume: bool, form: Format) -> None:
    """Measure, write, and print what was found."""
    from moescope.files import claim
    from moescope.intervene.ablation import ablation_result
    from moescope.intervene.damage.measure import ABLATION
    from moescope.models import load_model
    from moescope.report.ablation_page import ablation_page
    from moescope.report.page import write_page

    folder = config.folder()
    reads = [] if config.corpus is None else [config.corpus]
    with claim(folder, ABLATION, reads=reads):
        with _progress() as show:
            show(f"loading {config.model}")
            loaded = load_model(config.model_spec())
            show("reading the text")
            windows = config.windows(loaded)
            show("measuring")
            found = _measure(config, loaded, windows, folder, resume, show.update)
        result = ablation_result(found, config.source())
        result.save(folder)
        page = write_page(folder / "ablation.html", ablation_page(result))
        write_config(folder, config.model_dump(), begun=resume)
    _print(found, result, form)
    errors.print(str(page), soft_wrap=True)


def _measure(
    config: AblateConfig,
    loaded: LoadedModel,
    windows: list[TextWindow],
    folder: Path,
    resume: bool,
    on_progress: OnProgress,
) -> Damage | ExpertSweep:
    from moescope.intervene import measure_damage, sweep_experts

    shared: dict[str, Any] = {
        "edit": config.edit, "targets": config.target, "seed": config.seed,
        "batch_tokens": config.batch_tokens, "folder": folder, "resume": resume,
        "on_progress": on_progress,
    }  # fmt: skip
    if config.each:
        return sweep_experts(loaded, windows, config.layer_numbers(), **shared)
    experts = config.chosen_experts()
    return measure_damage(
        loaded, windows, experts, controls=config.controls, match=config.match, **shared
    )


def _print(found: Damage | ExpertSweep, result: Result, form: Format) -> None:
    """Sentences and tables; as csv and json the whole table of damages alone."""
    from moescope.intervene import ExpertSweep

    for note in result.notes:
        style = "yellow" if note.level == "warn" else ""
        errors.print(f"note: {note.text}", style=style, soft_wrap=True)
    if form != "table":
        print_table(found.to_arrow(), form)
        return
    for answer in result.answers:
        output.print(answer, soft_wrap=True)
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


class _Show:
    """A line on stderr: what is done, how far, tokens a second, time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None, figures="")
        self._first: tuple[float, int] | None = None

    def __call__(self, words: str) -> None:
        self._progress.update(self._task, description=words)

    def update(self, done: int, total: int, tokens: int) -> None:
        """Edited passes done, of all, and the tokens that were scored in them."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, tokens)
        seconds, made = now - self._first[0], tokens - self._first[1]
        rate = f" · {made / seconds:,.0f} tok/s" if seconds > 0.5 else ""
        self._progress.update(
            self._task, completed=done, total=total, figures=f"{done}/{total} edited passes{rate}"
        )


@contextmanager
def _progress() -> Iterator[_Show]:
    with bar("figures") as progress:
        yield _Show(progress)


def _with_options(body: Callable[[AblateConfig, bool, Format], None]) -> Callable[..., None]:
    """Give the command the flags of `AblateConfig`."""

    def command(**given: Any) -> None:
        resume, form, config = (given.pop(n) for n in ("resume", "form", "config"))
        known = {k: v for k, v in given.items() if v is not None and v != []}
        settings = resolve_ablation(known, config)
        with resumable(settings.folder(), "measured.jsonl"):
            body(settings, resume, form)

    parameters = []
    for name, field in AblateConfig.model_fields.items():
        flag = "--" + name.replace("_", "-")
        hint = str(field.description)
        if field.default not in (None, True, False, "") and not field.is_required():
            hint += f" [{field.default}]" if isinstance(field.default, int | str) else ""
        kind: Any = typer.Option(flag, help=hint)
        if name == "model":
            kind = typer.Argument(help=hint, metavar="MODEL")
        elif name == "out":
            kind = typer.Option(flag, "-o", help=hint)
        elif field.annotation is bool:
            kind = typer.Option(f"{flag}/--no-{flag[2:]}", help=hint)
        parameters.append(parameter(name, Annotated[optional(field.annotation), kind], None))
    resume = typer.Option("--resume", help="go on with an interrupted measurement")
    form = typer.Option("--format", help="how to print")
    config = typer.Option("--config", help="YAML file with any of these settings")
    parameters.append(parameter("resume", Annotated[bool, resume], False))
    parameters.append(parameter("form", Annotated[Format, form], "table"))
    parameters.append(parameter("config", Annotated[Path | None, config], None))
    return sign(command, parameters, body)
