"""Steering: what the next token and the text become when experts are boosted or ablated.

`steer` compares one edit with the unedited model; `sweep` follows it over its strength. Both say
where the experts were chosen, whether the edit could do anything, and (`steer`) how it compares
with the same edit on other experts. The edits themselves are carried out by the model's own
routers, see `moescope.models.editing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moescope.errors import BadInputError
from moescope.given import require_seed
from moescope.intervene.steering.controls import MOST_CONTROLS, Controls, run_controls
from moescope.intervene.steering.distributions import (
    Shift,
    entropy,
    kl_divergence,
    shift_of,
    top_union,
)
from moescope.intervene.steering.passes import Continuation, Look, look, write
from moescope.intervene.steering.prompts import (
    Prompt,
    WordToken,
    pieces_of,
    read_prompt,
    word_tokens,
)
from moescope.intervene.steering.results import (
    STEERING,
    SteeringResult,
    SweepPoint,
    SweepResult,
    Text,
    TokenShift,
    WordShift,
)
from moescope.intervene.steering.use import choices_at, common_positions, effect_of, uses_of
from moescope.measure.identity import identity
from moescope.measure.journal import open_journal
from moescope.models.accept import AnyModel, as_model
from moescope.models.anatomy import MoELayer
from moescope.models.edits import Edit, Edits, as_edits, check_edits
from moescope.models.loading import LoadedModel
from moescope.progress import OnProgress, Progress, quiet

CONTROLS = 20
"""Controls of an edit unless another number is asked for; fewer could not give p ≤ 0.05."""


@dataclass(frozen=True)
class _Bench:
    """A prompt on a model, ready to be looked at under edits of the same experts."""

    loaded: LoadedModel
    prompt: Prompt
    targets: tuple[int, ...] | None
    layers: tuple[MoELayer, ...]
    generate: int
    temperature: float
    seed: int

    def at_targets(self, edits: Edits) -> list[Edit]:
        several = as_edits(edits)
        return several if self.targets is None else [e.at(self.targets) for e in several]

    def look(self, edits: Sequence[Edit] = ()) -> Look:
        return look(self.loaded, self.prompt, self.layers, edits)

    def write(self, edits: Sequence[Edit] = ()) -> Continuation | None:
        if not self.generate:
            return None
        return write(
            self.loaded,
            self.prompt,
            self.layers,
            edits,
            num_tokens=self.generate,
            temperature=self.temperature,
            seed=self.seed,
        )

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token if it came next."""
        return [pieces_of(self.loaded.tokenizer, [i], self.prompt.ids)[0] for i in ids]


def steer(
    model: AnyModel,
    prompt: str,
    edits: Edits,
    *,
    targets: Sequence[int] = (),
    words: Sequence[str] = (),
    generate: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    top: int = 10,
    controls: int = CONTROLS,
    chat: bool = False,
) -> SteeringResult:
    """Carry out an edit on one prompt and compare with the unedited model.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        prompt: the text.
        edits: from `mask`, `zero`, `scale`, `bias`, `force`, `top_k`.
        targets: token positions where the edit holds (0 is the first token that the model reads;
            negative: from the end); then it ends with the prompt. Without any it holds everywhere,
            at generated tokens too.
        words: whose logits are followed, by their first token.
        generate: tokens to generate on both sides; 0 for none.
        temperature: 0 takes the most probable token; else tokens are drawn, from the same seed on
            both sides.
        seed: of drawing and of the choice of controls.
        top: tokens of the next-token distribution to show, of each side.
        controls: other experts to try the same edit on; 0 for none.
        chat: apply the model's chat template.

    Returns:
        See `SteeringResult`.

    Raises:
        BadInputError: an expert, position or chat template that does not exist, no edit.
        ModelError: an edit that this architecture cannot take.

    Example::

        found = steer(model, "The capital of France is", bias("L1E9", 2.0), words=["Paris"])
        found.kl, found.words[0].shift.log_prob_change
    """
    if not 0 <= controls <= MOST_CONTROLS:
        raise BadInputError(f"controls is {controls}; expected 0 to {MOST_CONTROLS:,}")
    loaded = as_model(model)
    bench = _bench(loaded, prompt, edits, targets, generate, temperature, seed, chat)
    changed = bench.at_targets(edits)
    followed = word_tokens(loaded.tokenizer, words, bench.prompt)
    looks = bench.look(), bench.look(changed)
    plain, other = looks[0].logits, looks[1].logits
    compared = _controls(bench, changed, looks[0], followed, controls)
    before, after = bench.write(), bench.write(changed)
    written = None if before is None or after is None else (before, after)
    uses = uses_of(changed, looks, written)
    last, common = len(bench.prompt) - 1, common_positions(changed)
    ids = top_union(plain, other, top)
    return SteeringResult(
        model=loaded.spec.model,
        prompt=bench.prompt,
        targets=common,
        edits=_in_words(changed),
        tokens=tuple(
            TokenShift(i, text, shift_of(i, plain, other))
            for i, text in zip(ids, bench.pieces(ids), strict=True)
        ),
        words=tuple(WordShift(w, shift_of(w.token_id, plain, other)) for w in followed),
        kl=kl_divergence(plain, other),
        entropy_before=entropy(plain),
        entropy_after=entropy(other),
        uses=tuple(uses),
        choices=tuple(choices_at([m.layer_idx for m in bench.layers], common or (last,), looks)),
        effect=effect_of(loaded.anatomy, changed, looks, uses, last),
        controls=compared,
        before=_as_text(before),
        after=_as_text(after),
        first_difference=_parting(before, after),
        temperature=temperature,
        seed=seed,
        identity=_identity(bench, changed, words),
    )


def sweep(
    model: AnyModel,
    prompt: str,
    edits: Callable[[float], Edits],
    strengths: Iterable[float],
    *,
    kind: str = "bias",
    targets: Sequence[int] = (),
    words: Sequence[str] = (),
    generate: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = False,
    folder: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress = quiet,
) -> SweepResult:
    """Follow an edit over its strength, each time beside the unedited model.

    Args:
        model: a hub id, a folder, a `ModelSpec`, or a `LoadedModel`.
        prompt: the text.
        edits: what to do at a strength, such as ``lambda s: bias("L1E9", s)``.
        strengths: each is run once, in ascending order.
        kind: what the strength is, for the reader.
        targets: as for `steer`, like the arguments that follow.
        words: whose logits are followed.
        generate: tokens to generate at each strength; 0 for none.
        temperature: of the generation.
        seed: of the generation.
        chat: apply the model's chat template.
        folder: where strengths are kept as they are done; None keeps nothing.
        resume: go on with what the folder holds.
        on_progress: told after every strength.

    Returns:
        See `SweepResult`.

    Raises:
        BadInputError: as `steer`, or no strength.
        ModelError: an edit that this architecture cannot take.
        RunError: the folder holds another measurement.
    """
    values = sorted(set(strengths))
    if not values:
        raise BadInputError("a sweep needs at least one strength")
    loaded = as_model(model)
    bench = _bench(loaded, prompt, edits(values[0]), targets, generate, temperature, seed, chat)
    followed = word_tokens(loaded.tokenizer, words, bench.prompt)
    plain, before = bench.look(), bench.write()
    first, last = (bench.at_targets(edits(v)) for v in (values[0], values[-1]))
    made_of = _identity(bench, [*first, *last], words, kind=kind, strengths=values)
    points = []
    with open_journal(folder, STEERING, made_of, resume=resume) as journal:
        for done, value in enumerate(values, start=1):
            record = journal.find("point", repr(value))
            if record is None:
                point = _point(bench, value, edits(value), (plain, before), followed)
                record = journal.add("point", repr(value), point=point)
            points.append(_restored(record["point"]))
            on_progress(Progress("sweep", done, len(values), "strengths"))
    return SweepResult(kind, tuple(followed), tuple(points), _as_text(before))


def _bench(
    loaded: LoadedModel,
    prompt: str,
    edits: Edits,
    targets: Sequence[int],
    generate: int,
    temperature: float,
    seed: int,
    chat: bool,
) -> _Bench:
    several = as_edits(edits)
    if not several:
        raise BadInputError("nothing to do: give at least one edit")
    require_seed(seed)
    if generate < 0 or not 0 <= temperature < math.inf:
        raise BadInputError(
            f"generate is {generate} and temperature {temperature}; neither can be negative, nor "
            "temperature without end"
        )
    check_edits(loaded.anatomy, several)
    read = read_prompt(loaded, prompt, chat=chat, room=generate)
    positions = read.positions(targets)
    for edit in several:
        read.positions(edit.positions or ())
    layers = tuple(m for m in loaded.anatomy.layers if any(e.concerns(m) for e in several))
    return _Bench(loaded, read, positions, layers, generate, temperature, seed)


def _controls(
    bench: _Bench, edits: Sequence[Edit], plain: Look, words: Sequence[WordToken], number: int
) -> Controls | None:
    if number <= 0:
        return None

    def measure(other: Sequence[Edit]) -> tuple[float, tuple[float, ...]]:
        seen = bench.look(other).logits
        moved = tuple(shift_of(w.token_id, plain.logits, seen).logit_change for w in words)
        return kl_divergence(plain.logits, seen), moved

    return run_controls(
        bench.loaded.anatomy, edits, plain, number=number, seed=bench.seed, measure=measure
    )


def _point(
    bench: _Bench,
    strength: float,
    edits: Edits,
    unedited: tuple[Look, Continuation | None],
    words: Sequence[WordToken],
) -> SweepPoint:
    changed = bench.at_targets(edits)
    plain, before = unedited
    seen, after = bench.look(changed), bench.write(changed)
    uses = uses_of(changed, (plain, seen), None)
    best = top_union(seen.logits, seen.logits, 1)[0]
    return SweepPoint(
        strength=strength,
        kl=kl_divergence(plain.logits, seen.logits),
        entropy=entropy(seen.logits),
        token_id=best,
        token=bench.pieces([best])[0],
        prob=shift_of(best, plain.logits, seen.logits).prob_after,
        words=tuple(shift_of(w.token_id, plain.logits, seen.logits) for w in words),
        chosen=sum(u.chosen_after for u in uses),
        places=sum(u.positions for u in uses),
        text=_as_text(after),
        first_difference=_parting(before, after),
    )


def _restored(point: list[Any]) -> SweepPoint:
    """A point as the journal gives it back."""
    made = SweepPoint(*point)
    words = tuple(Shift(*w) for w in made.words)
    if made.text is None:
        return made._replace(words=words)
    ids, pieces, text, ended = made.text
    return made._replace(words=words, text=Text(tuple(ids), tuple(pieces), text, ended))


def _identity(
    bench: _Bench, edits: Sequence[Edit], words: Sequence[str], **more: Any
) -> dict[str, Any]:
    return identity(
        bench.loaded, prompt=bench.prompt.ids, edits=list(map(str, edits)), words=list(words),
        generate=bench.generate, temperature=bench.temperature, seed=bench.seed, **more,
    )  # fmt: skip


def _in_words(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Each edit; its positions only where they are not those of all."""
    alike = len({e.positions for e in edits}) == 1
    return tuple(str(replace(e, positions=None) if alike else e) for e in edits)


def _as_text(written: Continuation | None) -> Text | None:
    return None if written is None else Text(*written[:4])


def _parting(before: Continuation | None, after: Continuation | None) -> int | None:
    """Index of the first token that differs; the length of the shorter when it is a prefix."""
    if before is None or after is None or before.token_ids == after.token_ids:
        return None
    pairs = zip(before.token_ids, after.token_ids, strict=False)
    shorter = min(len(before.token_ids), len(after.token_ids))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
