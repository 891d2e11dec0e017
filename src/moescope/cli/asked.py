"""A verb's settings as the command that asks the same again."""

from __future__ import annotations

from typing import Any

from moescope.cli.verb import Argument, Settings
from moescope.words import ranges

_PATHS = {"model", "run", "corpus", "text", "with", "without", "plan", "out"}


def asked(verb: str, settings: Settings) -> str:
    """The command, with what is not at its default; paths without the folders of a machine.

    Args:
        verb: its name.
        settings: what it was told.
    """
    from moescope.report.about import label
    from moescope.report.commands import command

    told = settings.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if told.get("run") and verb != "profile":  # the run names the model
        told = {k: v for k, v in told.items() if k not in ("model", "revision")}
    shown: dict[str, Any] = {k: label(v) if k in _PATHS else v for k, v in told.items()}
    if shown.get("layers"):
        shown["layers"] = ranges(shown["layers"]).replace(" ", "")
    fields = type(settings).model_fields.items()
    named = [n.rstrip("_") for n, f in fields if any(isinstance(m, Argument) for m in f.metadata)]
    given = [shown.pop(name) for name in named if name in shown]
    places = [str(v) for one in given for v in (one if isinstance(one, list) else [one])]
    return command(verb, *places, **shown)
