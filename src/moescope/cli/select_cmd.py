"""`moescope select`: choose the experts that serve a domain, confirmed on other documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pyarrow as pa
from pydantic import BeforeValidator, Field, model_validator

from moescope.cli.fit import Head
from moescope.cli.settings import ColumnsArgs, FormatArgs
from moescope.cli.tables import print_table, write_json
from moescope.cli.terminal import errors, output
from moescope.cli.verb import Argument, Flag, flagged, note, verb
from moescope.errors import BadInputError
from moescope.files import require_replaceable
from moescope.given import Seed

if TYPE_CHECKING:
    from moescope.adapt.selection import Selection

_COLUMNS = {
    "name": Head("expert", "name", key=True), "score": Head("score"), "rate": Head("rate"),
    "rate_elsewhere": Head("elsewhere", of="rate"), "delta": Head("Δ"),
    "delta_low": Head("low", of="Δ"), "delta_high": Head("high", of="Δ"),
    "q": Head("q", keep=True), "confirmed": Head("confirmed", "name", keep=True),
    "chosen_again": Head("again"), "score_held_out": Head("score held out"),
}  # fmt: skip

_SHOWN, _DOMAINS = 40, 20
"""Rows that are printed."""


def _share(given: Any) -> Any:
    """``5%`` → 0.05."""
    if not isinstance(given, str):
        return given
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*%\s*", given)
    if found is None:
        raise BadInputError(f"`budget` {given!r} is not of the form 5%, a share of all experts")
    return float(found[1]) / 100


class SelectArgs(ColumnsArgs):
    """Everything that `select` can be told."""

    run: Annotated[str, Argument("RUN")]
    """run folder"""
    domain: tuple[str, ...] = ()
    """domain that the experts are to serve; may be repeated"""
    against: tuple[str, ...] = ()
    """domain to compare with; may be repeated; all others by default"""
    score: Literal["token", "gate", "lift", "risk-difference", "random", "least"] = (
        "risk-difference"
    )
    """what ranks the experts"""
    per_layer: int | None = None
    """choose so many experts of each layer"""
    top_p: float | None = None
    """choose the fewest experts of each layer that have so large a share of its score"""
    budget: Annotated[float | None, BeforeValidator(_share), Flag(kind=str)] = None
    """choose so large a share of all experts, such as 5%"""
    plan: str | None = None
    """choose nothing: test the experts of this plan on the documents of RUN"""
    seed: Seed = Field(0, description="of the halves of the documents, and of random")
    out: Annotated[str | None, Flag("-o")] = None
    """file for the plan, such as plan.json"""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        given = {"score": self.score != "risk-difference", "per_layer": self.per_layer,
                 "top_p": self.top_p, "budget": self.budget, "-o": self.out}  # fmt: skip
        if self.plan is not None and (odd := [n for n, v in given.items() if v]):
            name = odd[0] if odd[0] == "-o" else f"`{odd[0]}`"
            raise BadInputError(f"`plan` is tested as it is; {name} has no place, leave it out")
        return self


@verb()
def select(settings: SelectArgs) -> None:
    """Choose the experts that serve a domain on one half of a run's documents; test on the other.

    Give --per-layer, --top-p or --budget. -o writes the plan, which ablate and steer take.
    With --plan nothing is chosen: do the experts of that plan serve the domain in RUN too, on other
    documents? No model is loaded.

    Example: moescope select my-run --domain law --budget 5% -o plan.json

    Example: moescope select other-run --plan plan.json
    """
    if settings.out is not None:
        _require_file(settings.out)
    made = _made(settings)
    if settings.out is not None:
        made.plan.write(settings.out)
    _print(made, settings)


def _require_file(out: str) -> None:
    """Refuse a path that is not that of a plan, before anything is computed."""
    from moescope.plan import PLAN_SIGNATURE

    require_replaceable(out, PLAN_SIGNATURE)
    if not Path(out).suffix:
        raise BadInputError(f"-o {out}: a plan is one file; call it {out}.json")


def _made(settings: SelectArgs) -> Selection:
    from moescope.adapt import confirm_experts, select_experts
    from moescope.plan import Plan

    shared: dict[str, Any] = {"against": settings.against, "seed": settings.seed}
    if settings.plan is not None:
        return confirm_experts(settings.run, Plan.read(settings.plan), settings.domain, **shared)
    return select_experts(
        settings.run, settings.domain, score=settings.score, per_layer=settings.per_layer,
        top_p=settings.top_p, budget=settings.budget, **shared,
    )  # fmt: skip


def _print(made: Selection, settings: SelectArgs) -> None:
    if settings.format == "json":
        write_json(made.to_dict())
        return
    for remark in made.notes:
        note(remark.text)
    if settings.format == "csv":
        print_table(made.to_arrow(), settings)
        return
    for answer in made.answers:
        output.print(flagged(answer), soft_wrap=True)
    table = made.to_arrow()
    known = {n: head for n, head in _COLUMNS.items() if n in table.column_names}
    shown = table.select(list(known)).slice(0, _SHOWN)
    heads = known if settings.columns is None else None
    if settings.columns is not None:
        shown = table.slice(0, _SHOWN)
    whose = "experts of the plan" if settings.plan else "chosen experts"
    title = f"{whose}; rate, Δ and q on documents that did not choose"
    print_table(shown, settings, title, heads)
    if shown.num_rows < table.num_rows:
        errors.print(f"{shown.num_rows} of {table.num_rows} experts; --format csv has all")
    if "domains" in made.tables:
        print_table(
            _domains(made.tables["domains"]), FormatArgs(), "what the plan covers, by domain"
        )
    if settings.out is not None:
        _next_step(settings)


def _domains(table: pa.Table) -> pa.Table:
    """The target first, then those for which most of the plan would be chosen too."""
    keys = ("shared", "covered") if "shared" in table.column_names else ("covered",)
    rows = sorted(table.to_pylist(), key=lambda r: (r["role"] != "target", *(-r[k] for k in keys)))
    made = pa.Table.from_pylist(rows[:_DOMAINS], schema=table.schema)
    names = {"shared_by_chance": "by chance", "chosen_alone": "chosen alone"}
    return made.rename_columns({n: names.get(n, n) for n in made.column_names})


def _next_step(settings: SelectArgs) -> None:
    """What the plan is for, as a command."""
    from shlex import join

    targets = [word for name in settings.domain for word in ("--target", name)]
    path = str(Path(str(settings.out)))
    out = str(Path(settings.run) / f"without-{Path(path).stem}")
    words = ["moescope", "ablate", "--run", settings.run, "--plan", path, *targets, "-o", out]
    output.print("Does the model need them? " + join(words), soft_wrap=True)
