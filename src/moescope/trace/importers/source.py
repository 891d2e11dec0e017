"""What the manifest of an imported run says of its origin: files, what is absent, what to know."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from moescope.corpus.spelling import token_texts
from moescope.errors import BadInputError
from moescope.models.spec import AnySpec
from moescope.progress import OnProgress
from moescope.run.commit import GrowingRun
from moescope.run.manifest import Manifest
from moescope.run.options import TraceOptions
from moescope.trace.importers import counts, llamacpp, sglang, vllm
from moescope.trace.importers.files import CaptureFile, beside, find_captures
from moescope.trace.importers.rows import ZERO_FILLED
from moescope.trace.importers.served import ServedModel, describe_served, open_served
from moescope.words import counted

_COUNTERS = ("left_out", "domain_tokens", "skipped", "requests")
READERS: dict[str, Any] = {
    "vllm": vllm, "sglang": sglang, "llamacpp": llamacpp, "counts": counts,
}  # fmt: skip
"""The module that reads what an engine captured, by the key of the engine."""


def describe_source(
    engine: str, files: Sequence[CaptureFile], asked: dict[str, Any]
) -> dict[str, Any]:
    """The part that identifies the source, and what it cannot say."""
    return {
        "engine": READERS[engine].NAME,
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


class Import:
    """What every import begins and ends with: the served model, the files, the run that grows.

    ``asked``: ``domain``, ``ordered`` and ``on_error``.
    """

    def __init__(
        self,
        engine: str,
        files: Sequence[str | Path],
        folder: Path,
        model: AnySpec,
        options: TraceOptions,
        asked: dict[str, Any],
        on_progress: OnProgress,
    ) -> None:
        self.engine, self.options, self.source = engine, options, asked
        self.on_progress = on_progress
        self.served = open_served(model)
        self.layers = self.served.anatomy.select(options.layers)
        if engine != "counts" and len({m.top_k for m in self.layers}) > 1:
            raise BadInputError(
                "layers with different numbers of experts per token cannot be imported together; "
                "choose some by `layers`"
            )
        self.files = find_captures(files, READERS[engine].SUFFIXES)
        manifest = Manifest(
            model=describe_served(self.served, self.layers),
            corpus={"path": corpus_name(engine, self.files)},
            options=options.identity(),
            source=describe_source(engine, self.files, asked),
        )
        self.run = GrowingRun(folder, manifest, options, _COUNTERS)
        self.entries = 0

    def commit(self) -> None:
        """Write what was counted so far."""
        # the folder is made when the first pool is whole, so a bad file leaves none behind
        if not self.run.manifest.created:
            self.run.begin("transformers")
        # files have checksums of their own; one of them, or a word, stands for the text
        one = len(self.files) == 1
        text = self.files[0].sha256 if one else f"see source: {counted(len(self.files), 'file')}"
        self.run.commit(self.entries, text)

    def finish(self, notes: list[str]) -> None:
        """Mark the run complete; ``notes`` say what its reader must know."""
        run, tokenizer = self.run, self.served.tokenizer
        run.manifest.source["notes"] = notes
        texts = None if tokenizer is None else partial(token_texts, tokenizer)
        run.finish(tuple(run.state.phases), dict(run.counters["skipped"]), texts)


def _absent(engine: str, ordered: bool) -> dict[str, str]:
    """What the run does not know, each with the reason."""
    name = READERS[engine].NAME
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


def corpus_name(engine: str, files: Sequence[CaptureFile]) -> str:
    """What a reader is told that the run was made of."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    name = READERS[engine].NAME
    what = name if engine == "counts" else f"requests captured by {name}"
    return f"{what} ({files[0].name}{more})"


def notes(manifest: Manifest, served: ServedModel) -> list[str]:
    """Sentences on what a reader of a run of requests must know."""
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
