"""Whether work that is gone on with is the work that was begun: one sentence says what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moescope.errors import RunError
from moescope.run.manifest import Manifest
from moescope.words import brief

_HASH = "_sha256"
_MAY_DIFFER = ("device", "processor", "engine_version", "name", "notes", "path")
"""Of a run: where its parts lie and what they are called decides no figure."""


def require_same(
    folder: Path,
    begun: Mapping[str, Mapping[str, Any]],
    now: Mapping[str, Mapping[str, Any]],
    may_differ: Iterable[str] = (),
) -> None:
    """Refuse to go on with work that was begun with something else.

    Args:
        folder: of the work.
        begun: what it was begun with: a word for each group, such as ``options`` → its settings.
        now: what is asked for now; its groups are compared.
        may_differ: settings that decide nothing.

    Raises:
        RunError: names the first difference.

    Example:
        >>> require_same(Path("my-run"), {"options": {"keep": "all"}}, {"options": {"keep": "sample"}})
        Traceback (most recent call last):
        moescope.errors.RunError: cannot resume my-run: option keep was 'all', now 'sample'; give what it was started with, or another folder
    """  # noqa: E501
    for what, mine in now.items():
        theirs, word = begun.get(what, {}), "option" if what == "options" else what
        # another precision changes hashes too, and says more
        for key in sorted({*mine, *theirs} - set(may_differ), key=lambda k: (_HASH in k, k)):
            before, after = theirs.get(key), mine.get(key)
            if before != after:
                name = f"{word} {key.removesuffix(_HASH)}".strip()
                both = _HASH in key and before is not None and after is not None
                differs = "not the same" if both else f"was {brief(before)}, now {brief(after)}"
                raise RunError(
                    f"cannot resume {folder}: {name} {differs}; give what it was started with, or "
                    "another folder"
                )


def require_same_run(folder: Path, begun: Manifest, now: Manifest) -> None:
    """`require_same` for the model, the corpus, the options and the source of a run."""
    groups = ("model", "options", "corpus", "source")
    theirs, mine = ({name: getattr(m, name) for name in groups} for m in (begun, now))
    require_same(folder, theirs, mine, _MAY_DIFFER)
