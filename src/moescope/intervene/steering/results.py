"""What steering gives back: the shapes of `SteeringResult` and `SweepResult`, and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import pyarrow as pa

from moescope.intervene.steering.controls import Controls
from moescope.intervene.steering.distributions import Shift
from moescope.intervene.steering.prompts import Prompt, WordToken, visible
from moescope.intervene.steering.use import Choice, Effect, ExpertUse
from moescope.models.edits import BY_NAME
from moescope.result import Note, Result, Tabular, plain
from moescope.words import counted, listing, percent

_LEVEL = 0.05

STEERING = "steering"
"""The kind of result that a steering is."""


class TokenShift(NamedTuple):
    """A token of the vocabulary and what happened to it."""

    token_id: int
    text: str
    shift: Shift


class WordShift(NamedTuple):
    """A word's first token and what happened to it."""

    word: WordToken
    shift: Shift


class Text(NamedTuple):
    """A generated text; see `Continuation`."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    text: str
    ended: bool


@dataclass(frozen=True)
class SteeringResult(Tabular):
    """One edit beside the unedited model.

    Attributes:
        model: name of the model.
        prompt: its tokens, numbered from 0.
        targets: positions where the edits hold; None: everywhere, generated tokens included.
        edits: in words, each with its positions where they differ.
        tokens: the first tokens of the next-token distribution, before or after.
        words: the words that were asked for; each may have two forms.
        kl: KL(before ‖ after) of the next-token distribution, nats.
        entropy_before, entropy_after: of that distribution, nats.
        uses: how often each edited expert was chosen where its edit holds.
        choices: what the edited layers chose at the targets (at the last token without any).
        effect: whether the edit reached the next token; notes for the reader.
        controls: the same edit on other experts; None when not asked for.
        before, after: the generated texts; None when not asked for.
        first_difference: index of the first generated token that differs; None: they are the same.
        temperature, seed: of the generation; the same on both sides.
        identity: everything that decided the numbers.
    """

    model: str
    prompt: Prompt
    targets: tuple[int, ...] | None
    edits: tuple[str, ...]
    tokens: tuple[TokenShift, ...]
    words: tuple[WordShift, ...]
    kl: float
    entropy_before: float
    entropy_after: float
    uses: tuple[ExpertUse, ...]
    choices: tuple[Choice, ...]
    effect: Effect
    controls: Controls | None
    before: Text | None
    after: Text | None
    first_difference: int | None
    temperature: float
    seed: int
    identity: dict[str, Any]

    def __repr__(self) -> str:
        return f"<SteeringResult {', '.join(self.edits)}: KL {self.kl:.3g} nats>"

    def _repr_html_(self) -> str:
        return "".join(f"<p>{escape(line)}</p>" for line in (repr(self), *self.summary()))

    def where(self) -> str:
        """Where the edit holds, in words."""
        if self.targets is None:
            return "everywhere, generated tokens included"
        named = listing((f"{t} {visible(self.prompt.pieces[t])}" for t in self.targets), 6)
        several = "tokens" if len(self.targets) > 1 else "token"
        return f"at {several} {named} of the prompt only"

    def summary(self) -> list[str]:
        """What happened, in a few sentences: first whether other experts would do the same."""
        first = _on_next(self), _on_controls(self)
        told = (*(first if self.kl == 0.0 else first[::-1]), _on_text(self))
        return [sentence for sentence in told if sentence]

    def to_arrow(self) -> pa.Table:
        """The next-token distribution: one row per token of `tokens`."""
        rows = [
            {"token_id": t.token_id, "text": _written(t.text), **t.shift._asdict()}
            for t in self.tokens
        ]
        return pa.Table.from_pylist(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        made: dict[str, Any] = plain(self)
        return made


class SweepPoint(NamedTuple):
    """One strength.

    ``kl``: KL(unedited ‖ edited) in nats. ``entropy``: nats. ``token_id``, ``token``, ``prob``: the
    most probable next token. ``words``: of each word. ``chosen``: of the prompt tokens where the
    edit holds, how often its experts were chosen, out of ``places``. ``text``: generated, None when
    not asked for; ``first_difference``: from the unedited text, None when they are the same.
    """

    strength: float
    kl: float
    entropy: float
    token_id: int
    token: str
    prob: float
    words: tuple[Shift, ...]
    chosen: int
    places: int
    text: Text | None
    first_difference: int | None


@dataclass(frozen=True)
class SweepResult(Tabular):
    """An edit over its strength.

    Attributes:
        kind: of an edit that takes a number, such as ``bias``, or another word of the caller's.
        words: whose shifts the points hold, in that order.
        points: by ascending strength.
        before: the unedited text.
    """

    kind: str
    words: tuple[WordToken, ...]
    points: tuple[SweepPoint, ...]
    before: Text | None

    @property
    def unit(self) -> str:
        """What the strength is, in words."""
        return BY_NAME[self.kind].unit if self.kind in BY_NAME else "strength"

    @property
    def neutral(self) -> float | None:
        """The strength that changes nothing, where the kind of edit has one."""
        return BY_NAME[self.kind].neutral if self.kind in BY_NAME else None

    def to_arrow(self) -> pa.Table:
        """One row per strength; a pair of columns for each word."""
        rows = []
        for p in self.points:
            row: dict[str, Any] = {
                n: getattr(p, n)
                for n in ("strength", "kl", "entropy", "token", "prob", "chosen", "places")
            }
            for word, shift in zip(self.words, p.words, strict=True):
                row[f"logit_change {word.text}"] = shift.logit_change
                row[f"log_prob_change {word.text}"] = shift.log_prob_change
            row["token"] = _written(p.token)
            row["text"] = _written(p.text.text) if p.text else None
            rows.append(row)
        return pa.Table.from_pylist(rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**plain(self), "unit": self.unit, "neutral": self.neutral}


def _on_next(result: SteeringResult) -> str:
    old = min(result.tokens, key=lambda t: t.shift.rank_before)
    new = min(result.tokens, key=lambda t: t.shift.rank_after)
    moved = f"KL(before‖after) = {result.kl:.3g} nats"
    if result.effect.kind == "none":
        return "The next-token distribution is the same, bit for bit."
    before, after = percent(old.shift.prob_before), percent(new.shift.prob_after)
    if old.token_id == new.token_id:
        change = f"stays “{visible(old.text)}” ({before} → {after})"
    else:
        change = f"changes from “{visible(old.text)}” ({before}) to “{visible(new.text)}” ({after})"
    return f"The most probable next token {change}; {moved}."


def _on_controls(result: SteeringResult) -> str:
    """Does the edit move this prompt's next token more than it would on other experts?"""
    controls = result.controls
    if controls is None and result.kl == 0.0:
        return ""
    if controls is None or controls.kl is None or controls.p_lowest is None:
        why = "there are no controls." if controls is None else controls.note
        return f"Nothing says whether other experts would move the next token as much: {why}"
    kls, p = [c.kl for c in controls.draws], controls.kl.p
    count, beyond = len(kls), sum(kl >= result.kl for kl in kls)
    if result.kl == 0.0:
        moved = sum(kl > 0.0 for kl in kls)
        return (
            "The edit does not move this prompt's next token; the same edit on other experts does "
            f"in {moved} of {counted(count, 'control')}."
        )
    layers = "layers" if len({u.expert.split("E")[0] for u in result.uses}) > 1 else "layer"
    finding = f"this prompt's next token {{}} than the same edit on other experts of the {layers}"
    if 2 * beyond >= count:
        finding = f"The edit moves {finding.format('no more')}"
    elif controls.p_lowest > _LEVEL:
        few = f"{counted(count, 'control')} cannot show whether the edit moves"
        few_here = "; this prompt has no more of them, `ablate` over texts has"
        help_ = "; `controls` asks for more" if count == controls.asked else few_here
        finding = f"{few} {finding.format('more')} (p is {controls.p_lowest:.2g} at best{help_})"
    else:
        shown = "moves" if p <= _LEVEL else "is not shown to move"
        finding = f"The edit {shown} {finding.format('more')}"
    span = f"KL {result.kl:.2g} nats, theirs {min(kls):.2g} to {max(kls):.2g}; p = {p:.2g}"
    many = f"{beyond or 'none'} of {counted(count, 'control')} {'do' if beyond > 1 else 'does'}"
    return f"{finding}: {many} as much or more ({span})."


def _on_text(result: SteeringResult) -> str:
    if result.before is None or result.after is None:
        return ""
    if result.first_difference is None:
        return f"The generated text is the same, all {len(result.before.token_ids)} tokens."
    return f"The generated texts part at token {result.first_difference + 1}."


def _written(text: str) -> str:
    """What a file can hold of a text: a token may be half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def steering_result(found: SteeringResult, swept: SweepResult | None = None) -> Result:
    """The `Result` that is kept and shown on a page.

    Args:
        found: one edit beside the unedited model.
        swept: the edit over its strength.
    """
    tables = {"tokens": found.to_arrow()} | ({"sweep": swept.to_arrow()} if swept else {})
    about = found.to_dict()
    identity = about.pop("identity")
    about |= {"where": found.where(), "sweep": swept.to_dict() if swept else None}
    notes = tuple(Note("warn", text) for text in found.effect.notes)
    return Result(STEERING, identity, tables, tuple(found.summary()), notes, about)
