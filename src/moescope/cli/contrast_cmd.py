"""`moescope contrast`: which experts work on one set of texts more than on another."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from rich.text import Text

from moescope.cli.asked import asked
from moescope.cli.fit import Head
from moescope.cli.of_run import OfRunArgs
from moescope.cli.settings import CorpusArgs, FormatArgs, LayersArgs
from moescope.cli.tables import Sheet, print_table, write_json
from moescope.cli.terminal import errors, output, progress
from moescope.cli.verb import flagged, note, verb
from moescope.errors import BadInputError
from moescope.words import counted

if TYPE_CHECKING:
    from moescope.intervene.contrast.result import ContrastResult


class ContrastArgs(OfRunArgs, CorpusArgs, LayersArgs, FormatArgs):
    """Everything that `contrast` can be told."""

    kept_as: ClassVar[str] = "contrast"

    with_: str
    """texts with the property: file, folder or hf:owner/name"""
    without: str
    """texts without it"""
    paired: bool = False
    """text n of the one belongs to text n of the other"""
    span: Literal["all", "differing", "shared"] = "all"
    """tokens of a pair that count: all, those that differ, those in both"""
    holdout: bool | None = None
    """choose on one half, test on the other; by default from 20 texts a side on"""
    candidates: int = Field(10, ge=1, description="experts to choose, by size of the difference")
    strength: float = Field(
        2.0, gt=0, description="logits that the proposed settings add or take away"
    )
    rows: int = Field(15, ge=1, description="rows to print; csv and json have all")
    tokens: int = Field(100_000, ge=1, description="tokens of each side, whole texts")

    @model_validator(mode="after")
    def _span_of_pairs(self) -> Self:
        if self.span != "all" and not self.paired:
            raise BadInputError(
                f"`span={self.span}` compares the members of a pair; it needs `paired`"
            )
        return self


@verb(marks=("measured.jsonl",))
def contrast(settings: ContrastArgs, resume: bool) -> None:
    """Find the experts that work on one set of texts more than on another, to steer by them.

    The difference of two rates: of the tokens with the property, and of those without, the share
    that chose the expert. With at least 20 texts on each side, experts are chosen on one half and
    tested on the other. Confirmed ones are printed as settings for moescope steer; -o keeps tables,
    page and a plan.

    Example: moescope contrast MODEL --with safe.jsonl --without unsafe.jsonl --paired -o safety
    """
    out = settings.folder()
    if resume and out is None:
        raise BadInputError("`resume` goes on with what was kept; it needs -o FOLDER")
    sides = [
        settings.corpus_spec(path, domain=name)
        for path, name in ((settings.with_, "with"), (settings.without, "without"))
    ]
    from moescope.intervene.contrast.compare import contrast as compare
    from moescope.intervene.contrast.result import CONTRAST
    from moescope.measure.journal import hold
    from moescope.report.contents import renew_contents

    reads = [settings.with_, settings.without]
    with hold(out, CONTRAST, reads=reads, resume=resume) as folder:
        with progress(f"loading {settings.model}") as show:
            loaded = settings.load(on_progress=show)
            settings.begin(folder)
            made = compare(
                loaded, *sides, paired=settings.paired, span=settings.span,
                holdout=settings.holdout, candidates=settings.candidates, layers=settings.layers,
                tokens=settings.tokens, options=settings.trace_options(), folder=out,
                resume=resume, on_progress=show,
            )  # fmt: skip
        _show(made, settings)
        if folder is not None:
            page = _save(made, settings.strength, folder, asked("contrast", settings))
            renew_contents(folder, note)
            (output if settings.format == "table" else errors).print(str(page), soft_wrap=True)


def _save(made: ContrastResult, strength: float, folder: Path, command: str) -> Path:
    from moescope.intervene.contrast.result import contrast_result
    from moescope.measure.journal import drop_journal
    from moescope.report.contrast_page import contrast_page
    from moescope.report.page import write_page

    result = contrast_result(made, strength)
    result.save(folder)
    if result.about["settings"]:
        made.plan(strength).write(folder / "plan.json")
    else:
        note("no plan was written: no expert's difference is confirmed")
    page = write_page(folder / "contrast.html", contrast_page(result, command))
    drop_journal(folder)
    return page


def _show(made: ContrastResult, settings: ContrastArgs) -> None:
    if settings.format == "csv":
        print_table(made.to_arrow(), settings)
    elif settings.format == "json":
        write_json(made.to_dict(settings.strength))
    else:
        _tables(made, settings)


def _tables(made: ContrastResult, given: ContrastArgs) -> None:
    what = "pairs" if made.paired else "texts"
    spans = {"all": "", "differing": ", tokens that differ", "shared": ", tokens that both have"}
    (n, m), (t, u) = made.num_documents, made.num_tokens
    for i, answer in enumerate(made.answers()):
        output.print(Text(flagged(answer), style="bold" if i == 0 else ""), soft_wrap=True)
    output.print(
        f"with: {counted(n, 'text')}, {counted(t, 'token')}; without: {counted(m, 'text')}, "
        f"{counted(u, 'token')}{' (pairs' + spans[made.span] + ')' if made.paired else ''}"
    )
    for remark in made.notes:
        note(remark)
    output.print()
    _differences(made, given)
    a, b = made.shared_tokens
    output.print(
        f"Δ: rate with minus rate without; interval and p over {what}, q over all "
        f"{len(made.columns['delta'])} experts. by token: what Δ would be if the token id alone "
        f"decided, beside Δ shared, both over tokens whose id occurs on both sides ({100 * a:.0f} %"
        f" and {100 * b:.0f} % of them).",
        style="dim",
    )
    output.print()
    _proposals(made, given)
    settings = made.settings(given.strength)
    if settings:
        flags = " ".join(f"--set {s}" for s in settings)
        output.print("To steer by the confirmed ones:", style="bold")
        command = f'moescope steer {shlex.quote(made.model["name"])} --prompt "…" {flags}'
        output.print(command, soft_wrap=True)


_DELTA = (Head("Δ", keep=True), Head("95 %", keep=True), Head("q", keep=True))


def _differences(made: ContrastResult, given: ContrastArgs) -> None:
    c = made.columns
    largest = np.argsort(-np.nan_to_num(np.abs(c["delta"])), kind="stable")[: given.rows]
    table = Sheet(
        f"The {len(largest)} largest differences, over all texts",
        "<expert", "with %", "without %", *_DELTA, "Δ shared", "by token",
    )  # fmt: skip
    for i in largest:
        table.add(
            str(c["name"][i]),
            f"{100 * c['rate_with'][i]:.1f}",
            f"{100 * c['rate_without'][i]:.1f}",
            _points(c["delta"][i]),
            _interval(c["ci_low"][i], c["ci_high"][i]),
            _small(c["q"][i]),
            _points(c["delta_shared"][i]),
            _points(c["by_token"][i]),
        )
    table.print(given)


def _proposals(made: ContrastResult, given: ContrastArgs) -> None:
    title = (
        "Chosen by Δ on one half of the texts, tested on the other"
        if made.holdout
        else "The largest again, as candidates to steer (the same texts chose and tested)"
    )
    columns = ("Δ chosen", Head("Δ tested", keep=True), *_DELTA[1:], "Δ shared", "by token")
    table = Sheet(title, "<expert", *columns, Head("to do", "name", keep=True))
    for p in made.proposals:
        table.add(
            p.expert,
            _points(p.delta_chosen_on),
            _points(p.delta),
            _interval(p.low, p.high),
            _small(p.q),
            _points(p.delta_shared),
            _points(p.by_token),
            ("boost" if p.boost else "suppress") if p.confirmed else "–",
            style="" if p.confirmed else "dim",
        )
    table.print(given)
    output.print(
        "Δ chosen: on the texts that chose; the rest: on those that test. – : not confirmed, q "
        "(over the candidates) is 0.05 or more, or the sign turned."
        if made.holdout
        else "– : not confirmed, q (over all experts) is 0.05 or more.",
        style="dim",
    )
    output.print()


def _points(value: float) -> str:
    """A difference of rates in percentage points."""
    return f"{100 * value:+.1f}" if np.isfinite(value) else "–"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:+.1f}…{100 * high:+.1f}" if np.isfinite(low) else "–"


def _small(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
