"""Whether work that is gone on with is the work that was begun: one sentence says what differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moescope.errors import ResumeError
from moescope.run.manifest import Manifest
from moescope.words import brief

_MAY_DIFFER = ("device", "processor", "engine_version", "name", "notes", "path")
"""Of a run: where its parts lie and what they are called decides no figure."""

_BY_HASH = {
    "config_sha256": "the model has another configuration",
    "fingerprint": "the text is another",
    "run": "the run is another",
    "text": "the text is another",
    "tokenizer_sha256": "the model has another tokenizer",
    "weights_sha256": "the model has other weights",
}
"""What is compared by a sha256, which tells a person nothing."""

_SHOWN = 4


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
        ResumeError: names what differs.

    Example:
        >>> require_same(Path("my-run"), {"options": {"keep": "all"}}, {"options": {"keep": "sample"}})
        Traceback (most recent call last):
        moescope.errors.ResumeError: cannot resume my-run: option keep was 'all', now 'sample'; give what it was started with, or another folder
    """  # noqa: E501
    found, by_hash = [], []
    for what, mine in now.items():
        theirs, word = begun.get(what, {}), "option" if what == "options" else what
        for key in sorted({*mine, *theirs} - set(may_differ)):
            was, is_now = theirs.get(key), mine.get(key)
            if was != is_now and key in _BY_HASH:
                by_hash.append(_BY_HASH[key])
            elif was != is_now:
                name = f"{word} {key}".strip()
                found.append(f"{name} was {brief(was)}, now {brief(is_now)}")
    if found or by_hash:
        raise ResumeError(
            f"cannot resume {folder}: {'; '.join([*found, *by_hash][:_SHOWN])}; give what it was "
            "started with, or another folder"
        )


def require_same_run(folder: Path, begun: Manifest, now: Manifest) -> None:
    """`require_same` for the model, the corpus, the options and the source of a run."""
    groups = ("model", "options", "corpus", "source")
    theirs, mine = ({name: getattr(m, name) for name in groups} for m in (begun, now))
    require_same(folder, theirs, mine, _MAY_DIFFER)
