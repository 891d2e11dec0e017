"""What a similarity says of itself beside its tables: model, text, and every layer in short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from moescope.corpus import CorpusSpec
from moescope.measure.identity import versions
from moescope.metrics.ranks import RELABELLINGS
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.statistics import add_q
from moescope.models import LoadedModel
from moescope.result import plain
from moescope.run.options import TraceOptions
from moescope.similarity.inputs import TokenSample

_PARTS = ("layers", "summary", "agreement", "nearest", "maps")


def about_options(loaded: LoadedModel, options: dict[str, Any]) -> dict[str, Any]:
    """Versions, the model and how it was loaded, and the options."""
    return {
        "versions": versions(),
        "model": {
            "name": loaded.spec.model, "revision": loaded.revision,
            "model_type": loaded.anatomy.model_type, "dtype": loaded.dtype,
            "stored_dtype": loaded.stored_dtype, "device": loaded.device,
            "config_sha256": loaded.config_hash, "tokenizer_sha256": loaded.tokenizer_hash,
            "weights_sha256": loaded.weights_hash,
        },
        "options": options,
        "permutations": RELABELLINGS,
    }  # fmt: skip


def about_layers(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows of all layers, with q of their agreement over all of them."""
    parts = {name: [row for piece in pieces for row in piece[name]] for name in _PARTS}
    add_q(parts["agreement"])
    made: dict[str, Any] = plain(parts)
    return made


def about_text(
    sample: TokenSample, text: CorpusSpec | AnalyzedRun | None, given: TraceOptions
) -> dict[str, Any]:
    """The tokens that were compared on, and where they are from."""
    run, tokens = text if isinstance(text, AnalyzedRun) else None, Counter(sample.domain.tolist())
    documents = Counter(w.domain for w in {w.doc: w for w in sample.windows}.values())
    options = TraceOptions(**run.manifest.options) if run else given
    corpus: Any = text
    made: dict[str, Any] = plain({
        "run": None if run is None else str(run.path),
        "run_state_sha256": run.manifest.state.sha256 if run and run.manifest.state else None,
        "corpus": run.manifest.corpus if run else corpus.model_dump(mode="json"),
        "context": options.context, "chat_template": options.chat_template,
        "count_template": options.count_template, "seed": options.seed,
        **({"chat_text": True} if options.chat_text else {}),
        "tokens": sample.num_tokens, "documents": len(sample.documents),
        "windows": len(sample.windows), "group_sizes": sample.group_sizes,
        "domains": [
            {"name": name, "tokens": tokens[d], "documents": documents[name]}
            for d, name in enumerate(sample.domains)
        ],
        "sample_sha256": sample.sha256,
    })  # fmt: skip
    return made
