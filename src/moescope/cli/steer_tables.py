"""What `moescope steer` prints: the comparison as a reader would want to walk through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from moescope.cli.fit import Head
from moescope.cli.settings import WideArgs
from moescope.cli.tables import Sheet
from moescope.cli.terminal import output
from moescope.cli.verb import flagged, note
from moescope.intervene.steering.prompts import visible
from moescope.words import counted

if TYPE_CHECKING:
    from moescope.intervene.steering.controls import Controls
    from moescope.intervene.steering.distributions import Shift
    from moescope.intervene.steering.results import SteeringResult, SweepResult
    from moescope.intervene.steering.results import Text as Written
    from moescope.intervene.steering.use import Choice, ExpertUse
    from moescope.models import Anatomy

_MOST_TOKENS = 60
_MOST_ROWS = 12
_SHIFT = (
    Head("before", percent=True), Head("after", percent=True), "Δ log p", "Δ logit", "rank",
)  # fmt: skip


def print_steering(
    result: SteeringResult, swept: SweepResult | None, anatomy: Anatomy, form: WideArgs
) -> None:
    """Print everything on stdout."""
    _head(result)
    _routing(result, anatomy, form)
    _next_token(result, form)
    if result.words:
        _words(result, form)
    if result.controls is not None:
        _controls(result, result.controls, form)
    if result.before is not None and result.after is not None:
        _texts(result, result.before, result.after, form)
    if swept is not None:
        _sweep(swept, form)


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
        output.print(Text(flagged(sentence), style="bold"))
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


def _routing(result: SteeringResult, anatomy: Anatomy, form: WideArgs) -> None:
    edited = {u.expert for u in result.uses}
    where = "the last token" if result.targets is None else "the target"
    if not result.choices:
        return
    title = f"Routing of {where}: experts and their weights"
    sides = (Head(name, "words", keep=True) for name in ("before", "after"))
    table = Sheet(title, "<token", Head("layer", key=True), *sides)
    for choice in result.choices[:_MOST_ROWS]:
        piece = visible(result.prompt.pieces[choice.position])
        table.add(
            f"{choice.position} {piece}",
            choice.layer_idx,
            _experts(choice, choice.before, edited),
            _experts(choice, choice.after, edited),
        )
    table.print(form)
    hidden = len(result.choices) - _MOST_ROWS
    if hidden > 0:
        output.print(f"and {counted(hidden, 'more row')}; --format json has all", style="dim")
    busiest = sorted(result.uses, key=lambda u: -(u.chosen_before + u.chosen_after))[:_MOST_ROWS]
    for use in sorted(busiest, key=result.uses.index):
        output.print(_use(use, anatomy), soft_wrap=True)
    if len(result.uses) > _MOST_ROWS:
        more = counted(len(result.uses) - _MOST_ROWS, "more expert")
        output.print(f"and {more}", style="dim")
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
    places = counted(use.positions, "token")
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


def _next_token(result: SteeringResult, form: WideArgs) -> None:
    table = Sheet("Next token: probability before and after", "<token", *_SHIFT, digits=3)
    for token in result.tokens:
        table.add(visible(token.text), *_shift(token.shift))
    table.print(form)
    output.print(
        f"KL(before‖after) {result.kl:.3g} nats; entropy {result.entropy_before:.3f} → "
        f"{result.entropy_after:.3f} nats\n"
    )


def _words(result: SteeringResult, form: WideArgs) -> None:
    table = Sheet("Chosen words, each by its first token", "<word", "<token", *_SHIFT, digits=3)
    for word, s in result.words:
        table.add(
            Text(word.word if word.main else "", style="bold"),
            visible(word.text) + ("" if word.num_tokens == 1 else f" (1 of {word.num_tokens})"),
            *_shift(s),
        )
    table.print(form)
    if any(w.word.num_tokens > 1 for w in result.words):
        output.print("1 of n: the word is n tokens, and only the first is followed", style="dim")
    output.print()


def _controls(result: SteeringResult, controls: Controls, form: WideArgs) -> None:
    if controls.kl is None or not max(result.kl, *(c.kl for c in controls.draws)) > 0:
        return  # the summary has said all there is to say
    n = len(controls.draws)
    followed = [i for i, (word, _) in enumerate(result.words) if word.main]
    title = f"The same edit on {counted(n, 'other expert')} of the same layers"
    moved = [f"Δ logit {visible(result.words[i].word.text)}" for i in followed]
    table = Sheet(title, "<experts", Head("KL", keep=True), "chosen there", *moved, digits=3)
    own = f"{_names([u.expert for u in result.uses])} (the edit)"
    here = sum(u.chosen_before for u in result.uses)
    mine = tuple(shift.logit_change for _, shift in result.words)
    rows = [(own, result.kl, here, mine)]
    rows += [(_names(d.experts), d.kl, d.positions, d.word_changes) for d in controls.draws]
    for row in sorted(rows, key=lambda row: -row[1]):
        experts, kl, positions, changes = row
        moved = [_signed(changes[i]) for i in followed]
        table.add(experts, kl, positions, *moved, style="bold yellow" if row is rows[0] else "")
    table.print(form)
    lines = [f"KL: number {controls.kl.rank} of {n + 1}, p = {controls.kl.p:.2g}"]
    for i in followed:
        stands, text = controls.words[i], visible(result.words[i].word.text)
        lines.append(f"|Δ logit| of {text}: number {stands.rank}, p = {stands.p:.2g}")
    output.print(Text(f"{'; '.join(lines)} (at best {controls.p_lowest:.2g})"))
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


def _texts(result: SteeringResult, before: Written, after: Written, form: WideArgs) -> None:
    drawn = "" if not result.temperature else f", temperature {result.temperature:g}"
    if result.first_difference is None:
        output.print(f"The generated text is the same before and after{drawn}:", style="bold")
        output.print(Text("".join(before.pieces)))
    else:
        shared = result.first_difference
        same = f"the same for {counted(shared, 'token')}"
        where = same if shared else "another one from the first token on"
        sides = (Head(name, "words", keep=True) for name in ("before", "after"))
        table = Sheet(f"Generated text: {where}{drawn}", *sides)
        table.add(*(_marked(w, result.first_difference) for w in (before, after)))
        table.print(form)
    output.print()


def _marked(written: Written, first: int) -> Text:
    text = Text("".join(written.pieces[:first]), style="dim")
    for i, piece in enumerate(written.pieces[first:]):
        text.append(piece, style="not dim bold yellow" if i == 0 else "not dim")
    return text


def _sweep(swept: SweepResult, form: WideArgs) -> None:
    followed = [i for i, word in enumerate(swept.words) if word.main]
    moved = [f"Δ logit {visible(swept.words[i].text)}" for i in followed]
    strength = Head(swept.unit, key=True)
    next_token = (
        Head("next token", "name", keep=True),
        Head("probability", percent=True, of="next token"),
    )
    table = Sheet(
        "Sweep over the strength", strength, "KL", "chosen", *next_token, "entropy", *moved,
        digits=3,
    )  # fmt: skip
    for p in swept.points:
        table.add(
            f"{p.strength:g}",
            p.kl,
            f"{p.chosen}/{p.places}",
            visible(p.token),
            p.prob,
            f"{p.entropy:.3f}",
            *(_signed(p.words[i].logit_change) for i in followed),
        )
    table.print(form)
    if swept.before is None:
        return
    output.print()
    texts = Sheet("Text at each strength", strength, Head("text", "words", keep=True))
    for p in swept.points:
        same = p.text is None or p.first_difference is None
        written = "" if p.text is None else "".join(p.text.pieces).replace("\n", "⏎")
        text = "as unedited" if same else written
        texts.add(f"{p.strength:g}", Text(text, style="dim" if same else ""))
    texts.print(form)


def _shift(s: Shift) -> tuple[float | str, ...]:
    """The cells of `_SHIFT`."""
    return (
        s.prob_before, s.prob_after, _signed(s.log_prob_change),
        _signed(s.logit_change), _ranks(s.rank_before, s.rank_after),
    )  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+.3f}" if abs(value) >= 5e-4 else ("0" if value == 0 else f"{value:+.1e}")


def _ranks(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} → {after:,}"
