"""What decides the numbers of a measurement: the model, the text, and how the text is cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from moescope.measure.windows import TextWindow
from moescope.models.loading import LoadedModel


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    return {name: version(name) for name in ("moescope", "torch", "transformers", "numpy")}


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """The model as a result names it: hashes decide, the name is for people."""
    return {
        "name": loaded.spec.model,
        "revision": loaded.revision,
        "model_type": loaded.anatomy.model_type,
        "config_sha256": loaded.config_hash,
        "weights_sha256": loaded.weights_hash,
        "tokenizer_sha256": loaded.tokenizer_hash,
        "dtype": loaded.dtype,
        "processor": loaded.processor,
        "decoder_layers": loaded.anatomy.num_decoder_layers,
        "layers": list(loaded.anatomy.layer_numbers),
        "num_experts": [layer.num_experts for layer in loaded.anatomy.layers],
        "top_k": [layer.top_k for layer in loaded.anatomy.layers],
    }


def identity(
    loaded: LoadedModel, windows: Sequence[TextWindow] = (), **settings: Any
) -> dict[str, Any]:
    """What a resumed measurement must share with the one that was begun."""
    model = describe_model(loaded)
    hashes = {k: model[k] for k in ("config_sha256", "weights_sha256", "dtype")}
    return {
        "moescope": version("moescope"),
        **hashes,
        "text": text_fingerprint(windows),
        **settings,
    }


def text_fingerprint(windows: Sequence[TextWindow]) -> str:
    """A sha256 of the windows: domains, documents, tokens, and which of them count."""
    digest = hashlib.sha256()
    for w in windows:
        head = json.dumps([w.domain, w.doc, w.window, w.start, len(w.token_ids)])
        digest.update(head.encode())
        digest.update(w.token_ids.astype("<i4").tobytes())
        digest.update(w.counted.astype("?").tobytes())
    return digest.hexdigest()
