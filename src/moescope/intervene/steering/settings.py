"""The words of `--set`: ``L1E9=+2.0`` and its kin, read into edits; and the strengths of a sweep.

A setting is read before any model is loaded; which experts it means is settled when an anatomy is
at hand. The letter ``s`` in the place of the number stands for the strength of a sweep.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moescope.errors import BadInputError
from moescope.models.anatomy import Anatomy
from moescope.models.edits import BY_NAME, KINDS, Edit, WeightEdit, select_experts
from moescope.words import counted

MOST_STRENGTHS = 101
"""A sweep of more strengths is refused."""

_WRITTEN = {kind.kind: re.compile(kind.written, re.IGNORECASE) for kind in KINDS if kind.written}
_FORMS = ", ".join(
    [kind.form for kind in KINDS if kind.form]
    + ["or one of the words " + ", ".join(w for w, form in _WRITTEN.items() if w == form.pattern)]
)


@dataclass(frozen=True)
class Setting:
    """One ``--set``.

    Attributes:
        text: as it was given.
        selectors: names of experts, wildcards included.
        kind: what is done to them: the name of a kind of edit.
        value: summand or factor; None where the strength of a sweep goes, and for words.
        sign: −1 where the strength of a sweep is to be taken away.
    """

    text: str
    selectors: tuple[str, ...]
    kind: str
    value: float | None = None
    sign: int = 1

    @property
    def open(self) -> bool:
        """Does the letter s stand for the number?"""
        return self.unit != "" and self.value is None

    @property
    def unit(self) -> str:
        """What the number is; empty where none belongs there."""
        return BY_NAME[self.kind].unit

    def edit(self, anatomy: Anatomy, strength: float | None = None) -> Edit:
        """The edit on this model, at this strength where one is given.

        Raises:
            BadInputError: an expert that does not exist, or no number to set.
        """
        experts = select_experts(anatomy, self.selectors)
        kind = BY_NAME[self.kind]
        if not kind.unit:
            return kind(experts)
        value = self.value if strength is None else self.sign * strength
        if value is None:
            raise BadInputError(
                f"`set` {self.text}: s stands for the strength of a sweep; add `sweep`, such as "
                "`sweep=-4:4:1`, or give a number"
            )
        return kind(experts, value=value)  # type: ignore[call-arg]  # as those with a unit take


def parse_setting(text: str) -> Setting:
    """Read one setting.

    Args:
        text: ``EXPERTS=VALUE``. Experts: ``L1E9``, ``L1E0-7``, ``L1E*``, ``L*E3``, several
            joined by commas. Values: ``+2.0`` or ``-1.5`` adds to the router's logit, ``x0.5``
            multiplies the weight, ``mask``, ``zero``, ``force``.

    Raises:
        BadInputError: another form; says which forms there are.

    Example:
        >>> parse_setting("L1E9,L2E3=+2.0").value
        2.0
        >>> parse_setting("L1E*=x0.5").kind
        'scale'
    """
    plain = text.strip().replace("−", "-").replace("×", "x")
    names, equals, value = plain.partition("=")
    selectors = tuple(n.strip() for n in names.split(",") if n.strip())
    if not equals or not selectors:
        raise BadInputError(
            f"`set` {text!r}: expected EXPERTS=VALUE, such as L1E9=+2.0 or L1E9=mask"
        )
    found = ((kind, form.fullmatch(value.strip())) for kind, form in _WRITTEN.items())
    kind, match = next(((kind, m) for kind, m in found if m is not None), ("", None))
    if match is None:
        several = "; give `set` once for each value" if "=" in value or "," in value else ""
        raise BadInputError(f"`set` {text!r}: the value {value!r} is none of: {_FORMS}{several}")
    parts = match.groupdict()
    if "number" not in parts:
        return Setting(text.strip(), selectors, kind)
    sign = -1 if parts.get("sign") == "-" else 1
    if parts["number"].lower() == "s":
        return Setting(text.strip(), selectors, kind, None, sign)
    number = float(parts["number"])
    if not math.isfinite(number):
        raise BadInputError(f"`set` {text!r}: {parts['number']} is too large a number")
    return Setting(text.strip(), selectors, kind, sign * number, 1)


def edits_at(
    settings: Iterable[Setting], anatomy: Anatomy, strength: float | None = None
) -> list[Edit]:
    """The edits of these settings; where the number is open, it is the strength.

    Raises:
        BadInputError: as `Setting.edit`, or settings that undo each other (see `check_settings`).
    """
    edits = [s.edit(anatomy, strength if s.open else None) for s in settings]
    check_settings(edits)
    return edits


def check_settings(edits: Sequence[Edit]) -> None:
    """Refuse an expert that one edit removes while another works on it.

    Raises:
        BadInputError: names the expert and both edits.
    """
    removed = {e: edit for edit in edits if edit.removes for e in edit.experts}
    for edit in edits:
        for expert in edit.experts:
            by = removed.get(expert)
            if by is None or edit.removes:
                continue
            if isinstance(by, WeightEdit) and not isinstance(edit, WeightEdit):
                continue  # to choose an expert that gives nothing crowds another one out
            raise BadInputError(
                f"{expert} is set to {by.kind} and also to {edit.kind}, which then does nothing; "
                "keep one of them"
            )


def swept(settings: Sequence[Setting]) -> list[Setting]:
    """The settings with the number that a sweep runs over made open.

    Those that say ``s``; where none does, the only one that adds or multiplies.

    Raises:
        BadInputError: no such setting, several, or ``s`` in both kinds.
    """
    chosen = [s for s in settings if s.open]
    if not chosen:
        chosen = [s for s in settings if s.unit]
        if len(chosen) != 1:
            raise BadInputError(
                f"`sweep` runs over one number, and `set` gives {len(chosen)} that add or multiply;"
                " write s in the place of the number to sweep, such as L1E9=+s or L1E9=xs"
            )
    if len({s.kind for s in chosen}) > 1:
        raise BadInputError("`sweep`: s stands for a summand in one `set` and a factor in another")
    return [
        Setting(s.text, s.selectors, s.kind) if s in chosen and not s.open else s for s in settings
    ]


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths of ``-4:4:1`` (both ends included) or of ``-4,-1,0,2``.

    Raises:
        BadInputError: another form, a step that is not positive, or too many strengths.

    Example:
        >>> parse_strengths("0:1:0.25")
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    problem = f"`sweep` {text!r}: expected FROM:TO:STEP, such as -4:4:1, or a list such as -4,0,4"
    plain = text.replace("−", "-")
    parts = plain.split(":") if ":" in plain else plain.split(",")
    try:
        numbers = [float(p) for p in parts]
    except ValueError as error:
        raise BadInputError(problem) from error
    if not all(math.isfinite(n) for n in numbers) or (":" in plain and len(numbers) != 3):
        raise BadInputError(problem)
    if ":" not in plain:
        values = sorted(set(numbers))
    else:
        low, high, step = numbers
        if step <= 0 or high < low:
            raise BadInputError(f"{problem}; the step is positive and TO is not below FROM")
        steps = (high - low) / step  # may be infinite
        if steps >= MOST_STRENGTHS:
            raise BadInputError(
                f"`sweep` {text!r} has {steps:.3g} strengths; at most {MOST_STRENGTHS}, so "
                "take a larger step"
            )
        count = math.floor(steps + 1e-9) + 1
        values = [round(low + i * step, 12) + 0.0 for i in range(count)]
    if len(values) > MOST_STRENGTHS:
        raise BadInputError(
            f"`sweep` has {counted(len(values), 'strength')}; at most {MOST_STRENGTHS}"
        )
    return tuple(values)
