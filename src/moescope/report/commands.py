"""Commands that pages show, to be copied: what made a run, and what asks more about an expert.

Every part is quoted for a shell. Paths are named without their folders, as everywhere on a page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from moescope.corpus import CorpusSpec
from moescope.report.about import label
from moescope.run.options import TraceOptions
from moescope.run.reader import Run
from moescope.words import ranges

EXPERT = "LnEm"
"""Stands for the name of an expert in a command that a page's scripts complete."""


def command(verb: str, *given: str, **flags: Any) -> str:
    """A command of moescope.

    Args:
        verb: its first word.
        given: what stands in its place.
        flags: by the name of the setting; those at None are left out.

    Example:
        >>> command("ablate", run="my run", predictions=False, target=["law", "tax law"])
        "moescope ablate --run 'my run' --no-predictions --target law --target 'tax law'"
    """
    parts = ["moescope", verb, *map(shlex.quote, given)]
    for name, value in flags.items():
        flag = "-o" if name == "out" else f"--{name.strip('_').replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(flag if value else flag.replace("--", "--no-", 1))
            continue
        for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            parts += [flag, shlex.quote(str(one))]
    return " ".join(parts)


def run_name(run: Run) -> str:
    """The folder of a run, as commands beside it name it."""
    return run.path.resolve().name


def ablate(run: Run, experts: str = EXPERT) -> str:
    """Take experts away on the text of a run; the result lies in the run's folder."""
    folder = run_name(run)
    out = f"{folder}/without-{experts}"
    return command("ablate", run=folder, dtype=_dtype(run), experts=experts, out=out)


def steer(run: Run, experts: str = EXPERT) -> str:
    """What the model of a run says of a prompt without experts; kept in the run's folder too."""
    folder = run_name(run)
    what = {"prompt": "…", "set": f"{experts}=zero", "out": f"{folder}/steered-{experts}"}
    return command("steer", run=folder, dtype=_dtype(run), **what)


def expert_commands(run: Run) -> dict[str, str]:
    """`ablate` and `steer` of one expert, whose name is to replace `EXPERT`.

    Empty for an imported run: its text is not at hand.
    """
    return {} if run.shape.absent else {"ablate": ablate(run), "steer": steer(run)}


def reproduce(run: Run) -> str:
    """What makes the run again, with every setting that is not at its default."""
    model, corpus, source = run.manifest.model, run.manifest.corpus, run.manifest.source
    options = _changed(TraceOptions, run.manifest.options)
    known = {"out": run_name(run), "revision": model.get("revision")}
    name = label(model["name"])
    if source:
        files = [file["file"] for file in source["files"]]
        engine = "counts" if "counts" in source["engine"] else source["engine"]
        return command(
            "import",
            re.sub(r"\W", "", engine.lower()),
            files[0] if len(files) == 1 else "CAPTURES",
            **known,
            model=name,
            **{n: source[n] or None for n in ("domain", "ordered", "engine_version")},
            on_error=None if source["on_error"] == "fail" else source["on_error"],
            **{k: v for k, v in options.items() if k != "predictions"},
        )
    read = {k: v for k, v in corpus.items() if k not in ("path", "seed")}
    return command(
        "analyze",
        name,
        label(corpus["path"]),
        **known,
        dtype=_dtype(run),
        **_changed(CorpusSpec, read),
        **options,
    )


def _dtype(run: Run) -> str | None:
    """The precision, where it is not that of the stored weights."""
    model = run.manifest.model
    return None if model["dtype"] == model.get("stored_dtype") else str(model["dtype"])


def _changed(kind: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not at their defaults, as their flags take them."""
    fields = kind.model_fields
    made = {k: v for k, v in given.items() if k in fields and v != fields[k].default}
    if made.get("layers"):
        made["layers"] = ranges(made["layers"]).replace(" ", "")
    return made
