"""What the manifest of an imported run says of its origin: files, what is absent, what to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moescope.trace.importers import llamacpp, sglang, vllm
from moescope.trace.importers.files import CaptureFile, beside
from moescope.trace.importers.rows import ZERO_FILLED
from moescope.trace.importers.served import ServedModel
from moescope.trace.manifest import Manifest

__all__ = ["describe_source", "notes"]

_NAMES = {"vllm": vllm.NAME, "sglang": sglang.NAME, "llamacpp": llamacpp.NAME}


def describe_source(
    engine: str, files: Sequence[CaptureFile], asked: dict[str, Any]
) -> dict[str, Any]:
    """The part that identifies the source, and what it cannot say.

    Args:
        engine: key of the engine.
        files: the captures.
        asked: ``domain``, ``ordered`` and ``on_error``.
    """
    name = _NAMES[engine]
    ids_only = f"this run was imported from {name}: ids only"
    absent = {
        "weights": f"{ids_only}, without the router's weights and probabilities",
        "loss": f"{ids_only}, without losses",
        "predicted": f"{ids_only}, without the model's most probable next token",
    }
    if not asked["ordered"]:
        absent["order"] = (
            f"{ids_only}, and in which order {name} names a token's experts is not known "
            "(import with --ordered if it is by weight)"
        )
    return {
        "engine": name,
        "engine_version": None,
        "files": [
            {"file": f.name, "bytes": f.size, "sha256": f.sha256}
            for file in files
            for f in (file, *beside(file))
        ],
        **asked,
        "absent": absent,
        "notes": [],
    }


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
