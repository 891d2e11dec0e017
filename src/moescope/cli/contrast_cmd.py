"""`moescope contrast`: which experts work on one set of texts more than on another."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer
from rich import box
from rich.progress import TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from moescope.cli.common import Format, print_table
from moescope.cli.config import parse_layers
from moescope.cli.resume import resumable
from moescope.cli.settings import SEED, finite
from moescope.cli.terminal import errors, output, progress, status, write
from moescope.errors import BadInputError

if TYPE_CHECKING:
    from moescope.intervene.contrast.compare import ContrastResult

_HELP = """Find the experts that work on one set of texts more than on another, to steer by them.

The difference of two rates: of the tokens with the property, and of those without, the share that
chose the expert. With at least 20 texts on each side, experts are chosen on one half and tested on
the other. Confirmed ones are printed as settings for moescope steer. -o keeps result.json, tables,
a page, and plan.json for --plan of steer and ablate; interrupted, it goes on with --resume.

Example: moescope contrast MODEL --with safe.jsonl --without unsafe.jsonl --paired -o told-apart
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("contrast", help=_HELP)(contrast)


def contrast(
    model: Annotated[str, typer.Argument(help="hub id or folder", metavar="MODEL")],
    with_path: Annotated[
        str, typer.Option("--with", help="texts with the property: file, folder or hf:owner/name")
    ],
    without_path: Annotated[str, typer.Option("--without", help="texts without it")],
    paired: Annotated[
        bool, typer.Option("--paired", help="text n of the one belongs to text n of the other")
    ] = False,
    span: Annotated[
        Literal["all", "differing", "shared"],
        typer.Option(help="tokens of a pair that count: all, those that differ, those in both"),
    ] = "all",
    holdout: Annotated[
        bool | None,
        typer.Option(
            "--holdout/--no-holdout",
            help="choose on one half, test on the other; by default from 20 texts a side on",
        ),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="experts to choose, by the size of the difference")
    ] = 10,
    strength: Annotated[
        float,
        typer.Option(callback=finite, help="logits that the proposed settings add or take away"),
    ] = 2.0,
    top: Annotated[int, typer.Option(min=1, help="rows to print; csv and json have all")] = 15,
    layers: Annotated[str | None, typer.Option(help="MoE layers, such as 0,3,8-11")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="budget of each side, whole texts")] = 100_000,
    text_field: Annotated[str, typer.Option(help="field of a record that holds its text")] = "text",
    text_unit: Annotated[
        Literal["paragraph", "line", "file"],
        typer.Option(help="what one text of a .txt or .md file is"),
    ] = "paragraph",
    context: Annotated[int | None, typer.Option(min=2, help="longest window in tokens")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="wrap texts in the chat template")] = False,
    chat_text: Annotated[
        bool,
        typer.Option("--chat-text", help="texts are rendered chats: read their control tokens"),
    ] = False,
    seed: Annotated[int, typer.Option(**SEED, help="of halves and resampling")] = 0,
    form: Annotated[Format, typer.Option("--format", help="how to print")] = "table",
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="folder for result, page and plan")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with an interrupted contrast of -o FOLDER")
    ] = False,
    dtype: Annotated[str, typer.Option(help="precision; auto: as stored")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run code of the model")] = False,
) -> None:
    """Print the differences and the settings to steer by."""
    from moescope.corpus import CorpusSpec
    from moescope.files import claim
    from moescope.intervene.contrast.compare import contrast as compare
    from moescope.intervene.contrast.result import CONTRAST
    from moescope.measure.journal import JOURNAL
    from moescope.models import ModelSpec, load_model
    from moescope.run.options import TraceOptions

    if not strength > 0:
        raise BadInputError(f"--strength {strength:g}: give logits above 0")
    if chat and chat_text:
        raise BadInputError("--chat wraps plain texts, --chat-text reads rendered chats; give one")
    wanted = None if layers is None else parse_layers(layers)
    sides = [
        CorpusSpec(path=path, text_field=text_field, text_unit=text_unit, domain=name)
        for path, name in ((with_path, "with"), (without_path, "without"))
    ]
    if resume and out is None:
        raise BadInputError("--resume goes on with what was kept; it needs -o FOLDER")
    reads = [with_path, without_path]
    place = nullcontext() if out is None else claim(out, CONTRAST, reads=reads)
    with place, resumable(out, JOURNAL):
        with status("loading the model"):
            loaded = load_model(ModelSpec(model, revision, dtype, device, trust_remote_code))
        with _progress() as count:
            made = compare(
                loaded,
                sides[0],
                sides[1],
                paired=paired,
                span=span,
                holdout=holdout,
                candidates=candidates,
                layers=wanted,
                tokens=tokens,
                options=TraceOptions(
                    context=context, chat_template=chat, chat_text=chat_text, seed=seed
                ),
                folder=out,
                resume=resume,
                on_tokens=count,
            )
        _show(made, form, top, strength)
        if out is not None:
            page = _save(made, strength, Path(out))
            (output if form == "table" else errors).print(str(page), soft_wrap=True)


def _save(made: ContrastResult, strength: float, folder: Path) -> Path:
    from moescope.intervene.contrast.result import contrast_result
    from moescope.measure.journal import drop_journal
    from moescope.report.contrast_page import contrast_page
    from moescope.report.page import write_page

    result = contrast_result(made, strength)
    result.save(folder)
    if result.about["settings"]:
        made.plan(strength).write(folder / "plan.json")
    else:
        errors.print("no plan was written: no expert's difference is confirmed", style="yellow")
    page = write_page(folder / "contrast.html", contrast_page(result))
    drop_journal(folder)
    return page


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    with progress("{task.completed:,.0f} tokens", TimeElapsedColumn()) as shown:
        task = shown.add_task("tokens", total=None)

        def count(tokens: int) -> None:
            shown.advance(task, tokens)

        yield count


def _show(made: ContrastResult, form: Format, top: int, strength: float) -> None:
    if form == "csv":
        print_table(made.to_arrow(), form)
    elif form == "json":
        write(json.dumps(made.to_dict(strength), ensure_ascii=False) + "\n")
    else:
        _tables(made, top, strength)


def _tables(made: ContrastResult, top: int, strength: float) -> None:
    what = "pairs" if made.paired else "texts"
    counted = {"all": "", "differing": ", tokens that differ", "shared": ", tokens that both have"}
    (n, m), (t, u) = made.num_documents, made.num_tokens
    output.print(
        f"with: {n:,} texts, {t:,} tokens; without: {m:,} texts, {u:,} tokens"
        f"{' (pairs' + counted[made.span] + ')' if made.paired else ''}"
    )
    for note in made.notes:
        output.print(Text.assemble(("note ", "bold yellow"), (note, "yellow")))
    output.print()
    _differences(made, top)
    a, b = made.shared_tokens
    output.print(
        f"Δ: rate with minus rate without; interval and p over {what}, q over all "
        f"{len(made.columns['delta'])} experts. by token: what Δ would be if the token id alone "
        f"decided, beside Δ shared, both over tokens whose id occurs on both sides ({100 * a:.0f} %"
        f" and {100 * b:.0f} % of them).",
        style="dim",
    )
    output.print()
    _proposals(made)
    settings = made.settings(strength)
    if settings:
        flags = " ".join(f"--set {s}" for s in settings)
        output.print("To steer by the confirmed ones:", style="bold")
        command = f'moescope steer {shlex.quote(made.model["name"])} --prompt "…" {flags}'
        output.print(command, soft_wrap=True)
    else:
        output.print("No expert's difference is confirmed: nothing to steer by.", style="bold")


def _differences(made: ContrastResult, top: int) -> None:
    table = _table(f"The {top} largest differences, over all texts")
    table.add_column("expert", justify="left")
    for name in ("with %", "without %", "Δ", "95 %", "q", "Δ shared", "by token"):
        table.add_column(name, justify="right")
    c = made.columns
    for i in np.argsort(-np.nan_to_num(np.abs(c["delta"])), kind="stable")[:top]:
        table.add_row(
            str(c["name"][i]),
            f"{100 * c['rate_with'][i]:.1f}",
            f"{100 * c['rate_without'][i]:.1f}",
            _points(c["delta"][i]),
            _interval(c["ci_low"][i], c["ci_high"][i]),
            _small(c["q"][i]),
            _points(c["delta_shared"][i]),
            _points(c["by_token"][i]),
        )
    output.print(table)


def _proposals(made: ContrastResult) -> None:
    title = (
        "Chosen by Δ on one half of the texts, tested on the other"
        if made.holdout
        else "The largest again, as candidates to steer (the same texts chose and tested)"
    )
    table = _table(title)
    table.add_column("expert", justify="left")
    for name in ("Δ chosen", "Δ tested", "95 %", "q", "Δ shared", "by token"):
        table.add_column(name, justify="right")
    table.add_column("to do", justify="left")
    for p in made.proposals:
        table.add_row(
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
    output.print(table)
    output.print(
        "Δ chosen: on the texts that chose; the rest: on those that test. – : not confirmed, q "
        "(over the candidates) is 0.05 or more, or the sign turned."
        if made.holdout
        else "– : not confirmed, q (over all experts) is 0.05 or more.",
        style="dim",
    )
    output.print()


def _table(title: str) -> Table:
    output.print(Text(title, style="bold italic"))  # a table's own title is folded at its width
    return Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )


def _points(value: float) -> str:
    """A difference of rates in percentage points."""
    return f"{100 * value:+.1f}" if np.isfinite(value) else "–"


def _interval(low: float, high: float) -> str:
    return f"{100 * low:+.1f}…{100 * high:+.1f}" if np.isfinite(low) else "–"


def _small(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"
