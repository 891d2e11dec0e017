"""What the manifest of an imported run says of its origin: files, what is absent, what to know."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moescope.run.manifest import Manifest, write_manifest
from moescope.trace.importers import llamacpp, sglang, vllm
from moescope.trace.importers.files import CaptureFile, beside
from moescope.trace.importers.rows import ZERO_FILLED
from moescope.trace.importers.served import ServedModel

__all__ = [
    "COUNTS",
    "begin",
    "corpus_name",
    "describe_source",
    "fingerprint",
    "notes",
]

COUNTS = "aggregated counts"
"""What a run says that it was imported from, where no engine is known."""

_NAMES = {"vllm": vllm.NAME, "sglang": sglang.NAME, "llamacpp": llamacpp.NAME, "counts": COUNTS}


def describe_source(
    engine: str, files: Sequence[CaptureFile], asked: dict[str, Any]
) -> dict[str, Any]:
    """The part that identifies the source, and what it cannot say.

    Args:
        engine: key of the engine.
        files: the captures.
        asked: ``domain``, ``ordered`` and ``on_error``.
    """
    return {
        "engine": _NAMES[engine],
        "engine_version": None,
        "files": [
            {"file": f.name, "bytes": f.size, "sha256": f.sha256}
            for file in files
            for f in (file, *beside(file))
        ],
        **asked,
        "absent": _absent(engine, asked["ordered"]),
        "notes": [],
    }


def _absent(engine: str, ordered: bool) -> dict[str, str]:
    """What the run does not know, each with the reason."""
    name = _NAMES[engine]
    what = "sums" if engine == "counts" else "ids"
    only = f"this run was imported from {name}: {what} only"
    absent = {
        "weights": f"{only}, without the router's weights and probabilities",
        "loss": f"{only}, without losses",
        "predicted": f"{only}, without the model's most probable next token",
    }
    if engine == "counts":
        absent["order"] = f"{only}, without a token's first choice"
        absent["tokens"] = f"{only}, without single tokens and documents"
    elif not ordered:
        absent["order"] = (
            f"{only}, and in which order {name} names a token's experts is not known "
            "(import with `ordered` if it is by weight)"
        )
    return absent


def begin(run: Path, manifest: Manifest) -> None:
    """Write the manifest of an import that has something to commit."""
    manifest.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    names = ("moescope", "transformers", "numpy", "pyarrow")
    manifest.versions = {n: version(n) for n in names}
    manifest.versions["python"] = platform.python_version()
    write_manifest(run, manifest)


def fingerprint(files: Sequence[CaptureFile]) -> str:
    """Files have checksums of their own; one of them, or a word, stands for the text."""
    return files[0].sha256 if len(files) == 1 else f"see source: {len(files)} files"


def corpus_name(engine: str, files: Sequence[CaptureFile]) -> str:
    """What a reader is told that the run was made of."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    what = COUNTS if engine == "counts" else f"requests captured by {_NAMES[engine]}"
    return f"{what} ({files[0].name}{more})"


def notes(manifest: Manifest, served: ServedModel) -> list[str]:
    """Sentences on what a reader of this run must know."""
    made, found = [], manifest.progress["requests"]
    left_out = manifest.progress["left_out"]
    if left_out.get("last tokens, which were never fed"):
        made.append(
            "The last token of a request is sampled but never fed to the model, so it has no "
            "routing and is not counted."
        )
    if not found.get("masked"):
        made.append(
            "The captures have no mask of counted tokens: words that a chat template writes cannot "
            "be told from the text and are counted; special tokens are not."
        )
    if prefix := left_out.get("tokens whose routing was not returned"):
        made.append(
            f"{prefix:,} tokens were read from a cached prefix, or left out of the capture by a "
            "start offset; they are not counted."
        )
    if zeros := left_out.get(ZERO_FILLED):
        made.append(
            f"{zeros:,} tokens have expert 0 in every layer, in rows one after the other, as an "
            "engine leaves where it kept no routing; they are not counted."
        )
    if unnamed := found.get("unnamed_tokens"):
        made.append(
            f"The ids of {unnamed:,} counted tokens were not captured: they are in no table of "
            "tokens, and special tokens among them are counted."
        )
    if served.tokenizer is None:
        made.append(
            "The model has no tokenizer here: token texts are not known, and special tokens are "
            "those that its configuration names."
        )
    if manifest.source["ordered"] and True in manifest.model["selection_bias"]:
        made.append(
            "This model chooses experts by more than their weight, so the first named expert need "
            "not have the largest weight."
        )
    return made
