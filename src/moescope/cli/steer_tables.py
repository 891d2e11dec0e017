"""What `moescope steer` prints: the comparison as a reader would want to walk through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from moescope.cli.tables import listing
from moescope.cli.terminal import output
from moescope.cli.verb import note
from moescope.intervene.steering.prompts import visible
from moescope.words import percent

if TYPE_CHECKING:
    from moescope.intervene.steering.controls import Controls
    from moescope.intervene.steering.distributions import Shift
    from moescope.intervene.steering.results import SteeringResult, SweepResult
    from moescope.intervene.steering.results import Text as Written
    from moescope.intervene.steering.use import Choice, ExpertUse
    from moescope.models import Anatomy

_MOST_TOKENS = 60
_MOST_ROWS = 12
_SHIFT = ("before", "after", "Δ log p", "Δ logit", "rank")


def print_steering(result: SteeringResult, swept: SweepResult | None, anatomy: Anatomy) -> None:
    """Print everything on stdout."""
    _head(result)
    _routing(result, anatomy)
    _next_token(result)
    if result.words:
        _words(result)
    if result.controls is not None:
        _controls(result, result.controls)
    if result.before is not None and result.after is not None:
        _texts(result, result.before, result.after)
    if swept is not None:
        _sweep(swept)


def _head(result: SteeringResult) -> None:
    for edit in result.edits:
        output.print(Text.assemble(("edit    ", "dim"), (edit, "bold")), soft_wrap=True)
    output.print(Text.assemble(("where   ", "dim"), result.where()))
    line = Text("tokens  ", style="dim")
    for i in _shown_positions(len(result.prompt), result.targets):
        if i is None:
            line.append(" … ", style="dim")
            continue
        hit = result.targets is not None and i in result.targets
        line.append(f"[{i} " if hit else f"{i} ", style="not dim bold" if hit else "dim")
        line.append(visible(result.prompt.pieces[i]), style="not dim bold" if hit else "not dim")
        line.append("]  " if hit else "  ", style="not dim bold")
    output.print(line)
    for remark in result.effect.notes:
        note(remark)
    output.print()
    for sentence in result.summary():
        output.print(Text(sentence, style="bold"))
    output.print()


def _shown_positions(length: int, targets: Sequence[int] | None) -> list[int | None]:
    """All positions, or the ends and the targets' neighbours of a long prompt; None for a gap."""
    if length <= _MOST_TOKENS:
        return list(range(length))
    near = {i + d for i in (targets or ())[:8] for d in (-2, -1, 0, 1, 2)}
    kept = sorted({i for i in {*range(10), *range(length - 20, length), *near} if 0 <= i < length})
    shown: list[int | None] = []
    for i in kept:
        if shown and shown[-1] is not None and i > shown[-1] + 1:
            shown.append(None)
        shown.append(i)
    return shown


def _routing(result: SteeringResult, anatomy: Anatomy) -> None:
    edited = {u.expert for u in result.uses}
    where = "the last token" if result.targets is None else "the target"
    if not result.choices:
        return
    title = f"Routing of {where}: experts and their weights"
    table = listing(title, "<token", "<layer", "<before", "<after")
    for choice in result.choices[:_MOST_ROWS]:
        piece = visible(result.prompt.pieces[choice.position])
        table.add_row(
            Text(f"{choice.position} {piece}"),
            str(choice.layer_idx),
            _experts(choice, choice.before, edited),
            _experts(choice, choice.after, edited),
        )
    output.print(table)
    hidden = len(result.choices) - _MOST_ROWS
    if hidden > 0:
        output.print(f"and {hidden} more rows; --format json has all", style="dim")
    busiest = sorted(result.uses, key=lambda u: -(u.chosen_before + u.chosen_after))[:_MOST_ROWS]
    for use in sorted(busiest, key=result.uses.index):
        output.print(_use(use, anatomy), soft_wrap=True)
    if len(result.uses) > _MOST_ROWS:
        output.print(f"and {len(result.uses) - _MOST_ROWS} more experts", style="dim")
    output.print()


def _experts(choice: Choice, side: Sequence[tuple[int, float]], edited: set[str]) -> Text:
    text = Text()
    for expert, weight in side:
        mine = f"L{choice.layer_idx}E{expert}" in edited
        text.append(f"E{expert}", style="bold yellow" if mine else "bold")
        text.append(f"\u00a0{weight:.3f}  ", style="yellow" if mine else "dim")
    return text


def _use(use: ExpertUse, anatomy: Anatomy) -> Text:
    layer = int(use.expert[1:].split("E")[0])
    of = next(m.num_experts for m in anatomy.layers if m.layer_idx == layer)
    places = "1 token" if use.positions == 1 else f"{use.positions} tokens"
    line = Text.assemble(
        (use.expert, "bold"),
        f" chosen at {use.chosen_before} of {places} before, {use.chosen_after} after",
    )
    if use.positions == 1:
        line.append(f"; its logit was number {use.rank_before} of {of}")
    if use.written_before is not None and use.written_after is not None:
        (a, n), (b, m) = use.written_before, use.written_after
        line.append(f"; in the generated text {a} of {n} before, {b} of {m} after")
    return line


def _next_token(result: SteeringResult) -> None:
    table = listing("Next token: probability before and after", "<token", *_SHIFT)
    for token in result.tokens:
        table.add_row(Text(visible(token.text)), *_shift(token.shift))
    output.print(table)
    output.print(
        f"KL(before‖after) {result.kl:.3g} nats; entropy {result.entropy_before:.3f} → "
        f"{result.entropy_after:.3f} nats\n"
    )


def _words(result: SteeringResult) -> None:
    table = listing("Chosen words, each by its first token", "<word", "<token", *_SHIFT)
    for word, s in result.words:
        table.add_row(
            Text(word.word if word.main else "", style="bold"),
            Text(
                visible(word.text) + ("" if word.num_tokens == 1 else f" (1 of {word.num_tokens})")
            ),
            *_shift(s),
        )
    output.print(table)
    if any(w.word.num_tokens > 1 for w in result.words):
        output.print("1 of n: the word is n tokens, and only the first is followed", style="dim")
    output.print()


def _controls(result: SteeringResult, controls: Controls) -> None:
    if controls.kl is None or not max(result.kl, *(c.kl for c in controls.draws)) > 0:
        return  # the summary has said all there is to say
    n = len(controls.draws)
    followed = [i for i, (word, _) in enumerate(result.words) if word.main]
    title = f"The same edit on {n} other expert{'s' if n > 1 else ''} of the same layers"
    moved = [f"Δ logit {visible(result.words[i].word.text)}" for i in followed]
    table = listing(title, "<experts", "chosen there", "KL", *moved)
    here = sum(u.chosen_before for u in result.uses)
    mine = [_signed(result.words[i].shift.logit_change) for i in followed]
    chosen = _names([u.expert for u in result.uses])
    table.add_row(Text(chosen), str(here), f"{result.kl:.3g}", *mine, style="bold yellow")
    for draw in sorted(controls.draws, key=lambda d: -d.kl):
        moved = [_signed(draw.word_changes[i]) for i in followed]
        table.add_row(Text(_names(draw.experts)), str(draw.positions), f"{draw.kl:.3g}", *moved)
    output.print(table)
    lines = [f"KL: number {controls.kl.rank} of {n + 1}, p = {controls.kl.p:.2g}"]
    for i in followed:
        stands, text = controls.words[i], visible(result.words[i].word.text)
        lines.append(f"|Δ logit| of {text}: number {stands.rank}, p = {stands.p:.2g}")
    output.print(Text(f"{'; '.join(lines)} (at best {1 / (n + 1):.2g})"))
    if controls.chosen_only:
        output.print(
            "Controls are experts that were chosen where the edit holds; to others it can do "
            "nothing.",
            style="dim",
        )
    if controls.note:
        note(controls.note, "")
    output.print()


def _names(experts: Sequence[str]) -> str:
    more = len(experts) - 4
    return " ".join(experts[:4]) + (f" and {more} more" if more > 0 else "")


def _texts(result: SteeringResult, before: Written, after: Written) -> None:
    drawn = "" if not result.temperature else f", temperature {result.temperature:g}"
    if result.first_difference is None:
        output.print(f"The generated text is the same before and after{drawn}:", style="bold")
        output.print(Text("".join(before.pieces)))
    else:
        shared = result.first_difference
        where = f"the same for {shared} tokens" if shared else "another one from the first token on"
        table = listing(f"Generated text: {where}{drawn}", "<before", "<after")
        table.expand = True
        for column in table.columns:
            column.ratio = 1
        table.add_row(*(_marked(w, result.first_difference) for w in (before, after)))
        output.print(table)
    output.print()


def _marked(written: Written, first: int) -> Text:
    text = Text("".join(written.pieces[:first]), style="dim")
    for i, piece in enumerate(written.pieces[first:]):
        text.append(piece, style="not dim bold yellow" if i == 0 else "not dim")
    return text


def _sweep(swept: SweepResult) -> None:
    followed = [i for i, word in enumerate(swept.words) if word.main]
    moved = [f"Δ logit {visible(swept.words[i].text)}" for i in followed]
    columns = (swept.unit, "chosen", "KL", "entropy", "<next token", *moved)
    table = listing("Sweep over the strength", *columns)
    for p in swept.points:
        table.add_row(
            f"{p.strength:g}",
            f"{p.chosen}/{p.places}",
            f"{p.kl:.3g}",
            f"{p.entropy:.3f}",
            Text(f"{visible(p.token)} {percent(p.prob)}"),
            *(_signed(p.words[i].logit_change) for i in followed),
        )
    output.print(table)
    if swept.before is None:
        return
    output.print()
    texts = listing("Text at each strength", swept.unit, "<text")
    for p in swept.points:
        same = p.text is None or p.first_difference is None
        written = "" if p.text is None else "".join(p.text.pieces).replace("\n", "⏎")
        text = "as unedited" if same else written
        texts.add_row(f"{p.strength:g}", Text(text, style="dim" if same else ""))
    output.print(texts)


def _shift(s: Shift) -> tuple[str, ...]:
    """The cells of `_SHIFT`."""
    return (
        percent(s.prob_before), percent(s.prob_after), _signed(s.log_prob_change),
        _signed(s.logit_change), _ranks(s.rank_before, s.rank_after),
    )  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) >= 5e-4 else ("0" if value == 0 else f"{value:+.1e}")


def _ranks(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
